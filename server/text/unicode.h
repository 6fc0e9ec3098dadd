// What the tokenizers need to know about Unicode: decoding of valid UTF-8, the three classes that
// pre-tokenizers ask for, and normal forms. Thread-safe; does not check its input (see
// FindInvalidUtf8).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul {

// One character of valid UTF-8.
struct Utf8Char {
  uint32_t code_point;
  int length;  // bytes, 1..4
};

inline Utf8Char DecodeUtf8(const char* p) {
  const auto byte = [p](int i) { return static_cast<uint32_t>(static_cast<uint8_t>(p[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

void AppendUtf8(uint32_t code_point, std::string* out);

// Length of the character that ends at `end`.
inline int LastCharLength(const char* end) {
  int length = 1;
  while (length < 4 && (static_cast<uint8_t>(end[-length]) & 0xC0) == 0x80) ++length;
  return length;
}

// Classes of every code point in one flat table: 1.1 MB, of which a text touches a few pages. A
// two-stage table costs a second dependent load per character.
class CharClasses {
 public:
  enum : uint8_t { kLetter = 1, kNumber = 2, kSpace = 4 };  // \p{L}, \p{N}, White_Space

  CharClasses();

  uint8_t operator[](uint32_t code_point) const { return table_[code_point]; }

 private:
  std::vector<uint8_t> table_;
};

enum class NormalForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
// `text` in that form, or nullopt when it already is (the usual case, found by one scan).
// InvalidArgument when it would be longer than max_bytes.
absl::StatusOr<std::optional<std::string>> ToNormalForm(NormalForm form, std::string_view text,
                                                        size_t max_bytes);

// Every character in lower case by itself: no language, no context.
std::string ToLower(std::string_view text);

// Whether a word goes on with this character: letters, marks, digits, connectors, joiners.
bool IsWordChar(uint32_t code_point);

}  // namespace longhaul
