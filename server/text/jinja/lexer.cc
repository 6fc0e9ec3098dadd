#include "server/text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "server/text/jinja/py_string.h"
#include "server/text/unicode.h"

namespace longhaul::jinja {
namespace {

constexpr std::array<std::string_view, 6> kTwoCharOperators = {"//", "**", "==", "!=", ">=", "<="};
constexpr std::string_view kOneCharOperators = "+-/*%~[](){}><=.:|,;";

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameChar(char c) {
  return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}

// "\r\n" and "\r" become "\n"; one newline at the very end is dropped.
std::string NormalizeNewlines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text.push_back(source[i]);
    } else {
      text.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) LH_RETURN_IF_ERROR(ReadDataAndTag());
    Add(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view Rest() const { return std::string_view(source_).substr(pos_); }
  bool At(std::string_view text) const { return Rest().substr(0, text.size()) == text; }
  void Add(TokenType type, std::string text) {
    Token token;
    token.type = type;
    token.line = line_;
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
  }
  void MoveTo(size_t pos) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<int64_t>(pos_),
                                         source_.begin() + static_cast<int64_t>(pos), '\n'));
    pos_ = pos;
  }
  void SkipSpace() { MoveTo(source_.size() - StripLeft(Rest()).size()); }

  // Text before a tag, as the tag's sign and lstrip_blocks leave it.
  std::string_view BeforeTag(std::string_view text, char sign, bool is_variable,
                             bool line_starting) const;
  // The end of a tag at pos_, with the white space that belongs to it; npos: no end here.
  size_t EndOfTag(std::string_view end, bool plus_allowed, bool trim_newline) const;
  absl::Status ReadDataAndTag();
  absl::Status SkipComment();
  // True when the block tag at pos_ is {% raw %}, which it then reads with its body.
  absl::StatusOr<bool> ReadRaw(size_t tag_length);
  absl::Status ReadTag(bool is_variable);
  absl::Status ReadToken();
  absl::Status ReadNumber();
  absl::Status ReadString();
  absl::Status ReadOperator();
  absl::Status AppendEscape(std::string_view body, size_t* i, std::string* out) const;

  const std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
  std::string open_brackets_;  // closing ones that are expected
};

std::string_view Lexer::BeforeTag(std::string_view text, char sign, bool is_variable,
                                  bool line_starting) const {
  if (sign == '-') return StripRight(text);
  if (sign == '+' || is_variable) return text;
  const size_t newline = text.rfind('\n');
  const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
  if (line_begin == 0 && !line_starting) return text;
  return StripLeft(text.substr(line_begin)).empty() ? text.substr(0, line_begin) : text;
}

size_t Lexer::EndOfTag(std::string_view end, bool plus_allowed, bool trim_newline) const {
  if (At(end)) {
    const size_t after = pos_ + end.size();
    return trim_newline && after < source_.size() && source_[after] == '\n' ? after + 1 : after;
  }
  if (Rest().empty() || Rest().substr(1, end.size()) != end) return std::string::npos;
  if (At("+") && plus_allowed) return pos_ + 1 + end.size();
  if (!At("-")) return std::string::npos;
  return source_.size() - StripLeft(Rest().substr(1 + end.size())).size();
}

absl::Status Lexer::ReadDataAndTag() {
  const bool line_starting = pos_ == 0 || source_[pos_ - 1] == '\n';
  size_t at = source_.find('{', pos_);
  while (at != std::string::npos &&
         (at + 1 == source_.size() ||
          (source_[at + 1] != '{' && source_[at + 1] != '%' && source_[at + 1] != '#'))) {
    at = source_.find('{', at + 1);
  }
  if (at == std::string::npos) {
    Add(TokenType::kData, std::string(Rest()));
    MoveTo(source_.size());
    return absl::OkStatus();
  }
  const char kind = source_[at + 1];
  const char sign = at + 2 < source_.size() ? source_[at + 2] : '\0';
  const std::string_view text =
      BeforeTag(Rest().substr(0, at - pos_), sign, kind == '{', line_starting);
  if (!text.empty()) Add(TokenType::kData, std::string(text));
  const size_t tag_length = sign == '-' || sign == '+' ? 3 : 2;
  MoveTo(at);
  if (kind == '%') {
    LH_ASSIGN_OR_RETURN(const bool is_raw, ReadRaw(tag_length));
    if (is_raw) return absl::OkStatus();
  }
  MoveTo(at + tag_length);
  return kind == '#' ? SkipComment() : ReadTag(kind == '{');
}

