// SentencePieceBpe: what the sentencepiece library does for a model that merges and changes nothing
// in the text but spaces (Llama 1 and 2, Vicuna, Mistral, Yi), in linear time and on all threads.
// Immutable after construction; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "server/text/added_tokens.h"
#include "server/text/bpe.h"
#include "server/text/sentencepiece_file.h"

namespace longhaul {

class SentencePieceBpe {
 public:
  // nullptr: a model of another kind, which only the library knows to encode with.
  static std::unique_ptr<SentencePieceBpe> Create(const SentencePieceFile& file);

  // Appends the ids of `text`, valid UTF-8. at_start: the model's own space goes before it, if it
  // has one. `pool` may be null.
  void Encode(std::string_view text, bool at_start, ThreadPool* pool,
              std::vector<int32_t>* ids) const;

 private:
  SentencePieceBpe(BpeSpec spec, AddedTokens user_symbols, bool puts_space_first)
      : bpe_(std::move(spec)),
        user_symbols_(std::move(user_symbols)),
        puts_space_first_(puts_space_first) {}

  BpeModel bpe_;
  AddedTokens user_symbols_;  // pieces that are always cut out first
  CharClasses classes_;
  bool puts_space_first_;
};

}  // namespace longhaul
