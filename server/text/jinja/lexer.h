// Text of a template to tokens, with jinja2's rules for white space around tags (trim_blocks and
// lstrip_blocks on, as transformers sets them). Stateless; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::jinja {

enum class TokenType : uint8_t {
  kData,  // text between tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,  // text: unescaped
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  int line = 0;
  std::string text;
  int64_t integer = 0;
  double number = 0;

  bool Is(TokenType other, std::string_view other_text) const {
    return type == other && text == other_text;
  }
};

// "line 7: <what>"; every error about the text of a template looks like this.
absl::Status SyntaxError(int line, std::string_view what);

// `source` must be valid UTF-8. The last token is kEnd.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace longhaul::jinja