absl::Status Lexer::SkipComment() {
  const int begin_line = line_;
  for (size_t at = pos_; at < source_.size(); ++at) {
    if (source_[at] != '#' && source_[at] != '-' && source_[at] != '+') continue;
    MoveTo(at);
    const size_t end = EndOfTag("#}", /*plus_allowed=*/true, /*trim_newline=*/true);
    if (end == std::string::npos) continue;
    MoveTo(end);
    return absl::OkStatus();
  }
  return SyntaxError(begin_line, "the comment '{#' has no end '#}'");
}

absl::StatusOr<bool> Lexer::ReadRaw(size_t tag_length) {
  std::string_view rest = StripLeft(Rest().substr(tag_length));
  if (rest.substr(0, 3) != "raw") return false;
  const size_t begin_of_tag = pos_;
  const int begin_line = line_;
  rest = StripLeft(rest.substr(3));
  MoveTo(source_.size() - rest.size());
  const size_t begin = EndOfTag("%}", /*plus_allowed=*/false, /*trim_newline=*/false);
  if (begin == std::string::npos) {  // a tag whose name only begins like this
    pos_ = begin_of_tag;
    line_ = begin_line;
    return false;
  }
  const bool line_starting = source_[begin - 1] == '\n';
  MoveTo(begin);
  for (size_t at = source_.find("{%", begin); at != std::string::npos;
       at = source_.find("{%", at + 1)) {
    const char sign = at + 2 < source_.size() ? source_[at + 2] : '\0';
    const size_t name = at + (sign == '-' || sign == '+' ? 3 : 2);
    if (name > source_.size()) break;
    rest = StripLeft(std::string_view(source_).substr(name));
    if (rest.substr(0, 6) != "endraw") continue;
    const std::string_view body = std::string_view(source_).substr(begin, at - begin);
    Add(TokenType::kData, std::string(BeforeTag(body, sign, /*is_variable=*/false, line_starting)));
    MoveTo(source_.size() - StripLeft(rest.substr(6)).size());
    const size_t end = EndOfTag("%}", /*plus_allowed=*/true, /*trim_newline=*/true);
    if (end == std::string::npos) return SyntaxError(line_, "'endraw' needs '%}' after it");
    MoveTo(end);
    return true;
  }
  return SyntaxError(begin_line, "'{% raw %}' has no '{% endraw %}'");
}

absl::Status Lexer::ReadTag(bool is_variable) {
  const std::string_view end_text = is_variable ? "}}" : "%}";
  const int begin_line = line_;
  Add(is_variable ? TokenType::kVariableBegin : TokenType::kBlockBegin, "");
  open_brackets_.clear();
  for (;;) {
    SkipSpace();
    if (pos_ >= source_.size()) {
      return SyntaxError(begin_line, fmt::format("the tag has no end '{}'", end_text));
    }
    if (open_brackets_.empty()) {
      const size_t end = EndOfTag(end_text, /*plus_allowed=*/!is_variable,
                                  /*trim_newline=*/!is_variable);
      if (end != std::string::npos) {
        Add(is_variable ? TokenType::kVariableEnd : TokenType::kBlockEnd, std::string(end_text));
        MoveTo(end);
        return absl::OkStatus();
      }
    }
    LH_RETURN_IF_ERROR(ReadToken());
  }
}

absl::Status Lexer::ReadToken() {
  const char c = source_[pos_];
  if (IsDigit(c)) return ReadNumber();
  if (c == '\'' || c == '"') return ReadString();
  if (!IsNameChar(c)) return ReadOperator();
  size_t end = pos_;
  while (end < source_.size() && IsNameChar(source_[end])) ++end;
  Add(TokenType::kName, source_.substr(pos_, end - pos_));
  MoveTo(end);
  return absl::OkStatus();
}

