#include "server/text/jinja/py_string.h"

#include <fmt/format.h>
#include <unicode/bytestream.h>
#include <unicode/casemap.h>
#include <unicode/uchar.h>

#include <algorithm>

#include "server/text/unicode.h"

namespace longhaul::jinja {
namespace {

// str.isspace(): White_Space and U+001C to U+001F.
bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsAscii(std::string_view text) {
  return std::none_of(text.begin(), text.end(),
                      [](char c) { return static_cast<uint8_t>(c) >= 0x80; });
}

bool IsCased(uint32_t c) { return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_CASED); }

Utf8Char LastChar(std::string_view text) {
  return DecodeUtf8(text.data() + text.size() - LastCharLength(text.data() + text.size()));
}

template <typename Keep>
std::string_view TrimLeft(std::string_view text, const Keep& drop) {
  while (!text.empty()) {
    const Utf8Char c = DecodeUtf8(text.data());
    if (!drop(c.code_point)) break;
    text.remove_prefix(static_cast<size_t>(c.length));
  }
  return text;
}

template <typename Keep>
std::string_view TrimRight(std::string_view text, const Keep& drop) {
  while (!text.empty()) {
    const Utf8Char c = LastChar(text);
    if (!drop(c.code_point)) break;
    text.remove_suffix(static_cast<size_t>(c.length));
  }
  return text;
}

auto IsOneOf(std::string_view chars) {
  std::vector<uint32_t> set;
  for (const std::string_view c : Chars(chars)) set.push_back(DecodeUtf8(c.data()).code_point);
  return [set = std::move(set)](uint32_t c) {
    return std::find(set.begin(), set.end(), c) != set.end();
  };
}

// Full case mapping, for example of one character to two.
template <typename Map>
std::string MapCase(std::string_view text, char ascii_first, char ascii_last, const Map& map) {
  std::string result;
  if (IsAscii(text)) {
    result.assign(text);
    for (char& c : result) {
      if (c >= ascii_first && c <= ascii_last) c = static_cast<char>(c ^ 0x20);
    }
    return result;
  }
  icu::StringByteSink<std::string> sink(&result, static_cast<int32_t>(text.size()));
  UErrorCode error = U_ZERO_ERROR;
  map(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, error);
  return U_FAILURE(error) ? std::string(text) : result;
}

std::string TitleChar(std::string_view c) {
  if (c.size() == 1) return ToUpper(c);
  // One character with a title case of its own (as the letter dz) or the upper case.
  const UChar32 code_point = static_cast<UChar32>(DecodeUtf8(c.data()).code_point);
  const UChar32 title = u_totitle(code_point);
  if (title == code_point) return ToUpper(c) == c ? std::string(c) : ToUpper(c);
  std::string result;
  AppendUtf8(static_cast<uint32_t>(title), &result);
  return result;
}

}  // namespace

std::string_view StripLeft(std::string_view text) { return TrimLeft(text, IsSpace); }
std::string_view StripRight(std::string_view text) { return TrimRight(text, IsSpace); }
std::string_view StripCharsLeft(std::string_view text, std::string_view chars) {
  return TrimLeft(text, IsOneOf(chars));
}
std::string_view StripCharsRight(std::string_view text, std::string_view chars) {
  return TrimRight(text, IsOneOf(chars));
}

