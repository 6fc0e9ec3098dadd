#include "server/text/detokenizer.h"

#include <cstring>

namespace longhaul {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// How the bytes at the start of a string read.
struct Subpart {
  enum Kind { kCharacter, kInvalid, kIncomplete } kind;
  size_t length;  // of the character, or of the maximal subpart
};

// Unicode table 3-7. The second byte's range depends on the lead, the others are 80..BF.
Subpart ReadSubpart(std::string_view bytes) {
  const auto at = [bytes](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Subpart::kCharacter, 1};
  size_t length = 0;
  uint8_t low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // overlong
    if (lead == 0xED) high = 0x9F;  // surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;   // overlong
    if (lead == 0xF4) high = 0x8F;  // beyond U+10FFFF
  } else {
    return {Subpart::kInvalid, 1};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Subpart::kIncomplete, i};
    if (at(i) < low || at(i) > high) return {Subpart::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Subpart::kCharacter, length};
}

// Bytes of ASCII at the start of `bytes`, eight at a time.
size_t AsciiPrefix(std::string_view bytes) {
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (i < bytes.size() && static_cast<uint8_t>(bytes[i]) < 0x80) ++i;
  return i;
}

}  // namespace

size_t CompleteUtf8Prefix(std::string_view bytes) {
  // Only the last three bytes can start a character that is not finished.
  const size_t scan_from = bytes.size() < 3 ? 0 : bytes.size() - 3;
  for (size_t i = scan_from; i < bytes.size(); ++i) {
    if (static_cast<uint8_t>(bytes[i]) < 0xC2) continue;  // ASCII, continuation or never valid
    const Subpart part = ReadSubpart(bytes.substr(i));
    if (part.kind == Subpart::kIncomplete && i + part.length == bytes.size()) return i;
  }
  return bytes.size();
}

std::string SanitizeUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    if (const size_t n_ascii = AsciiPrefix(bytes); n_ascii > 0) {
      text.append(bytes.substr(0, n_ascii));
      bytes.remove_prefix(n_ascii);
      continue;
    }
    const Subpart part = ReadSubpart(bytes);
    text.append(part.kind == Subpart::kCharacter ? bytes.substr(0, part.length) : kReplacement);
    bytes.remove_prefix(part.length);
  }
  return text;
}

size_t FindInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    i += AsciiPrefix(text.substr(i));
    if (i == text.size()) break;
    const Subpart part = ReadSubpart(text.substr(i));
    if (part.kind != Subpart::kCharacter) return i;
    i += part.length;
  }
  return std::string_view::npos;
}

std::string StreamDetokenizer::Push(int32_t token) {
  std::string_view bytes = tokenizer_->TokenBytes(token);
  if (bytes.empty()) return {};
  if (first_ && tokenizer_->drops_first_space() && bytes.front() == ' ') bytes.remove_prefix(1);
  first_ = false;
  pending_.append(bytes);
  const size_t n_final = CompleteUtf8Prefix(pending_);
  std::string text = SanitizeUtf8(std::string_view(pending_).substr(0, n_final));
  pending_.erase(0, n_final);
  return text;
}

std::string StreamDetokenizer::Finish() {
  std::string text = SanitizeUtf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace longhaul