absl::Status Lexer::ReadNumber() {
  const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
  std::string digits;
  size_t at = pos_;
  const auto read_digits = [&] {
    while (at < source_.size() &&
           (IsDigit(source_[at]) ||
            (source_[at] == '_' && at + 1 < source_.size() && IsDigit(source_[at + 1])))) {
      if (source_[at] != '_') digits.push_back(source_[at]);
      ++at;
    }
  };
  const auto digit_at = [&](size_t i) { return i < source_.size() && IsDigit(source_[i]); };
  read_digits();
  bool is_float = false;
  if (!after_dot && at < source_.size() && source_[at] == '.' && digit_at(at + 1)) {
    is_float = true;
    digits.push_back('.');
    ++at;
    read_digits();
  }
  if (!after_dot && at < source_.size() && (source_[at] == 'e' || source_[at] == 'E')) {
    const bool has_sign =
        at + 1 < source_.size() && (source_[at + 1] == '+' || source_[at + 1] == '-');
    if (digit_at(at + 1 + has_sign)) {
      is_float = true;
      digits.push_back('e');
      if (has_sign) digits.push_back(source_[at + 1]);
      at += 1 + has_sign;
      read_digits();
    }
  }
  if (at < source_.size() && IsNameChar(source_[at])) {
    return SyntaxError(line_, fmt::format("'{}' is not a number that templates may use",
                                          source_.substr(pos_, at + 1 - pos_)));
  }
  Add(is_float ? TokenType::kFloat : TokenType::kInteger, digits);
  Token& token = tokens_.back();
  const char* end = digits.data() + digits.size();
  const auto parsed = is_float ? std::from_chars(digits.data(), end, token.number)
                               : std::from_chars(digits.data(), end, token.integer);
  if (parsed.ec != std::errc() || (!is_float && digits.size() > 1 && digits[0] == '0')) {
    return SyntaxError(line_, fmt::format("the number {} is out of range", digits));
  }
  MoveTo(at);
  return absl::OkStatus();
}

absl::Status Lexer::AppendEscape(std::string_view body, size_t* i, std::string* out) const {
  const char c = body[*i];
  constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
  if (const size_t at = kNames.find(c); at != std::string_view::npos) {
    out->push_back(kValues[at]);
    return absl::OkStatus();
  }
  if (c == '\n') return absl::OkStatus();  // the line goes on
  const bool is_octal = c >= '0' && c <= '7';
  const size_t max_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 3;
  if (c == 'N') return SyntaxError(line_, "the escape \\N{...} is not supported; use \\u");
  if (c != 'x' && c != 'u' && c != 'U' && !is_octal) {  // Python keeps what it does not know
    out->push_back('\\');
    out->push_back(c);
    return absl::OkStatus();
  }
  const char* begin = body.data() + *i + (is_octal ? 0 : 1);
  const char* limit = std::min(begin + max_digits, body.data() + body.size());
  uint32_t code_point = 0;
  const auto parsed = std::from_chars(begin, limit, code_point, is_octal ? 8 : 16);
  const size_t n_digits = static_cast<size_t>(parsed.ptr - begin);
  if (n_digits == 0 || (!is_octal && n_digits != max_digits) || code_point > 0x10FFFF ||
      (code_point >= 0xD800 && code_point < 0xE000)) {
    return SyntaxError(line_, fmt::format("the escape \\{} of a string is not a character", c));
  }
  AppendUtf8(code_point, out);
  *i += n_digits - (is_octal ? 1 : 0);
  return absl::OkStatus();
}

absl::Status Lexer::ReadString() {
  const char quote = source_[pos_];
  size_t end = pos_ + 1;
  while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
  if (end >= source_.size()) {
    return SyntaxError(line_, fmt::format("the string has no end {}", quote));
  }
  const std::string_view body = std::string_view(source_).substr(pos_ + 1, end - pos_ - 1);
  std::string text;
  text.reserve(body.size());
  for (size_t i = 0; i < body.size(); ++i) {
    if (body[i] != '\\') {
      text.push_back(body[i]);
      continue;
    }
    ++i;
    LH_RETURN_IF_ERROR(AppendEscape(body, &i, &text));
  }
  Add(TokenType::kString, std::move(text));
  MoveTo(end + 1);
  return absl::OkStatus();
}

absl::Status Lexer::ReadOperator() {
  std::string_view text = Rest().substr(0, 2);
  if (std::find(kTwoCharOperators.begin(), kTwoCharOperators.end(), text) ==
      kTwoCharOperators.end()) {
    text = text.substr(0, 1);
  }
  const char c = text[0];
  if (text.size() == 1 && kOneCharOperators.find(c) == std::string_view::npos) {
    return SyntaxError(line_, fmt::format("unexpected character '{}' in a tag", c));
  }
  if (c == '(' || c == '[' || c == '{')
    open_brackets_.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
  if (c == ')' || c == ']' || c == '}') {
    if (open_brackets_.empty() || open_brackets_.back() != c) {
      return SyntaxError(line_, fmt::format("unexpected '{}'", c));
    }
    open_brackets_.pop_back();
  }
  Add(TokenType::kOperator, std::string(text));
  MoveTo(pos_ + text.size());
  return absl::OkStatus();
}

}  // namespace

absl::Status SyntaxError(int line, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("line {}: {}", line, what));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace longhaul::jinja
