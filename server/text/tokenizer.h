// Tokenizer: text to token ids and back. Two kinds: sentencepiece `tokenizer.model` and Hugging
// Face `tokenizer.json` (byte-level BPE). Immutable after loading; Encode and Decode may be called
// from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul {

enum class SpecialTokens : uint8_t {
  kText,   // "<|im_end|>" in the input is plain text: what a user types can forge no control token
  kParse,  // special tokens in the input become their ids: chat templates, /tokenize
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text` (valid UTF-8; InvalidArgument with the byte offset otherwise). add_bos puts the
  // model's beginning-of-sequence token first if the model has one and asks for it, and whatever
  // else its files put before a prompt ([gMASK]<sop>). Large inputs
  // are cut at pre-tokenizer borders and encoded by several threads; the result does not depend on
  // how.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_bos,
                                                      SpecialTokens special) const = 0;

  // Raw bytes of one token; may be part of a UTF-8 character (byte-level BPE, byte fallback). A
  // sentencepiece word mark is a space. Empty for special tokens.
  virtual std::string_view TokenBytes(int32_t id) const = 0;

  // Readable form of one token, special tokens by their name, as logprobs show it.
  virtual std::string TokenText(int32_t id) const = 0;

  // Whole text of ids; special tokens are skipped, invalid UTF-8 becomes U+FFFD. A sentencepiece
  // dummy prefix space is dropped at the start of the text.
  virtual std::string Decode(const std::vector<int32_t>& ids) const;

  // Text of the pieces that follow `previous` tokens of a running sequence starts without a dropped
  // space: true when the very first decoded piece drops its leading space (sentencepiece).
  virtual bool drops_first_space() const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual int32_t bos_id() const = 0;                       // -1 = none
  virtual const std::vector<int32_t>& eos_ids() const = 0;  // from tokenizer and generation config
  virtual bool IsSpecial(int32_t id) const = 0;
  // Id of a special or added token by its text; -1 = none. Chat templates are chosen with it.
  virtual int32_t SpecialId(std::string_view text) const = 0;

 protected:
  // What every Encode refuses: a text above 512 MiB, and invalid UTF-8 (with the byte offset).
  static absl::Status CheckText(std::string_view text);
};

// Takes tokenizer.json if the folder has one, else tokenizer.model; reads tokenizer_config.json,
// generation_config.json and config.json for bos/eos. n_threads: for one large prompt, 0 = all.
// Errors: NotFound (names the files looked for), InvalidArgument (file, what is wrong, what to do),
// Unimplemented (a tokenizer type or pre-tokenizer that is not supported, by its name).
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir,
                                                         int n_threads);

}  // namespace longhaul