int64_t CountChars(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

size_t OffsetOfChar(std::string_view text, int64_t index) {
  size_t offset = 0;
  for (; index > 0 && offset < text.size(); --index) {
    offset += static_cast<size_t>(DecodeUtf8(text.data() + offset).length);
  }
  return offset;
}

std::vector<std::string_view> Chars(std::string_view text) {
  std::vector<std::string_view> chars;
  chars.reserve(text.size());
  while (!text.empty()) {
    const size_t length = static_cast<size_t>(DecodeUtf8(text.data()).length);
    chars.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return chars;
}

SliceRange ResolveSlice(std::optional<int64_t> begin, std::optional<int64_t> end, int64_t step,
                        int64_t length) {
  const int64_t lowest = step < 0 ? -1 : 0, highest = step < 0 ? length - 1 : length;
  const auto clamp = [&](int64_t index) {
    return std::clamp(index < 0 ? index + length : index, lowest, highest);
  };
  const int64_t first = begin ? clamp(*begin) : step < 0 ? highest : lowest;
  const int64_t last = end ? clamp(*end) : step < 0 ? lowest : highest;
  SliceRange range{first, step, 0};
  if (step > 0 && first < last) range.count = (last - first - 1) / step + 1;
  if (step < 0 && first > last) range.count = (first - last - 1) / -step + 1;
  return range;
}

std::string SliceChars(std::string_view text, std::optional<int64_t> begin,
                       std::optional<int64_t> end, int64_t step) {
  const int64_t length = CountChars(text);
  const SliceRange range = ResolveSlice(begin, end, step, length);
  if (range.count == 0) return "";
  if (step == 1) {
    const size_t from = OffsetOfChar(text, range.begin);
    return std::string(text.substr(from, OffsetOfChar(text.substr(from), range.count)));
  }
  const std::vector<std::string_view> chars = Chars(text);
  std::string result;
  for (int64_t i = 0, at = range.begin; i < range.count; ++i, at += step) {
    result += chars[static_cast<size_t>(at)];
  }
  return result;
}

std::string ToUpper(std::string_view text) {
  return MapCase(text, 'a', 'z', [](icu::StringPiece in, icu::ByteSink& sink, UErrorCode& error) {
    icu::CaseMap::utf8ToUpper("", 0, in, sink, nullptr, error);
  });
}

std::string ToLower(std::string_view text) {
  return MapCase(text, 'A', 'Z', [](icu::StringPiece in, icu::ByteSink& sink, UErrorCode& error) {
    icu::CaseMap::utf8ToLower("", 0, in, sink, nullptr, error);
  });
}

std::string ToTitle(std::string_view text) {
  std::string result;
  bool after_cased = false;
  for (const std::string_view c : Chars(text)) {
    result += after_cased ? ToLower(c) : TitleChar(c);
    after_cased = IsCased(DecodeUtf8(c.data()).code_point);
  }
  return result;
}

std::string Capitalize(std::string_view text) {
  if (text.empty()) return "";
  const size_t length = static_cast<size_t>(DecodeUtf8(text.data()).length);
  return TitleChar(text.substr(0, length)) + ToLower(text.substr(length));
}

std::string TitleWords(std::string_view text) {
  std::string result;
  bool word_begins = true;
  while (!text.empty()) {
    const auto is_border = [](std::string_view rest) {
      const uint32_t c = DecodeUtf8(rest.data()).code_point;
      return IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    };
    const size_t length = static_cast<size_t>(DecodeUtf8(text.data()).length);
    if (is_border(text)) {
      result += text.substr(0, length);
      text.remove_prefix(length);
      word_begins = true;
      continue;
    }
    if (word_begins) {
      result += ToUpper(text.substr(0, length));
      text.remove_prefix(length);
      word_begins = false;
      continue;
    }
    size_t end = 0;
    while (end < text.size() && !is_border(text.substr(end))) {
      end += static_cast<size_t>(DecodeUtf8(text.data() + end).length);
    }
    result += ToLower(text.substr(0, end));
    text.remove_prefix(end);
  }
  return result;
}

std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    int64_t max_splits) {
  std::vector<std::string_view> parts;
  for (; max_splits != 0; --max_splits) {
    const size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::string_view> SplitRight(std::string_view text, std::string_view separator,
                                         int64_t max_splits) {
  std::vector<std::string_view> parts;
  for (; max_splits != 0; --max_splits) {
    const size_t at = text.rfind(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(at + separator.size()));
    text = text.substr(0, at);
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitSpace(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> parts;
  for (text = StripLeft(text); !text.empty(); text = StripLeft(text)) {
    if (max_splits-- == 0) {
      parts.push_back(text);
      break;
    }
    const std::string_view rest = TrimLeft(text, [](uint32_t c) { return !IsSpace(c); });
    parts.push_back(text.substr(0, text.size() - rest.size()));
    text = rest;
  }
  return parts;
}

std::vector<std::string_view> SplitSpaceRight(std::string_view text, int64_t max_splits) {
  std::vector<std::string_view> parts;
  for (text = StripRight(text); !text.empty(); text = StripRight(text)) {
    if (max_splits-- == 0) {
      parts.push_back(text);
      break;
    }
    const std::string_view rest = TrimRight(text, [](uint32_t c) { return !IsSpace(c); });
    parts.push_back(text.substr(rest.size()));
    text = rest;
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0, at = 0;
  while (at < text.size()) {
    const Utf8Char c = DecodeUtf8(text.data() + at);
    size_t next = at + static_cast<size_t>(c.length);
    const uint32_t code = c.code_point;
    const bool is_end = (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) ||
                        code == 0x85 || code == 0x2028 || code == 0x2029;
    if (is_end) {
      if (code == '\r' && next < text.size() && text[next] == '\n') ++next;
      lines.push_back(text.substr(begin, (keep_ends ? next : at) - begin));
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

int64_t CountOccurrences(std::string_view text, std::string_view what) {
  if (what.empty()) return CountChars(text) + 1;
  int64_t n = 0;
  for (size_t at = text.find(what); at != std::string_view::npos;
       at = text.find(what, at + what.size())) {
    ++n;
  }
  return n;
}

std::string Replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t count) {
  std::string result;
  while (count != 0) {
    size_t at = 0;  // of what is replaced; from "" it is the place before each character
    if (!from.empty()) at = text.find(from);
    if (at == std::string_view::npos) break;
    result.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
    --count;
    if (!from.empty()) continue;
    if (text.empty()) break;
    const size_t length = static_cast<size_t>(DecodeUtf8(text.data()).length);
    result.append(text.substr(0, length));
    text.remove_prefix(length);
  }
  return result.append(text);
}

bool TestChars(std::string_view text, CharTest test) {
  bool any = false;
  for (; !text.empty(); text.remove_prefix(static_cast<size_t>(DecodeUtf8(text.data()).length))) {
    const UChar32 c = static_cast<UChar32>(DecodeUtf8(text.data()).code_point);
    const bool is_digit = u_charDigitValue(c) >= 0 || u_isdigit(c);
    bool fits = true;
    switch (test) {
      case CharTest::kAlpha:
        fits = u_isalpha(c);
        break;
      case CharTest::kDigit:
        fits = is_digit;
        break;
      case CharTest::kAlnum:
        fits = u_isalpha(c) || is_digit;
        break;
      case CharTest::kSpace:
        fits = IsSpace(static_cast<uint32_t>(c));
        break;
      case CharTest::kLower:  // at least one cased character, all of them small
        if (u_isUUppercase(c) || u_istitle(c)) return false;
        any |= static_cast<bool>(u_isULowercase(c));
        continue;
      case CharTest::kUpper:
        if (u_isULowercase(c) || u_istitle(c)) return false;
        any |= static_cast<bool>(u_isUUppercase(c));
        continue;
    }
    if (!fits) return false;
    any = true;
  }
  return any;
}

int64_t CountWords(std::string_view text) {
  int64_t n = 0;
  bool in_word = false;
  for (; !text.empty(); text.remove_prefix(static_cast<size_t>(DecodeUtf8(text.data()).length))) {
    const UChar32 c = static_cast<UChar32>(DecodeUtf8(text.data()).code_point);
    const bool is_word = u_isalnum(c) || c == '_' || (U_GET_GC_MASK(c) & U_GC_N_MASK) != 0;
    n += is_word && !in_word;
    in_word = is_word;
  }
  return n;
}

void AppendRepr(std::string_view text, std::string* out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out->push_back(quote);
  for (; !text.empty(); text.remove_prefix(static_cast<size_t>(DecodeUtf8(text.data()).length))) {
    const Utf8Char c = DecodeUtf8(text.data());
    const uint32_t code = c.code_point;
    if (code == static_cast<uint32_t>(quote) || code == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(code));
    } else if (code == '\n' || code == '\r' || code == '\t') {
      out->append(code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t");
    } else if (code == ' ' ||
               (U_GET_GC_MASK(static_cast<UChar32>(code)) & (U_GC_C_MASK | U_GC_Z_MASK)) == 0) {
      out->append(text.substr(0, static_cast<size_t>(c.length)));
    } else if (code < 0x100) {
      fmt::format_to(std::back_inserter(*out), "\\x{:02x}", code);
    } else if (code < 0x10000) {
      fmt::format_to(std::back_inserter(*out), "\\u{:04x}", code);
    } else {
      fmt::format_to(std::back_inserter(*out), "\\U{:08x}", code);
    }
  }
  out->push_back(quote);
}

}  // namespace longhaul::jinja
