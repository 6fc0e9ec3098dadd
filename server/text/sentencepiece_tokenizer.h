// SentencePieceTokenizer: a tokenizer.model with the control and added tokens around it. Immutable
// after loading; any thread. Models of plain merges are encoded by SentencePieceBpe, others by the
// library, which gets a large text cut at spaces that no piece spans; the cuts depend on the text
// alone, so the ids do not depend on the number of threads.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "server/text/added_tokens.h"
#include "server/text/sentencepiece_bpe.h"
#include "server/text/sentencepiece_model.h"
#include "server/text/special_config.h"
#include "server/text/tokenizer.h"

namespace longhaul {

class SentencePieceTokenizer : public Tokenizer {
 public:
  // `path` is only named in errors; `serialized` is the file's content.
  static absl::StatusOr<std::unique_ptr<SentencePieceTokenizer>> Create(const std::string& path,
                                                                        std::string_view serialized,
                                                                        const SpecialConfig& config,
                                                                        int n_threads);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_bos,
                                              SpecialTokens special) const override;
  std::string_view TokenBytes(int32_t id) const override;
  std::string TokenText(int32_t id) const override;
  bool drops_first_space() const override { return puts_space_first_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(token_bytes_.size()); }
  int32_t bos_id() const override { return bos_id_; }
  const std::vector<int32_t>& eos_ids() const override { return eos_ids_; }
  bool IsSpecial(int32_t id) const override;
  int32_t SpecialId(std::string_view text) const override;

 private:
  SentencePieceTokenizer(std::unique_ptr<SentencePieceModel> model, int n_threads);

  absl::Status ReadPieces(const std::string& path, const SpecialConfig& config);
  absl::Status ProbeSpaces(const std::string& path);
  absl::Status EncodeText(std::string_view text, bool find_control,
                          std::vector<int32_t>* ids) const;
  // at_start: the library's own space goes before the text.
  absl::Status EncodeRun(std::string_view text, bool at_start, std::vector<int32_t>* ids) const;
  absl::Status EncodeSegment(std::string_view segment, bool at_start,
                             std::vector<int32_t>* ids) const;
  std::vector<std::string_view> CutAtSpaces(std::string_view text) const;

  std::unique_ptr<SentencePieceModel> model_;
  std::unique_ptr<SentencePieceBpe> bpe_;  // encodes in the library's place; null: not this model
  CharClasses classes_;
  AddedTokens added_;
  std::vector<std::string> token_bytes_;  // by id
  std::vector<std::string> token_names_;  // by id; control and added tokens only
  std::vector<bool> is_special_;          // by id
  absl::flat_hash_map<std::string, int32_t> special_ids_;
  std::vector<int32_t> eos_ids_;
  int32_t bos_id_ = -1;
  bool add_bos_ = false;
  bool puts_space_first_ = false;      // add_dummy_prefix
  bool can_cut_ = false;               // no piece spans a letter and the space after it
  std::vector<int32_t> sentinel_ids_;  // what a text begins with when the sentinel is put before it

  mutable std::mutex pool_mutex_;
  mutable ThreadPool pool_;  // guarded by pool_mutex_
};

}  // namespace longhaul
