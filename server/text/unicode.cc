#include "server/text/unicode.h"

#include <fmt/format.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <algorithm>

namespace longhaul {

void AppendUtf8(uint32_t code_point, std::string* out) {
  const auto tail = [code_point](int shift) {
    return static_cast<char>(0x80 | ((code_point >> shift) & 0x3F));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->append({static_cast<char>(0xC0 | code_point >> 6), tail(0)});
  } else if (code_point < 0x10000) {
    out->append({static_cast<char>(0xE0 | code_point >> 12), tail(6), tail(0)});
  } else {
    out->append({static_cast<char>(0xF0 | code_point >> 18), tail(12), tail(6), tail(0)});
  }
}

CharClasses::CharClasses() : table_(0x110000, 0) {
  const auto fill = [](const void* context, UChar32 start, UChar32 limit,
                       UCharCategory category) -> UBool {
    const uint32_t mask = U_MASK(category);
    const uint8_t bits = (mask & U_GC_L_MASK) ? kLetter : (mask & U_GC_N_MASK) ? kNumber : 0;
    auto* table = static_cast<uint8_t*>(const_cast<void*>(context));
    if (bits != 0) std::fill(table + start, table + limit, bits);
    return true;
  };
  u_enumCharTypes(fill, table_.data());
  // White_Space has no member beyond U+3000.
  for (UChar32 c = 0; c <= 0x3000; ++c) {
    if (u_isUWhiteSpace(c)) table_[c] |= kSpace;
  }
}

absl::StatusOr<std::optional<std::string>> NormalizeNfc(std::string_view text) {
  // Below U+0300 nothing composes, and no lead byte under 0xCC reaches it.
  const bool plain = std::none_of(text.begin(), text.end(),
                                  [](char c) { return static_cast<uint8_t>(c) >= 0xCC; });
  if (plain) return std::nullopt;
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(error);
  if (U_FAILURE(error)) {
    return absl::InternalError(fmt::format("ICU has no NFC data: {}", u_errorName(error)));
  }
  const icu::StringPiece source(text.data(), static_cast<int32_t>(text.size()));
  if (nfc->isNormalizedUTF8(source, error) && U_SUCCESS(error)) return std::nullopt;
  std::string result;
  result.reserve(text.size());
  icu::StringByteSink<std::string> sink(&result);
  error = U_ZERO_ERROR;
  nfc->normalizeUTF8(0, source, sink, nullptr, error);
  if (U_FAILURE(error)) {
    return absl::InternalError(fmt::format("NFC of {} bytes: {}", text.size(), u_errorName(error)));
  }
  return result;
}

}  // namespace longhaul
