// Nesting depth of JSON text, found by one scan before any parser builds a tree: a body of a million
// '[' costs nothing. Whether the text is valid JSON is the parser's business.
#pragma once

#include <cstddef>
#include <string_view>

namespace longhaul {

// False when brackets outside strings nest deeper than max_depth.
inline bool JsonDepthWithin(std::string_view text, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) return false;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return true;
}

}  // namespace longhaul
