// HfTokenizer: BPE as a Hugging Face tokenizer.json describes it, byte-level (GPT-2, Llama-3,
// Qwen2) or over characters with byte fallback (Llama-2, Mistral). Immutable after loading; any
// thread. One large text is encoded by the tokenizer's own threads; while they are busy with
// another text the calling thread does its work alone.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "server/text/added_tokens.h"
#include "server/text/bpe.h"
#include "server/text/normalizer.h"
#include "server/text/pretokenizer.h"
#include "server/text/special_config.h"
#include "server/text/tokenizer.h"

namespace longhaul {

// pre_tokenizer "Metaspace": spaces become a mark, which is also put before a text.
struct Metaspace {
  enum class Prepend : uint8_t { kNever, kFirst, kAlways };
  std::string mark;  // empty: no Metaspace
  Prepend prepend = Prepend::kNever;
  bool split = false;  // cut before every mark
};

// Everything a tokenizer.json says, checked by ReadHfTokenizer.
struct HfTokenizerSpec {
  std::vector<NormalizerStep> normalizer;
  Metaspace metaspace;
  bool add_prefix_space = false;  // ByteLevel
  PreTokenizer pretokenizer;
  BpeSpec bpe;
  std::vector<std::string>
      token_bytes;  // by id; what a token adds to a text, empty for special ones
  std::vector<std::string> token_names;  // by id; control and added tokens only
  std::vector<AddedToken> added;
  bool drops_first_space = false;
  std::vector<int32_t> prefix_ids;  // before a prompt: bos, and what else the template puts there
  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;
};

// Errors name the file and the field. `path` is only named; `json_text` is its content.
absl::StatusOr<HfTokenizerSpec> ReadHfTokenizer(const std::string& path, std::string_view json_text,
                                                const SpecialConfig& config);

class HfTokenizer : public Tokenizer {
 public:
  HfTokenizer(HfTokenizerSpec spec, int n_threads);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_bos,
                                              SpecialTokens special) const override;
  std::string_view TokenBytes(int32_t id) const override;
  std::string TokenText(int32_t id) const override;
  bool drops_first_space() const override { return spec_.drops_first_space; }
  int32_t vocab_size() const override { return static_cast<int32_t>(spec_.token_bytes.size()); }
  int32_t bos_id() const override { return spec_.bos_id; }
  const std::vector<int32_t>& eos_ids() const override { return spec_.eos_ids; }
  bool IsSpecial(int32_t id) const override;
  int32_t SpecialId(std::string_view text) const override;

 private:
  absl::Status EncodeText(std::string_view text, bool find_control,
                          std::vector<int32_t>* ids) const;
  absl::Status EncodeBetweenTokens(std::string_view text, bool at_start, bool find_control,
                                   std::vector<int32_t>* ids) const;
  absl::Status EncodeNormalized(std::string_view text, bool at_start,
                                std::vector<int32_t>* ids) const;
  std::string_view AddPrefixes(std::string_view text, bool at_start, std::string* buffer) const;

  HfTokenizerSpec spec_;  // without bpe, which bpe_ took over
  BpeModel bpe_;
  CharClasses classes_;
  AddedTokens raw_added_;         // looked for before normalization
  AddedTokens normalized_added_;  // and after it
  std::vector<bool> is_special_;  // by id
  absl::flat_hash_map<std::string, int32_t> special_ids_;

  mutable std::mutex pool_mutex_;
  mutable ThreadPool pool_;  // guarded by pool_mutex_
};

}  // namespace longhaul
