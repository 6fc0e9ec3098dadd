// StreamDetokenizer: token by token to text; never emits half a UTF-8 character. One per choice.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "server/text/tokenizer.h"

namespace longhaul {

class StreamDetokenizer {
 public:
  explicit StreamDetokenizer(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  // Text that became final with this token, possibly empty. Bytes that can never become valid UTF-8
  // come out as U+FFFD, one per maximal invalid sequence (Unicode, substitution of maximal
  // subparts).
  std::string Push(int32_t token);
  // What is still held back, as U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;  // at most 3 bytes: the start of a character
  bool first_ = true;
};

// Length of the longest prefix of `bytes` that is made of whole characters or bytes known to be
// invalid; what follows is the start of a character that may still be completed.
size_t CompleteUtf8Prefix(std::string_view bytes);
// Replaces invalid sequences by U+FFFD.
std::string SanitizeUtf8(std::string_view bytes);
// Offset of the first invalid byte, or npos when `text` is valid UTF-8.
size_t FindInvalidUtf8(std::string_view text);

}  // namespace longhaul
