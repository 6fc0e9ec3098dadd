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

namespace {

const icu::Normalizer2* Normalizer(NormalForm form, UErrorCode* error) {
  switch (form) {
    case NormalForm::kNfc:
      return icu::Normalizer2::getNFCInstance(*error);
    case NormalForm::kNfd:
      return icu::Normalizer2::getNFDInstance(*error);
    case NormalForm::kNfkc:
      return icu::Normalizer2::getNFKCInstance(*error);
    case NormalForm::kNfkd:
      return icu::Normalizer2::getNFKDInstance(*error);
  }
  return nullptr;
}

// Stops storing at the limit: compatibility forms may be eleven times as long as their text.
class LimitedSink : public icu::ByteSink {
 public:
  LimitedSink(std::string* out, size_t max_bytes) : out_(out), max_bytes_(max_bytes) {}
  void Append(const char* bytes, int32_t n) override {
    full_ = full_ || static_cast<size_t>(n) > max_bytes_ - out_->size();
    if (!full_) out_->append(bytes, n);
  }
  bool full() const { return full_; }

 private:
  std::string* out_;
  size_t max_bytes_;
  bool full_ = false;
};

absl::Status TooLong(size_t n_bytes, size_t max_bytes) {
  return absl::InvalidArgumentError(
      fmt::format("a text of {} bytes has more than {} when normalized; send a shorter one",
                  n_bytes, max_bytes));
}

const icu::Normalizer2* Decomposer(NormalForm form, UErrorCode* error) {
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  return Normalizer(compatible ? NormalForm::kNfkd : NormalForm::kNfd, error);
}

// Runs of combining marks longer than this are put into canonical order before ICU sees them: it
// inserts each mark at its place, which took 1.4 s for 100 KB of two marks in turn, and 16 times as
// long for four times as many.
constexpr size_t kLongRun_marks = 32;

// Appends the run of marks at the start of `text`, decomposed and in order; returns its length in
// bytes. The order of marks with one class stays, so the normal forms stay too.
size_t AppendSortedMarks(const icu::Normalizer2& decomposer, std::string_view text,
                         std::string* out) {
  std::vector<std::pair<uint8_t, UChar32>> marks;  // combining class, mark
  size_t n_bytes = 0;
  while (n_bytes < text.size()) {
    const Utf8Char c = DecodeUtf8(text.data() + n_bytes);
    const auto code_point = static_cast<UChar32>(c.code_point);
    if (decomposer.hasBoundaryBefore(code_point)) break;
    icu::UnicodeString parts;
    if (!decomposer.getDecomposition(code_point, parts)) parts.append(code_point);
    for (int32_t i = 0; i < parts.length(); i = parts.moveIndex32(i, 1)) {
      marks.emplace_back(decomposer.getCombiningClass(parts.char32At(i)), parts.char32At(i));
    }
    n_bytes += c.length;
  }
  const bool has_starter =
      std::any_of(marks.begin(), marks.end(), [](const auto& mark) { return mark.first == 0; });
  if (marks.size() <= kLongRun_marks || has_starter) {
    out->append(text.substr(0, n_bytes));
    return n_bytes;
  }
  std::stable_sort(marks.begin(), marks.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& mark : marks) AppendUtf8(static_cast<uint32_t>(mark.second), out);
  return n_bytes;
}

// Whether a run of marks is long; only then is the text copied.
bool HasLongRun(const icu::Normalizer2& decomposer, std::string_view text) {
  size_t n_marks = 0;
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = DecodeUtf8(text.data() + i);
    const bool is_mark =
        c.code_point >= 0x300 && !decomposer.hasBoundaryBefore(static_cast<UChar32>(c.code_point));
    n_marks = is_mark ? n_marks + 1 : 0;
    // A mark may decompose to several.
    if (n_marks > kLongRun_marks / 4) return true;
    i += c.length;
  }
  return false;
}

std::string WithSortedMarks(const icu::Normalizer2& decomposer, std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = DecodeUtf8(text.data() + i);
    if (c.code_point >= 0x300 &&
        !decomposer.hasBoundaryBefore(static_cast<UChar32>(c.code_point))) {
      i += AppendSortedMarks(decomposer, text.substr(i), &result);
    } else {
      result.append(text.substr(i, c.length));
      i += c.length;
    }
  }
  return result;
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ToNormalForm(NormalForm form, std::string_view text,
                                                        size_t max_bytes) {
  // Below U+0300 nothing composes, and no lead byte under 0xCC reaches it.
  const uint8_t plain_below = form == NormalForm::kNfc ? 0xCC : 0x80;
  const bool plain = std::none_of(text.begin(), text.end(), [plain_below](char c) {
    return static_cast<uint8_t>(c) >= plain_below;
  });
  if (plain) return std::nullopt;
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = Normalizer(form, &error);
  if (U_FAILURE(error)) {
    return absl::InternalError(
        fmt::format("ICU has no data for normal forms: {}", u_errorName(error)));
  }
  const icu::Normalizer2* decomposer = Decomposer(form, &error);
  if (U_FAILURE(error)) {
    return absl::InternalError(
        fmt::format("ICU has no data for normal forms: {}", u_errorName(error)));
  }
  std::string sorted;
  const bool sorts = HasLongRun(*decomposer, text);
  if (sorts) {
    sorted = WithSortedMarks(*decomposer, text);
    if (sorted.size() > max_bytes) return TooLong(text.size(), max_bytes);
    text = sorted;
  }
  const icu::StringPiece source(text.data(), static_cast<int32_t>(text.size()));
  if (normalizer->isNormalizedUTF8(source, error) && U_SUCCESS(error)) {
    return sorts ? std::optional<std::string>(std::move(sorted)) : std::nullopt;
  }
  std::string result;
  result.reserve(text.size());
  LimitedSink sink(&result, max_bytes);
  error = U_ZERO_ERROR;
  normalizer->normalizeUTF8(0, source, sink, nullptr, error);
  if (U_FAILURE(error)) {
    return absl::InternalError(
        fmt::format("normal form of {} bytes: {}", text.size(), u_errorName(error)));
  }
  if (sink.full()) return TooLong(text.size(), max_bytes);
  return result;
}

std::string ToLower(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = DecodeUtf8(text.data() + i);
    if (c.code_point == 0x130) {
      result.append("i\u0307");  // the only one that becomes two
    } else {
      AppendUtf8(static_cast<uint32_t>(u_tolower(static_cast<UChar32>(c.code_point))), &result);
    }
    i += c.length;
  }
  return result;
}

bool IsWordChar(uint32_t code_point) {
  const auto c = static_cast<UChar32>(code_point);
  return u_isUAlphabetic(c) || u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL) ||
         (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0;
}

}  // namespace longhaul
