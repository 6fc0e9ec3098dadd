// Python's two ways to put values into a text: "%s" % x and "{}".format(x).

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"
#include "server/text/jinja/to_text.h"

namespace longhaul::jinja {
namespace {

constexpr int kMaxWidth = 1000;

// %-08.3f
struct Conversion {
  bool left = false, zero = false, plus = false, space = false;
  int width = 0, precision = -1;
  char type = '\0';
};

absl::StatusOr<int> ReadNumber(std::string_view format, size_t* i) {
  int number = 0;
  const auto parsed = std::from_chars(format.data() + *i, format.data() + format.size(), number);
  *i = static_cast<size_t>(parsed.ptr - format.data());
  if (parsed.ec == std::errc::result_out_of_range || number > kMaxWidth) {
    return absl::InvalidArgumentError(
        fmt::format("a format asks for more than {} characters", kMaxWidth));
  }
  return number;
}

absl::StatusOr<Conversion> ReadConversion(std::string_view format, size_t* i) {
  Conversion conversion;
  for (; *i < format.size(); ++*i) {
    const char c = format[*i];
    if (c == '-') {
      conversion.left = true;
    } else if (c == '0') {
      conversion.zero = true;
    } else if (c == '+') {
      conversion.plus = true;
    } else if (c == ' ') {
      conversion.space = true;
    } else {
      break;
    }
  }
  LH_ASSIGN_OR_RETURN(conversion.width, ReadNumber(format, i));
  if (*i < format.size() && format[*i] == '.') {
    ++*i;
    LH_ASSIGN_OR_RETURN(conversion.precision, ReadNumber(format, i));
  }
  if (*i >= format.size()) return absl::InvalidArgumentError("a format ends inside of '%'");
  conversion.type = format[(*i)++];
  return conversion;
}

std::string Pad(const Conversion& conversion, std::string text, bool is_number) {
  const int64_t missing = conversion.width - CountChars(text);
  if (missing <= 0) return text;
  const size_t n = static_cast<size_t>(missing);
  if (conversion.left) return text + std::string(n, ' ');
  if (!conversion.zero || !is_number) return std::string(n, ' ') + text;
  const size_t sign = text[0] == '-' || text[0] == '+' || text[0] == ' ' ? 1 : 0;
  return text.insert(sign, n, '0');
}

std::string Signed(const Conversion& conversion, bool negative, std::string digits) {
  const char* sign = negative ? "-" : conversion.plus ? "+" : conversion.space ? " " : "";
  return sign + digits;
}

absl::StatusOr<std::string> ConvertNumber(const Conversion& conversion, const Value& value) {
  if (!value.is_number()) {
    return absl::InvalidArgumentError(
        fmt::format("'%{}' needs a number, got {}", conversion.type, value.type_name()));
  }
  const char type = conversion.type;
  const double number = value.number();
  if (type == 'f' || type == 'F' || type == 'e' || type == 'g') {
    const int precision = conversion.precision < 0 ? 6 : conversion.precision;
    const double size = std::abs(number);
    std::string digits = type == 'e'   ? fmt::format("{:.{}e}", size, precision)
                         : type == 'g' ? fmt::format("{:.{}g}", size, precision)
                                       : fmt::format("{:.{}f}", size, precision);
    return Pad(conversion, Signed(conversion, std::signbit(number), std::move(digits)),
               std::isfinite(number));
  }
  if (value.is_float() && (type == 'x' || type == 'X' || !(std::abs(number) < 0x1p63))) {
    return absl::InvalidArgumentError(fmt::format("'%{}' needs an integer", type));
  }
  const int64_t integer = value.is_float() ? static_cast<int64_t>(number) : value.int_value();
  const uint64_t size =
      integer < 0 ? 0 - static_cast<uint64_t>(integer) : static_cast<uint64_t>(integer);
  std::string digits = type == 'x'   ? fmt::format("{:x}", size)
                       : type == 'X' ? fmt::format("{:X}", size)
                                     : fmt::format("{}", size);
  if (static_cast<int>(digits.size()) < conversion.precision) {
    digits.insert(0, static_cast<size_t>(conversion.precision) - digits.size(), '0');
  }
  return Pad(conversion, Signed(conversion, integer < 0, std::move(digits)), true);
}

absl::StatusOr<std::string> Convert(Interpreter& interpreter, const Conversion& conversion,
                                    const Value& value) {
  constexpr std::string_view kNumbers = "dixXfFeg";
  if (kNumbers.find(conversion.type) != std::string_view::npos) {
    return ConvertNumber(conversion, value);
  }
  if (conversion.type != 's' && conversion.type != 'r') {
    return absl::InvalidArgumentError(
        fmt::format("the format '%{}' is not supported", conversion.type));
  }
  std::string text;
  if (conversion.type == 'r' && value.is_string()) {
    LH_RETURN_IF_ERROR(interpreter.ChargeText(value.text().size()));
    AppendRepr(value.text(), &text);
  } else {
    LH_ASSIGN_OR_RETURN(text, interpreter.Str(value));
  }
  if (conversion.precision >= 0) text = SliceChars(text, 0, conversion.precision, 1);
  return Pad(conversion, std::move(text), false);
}

}  // namespace

absl::StatusOr<Value> FormatPercent(Interpreter& interpreter, const std::string& format,
                                    const Value& values) {
  // One value stands for itself, a tuple for its items, a dict for "%(name)s".
  std::vector<Value> items = {values};
  if (values.is(SequenceKind::kTuple)) items = values.sequence().items;
  size_t n_used = 0;
  std::string result;
  for (size_t i = 0; i < format.size();) {
    const size_t percent = std::min(format.find('%', i), format.size());
    result.append(format, i, percent - i);
    if (percent == format.size()) break;
    i = percent + 1;
    Value value;
    bool has_value = false;
    if (i < format.size() && format[i] == '(') {
      const size_t end = format.find(')', i);
      const Value* found = nullptr;
      if (values.is_dict() && end != std::string::npos) {
        found = values.dict().Find(std::string_view(format).substr(i + 1, end - i - 1));
      }
      if (found == nullptr)
        return absl::InvalidArgumentError("a format names a key that is not there");
      value = *found;
      has_value = true;
      i = end + 1;
    }
    LH_ASSIGN_OR_RETURN(const Conversion conversion, ReadConversion(format, &i));
    if (conversion.type == '%') {
      result.push_back('%');
      continue;
    }
    if (!has_value) {
      if (n_used == items.size()) return absl::InvalidArgumentError("too few values for a format");
      value = items[n_used++];
    }
    LH_ASSIGN_OR_RETURN(const std::string text, Convert(interpreter, conversion, value));
    LH_RETURN_IF_ERROR(interpreter.CheckLength(result.size() + text.size()));
    result += text;
  }
  // What may be looked into by a key need not be used; Python takes lists for that, too.
  const bool is_scalar = values.is_string() || values.is_number() || values.is_none();
  if (n_used < items.size() && (values.is(SequenceKind::kTuple) || is_scalar)) {
    return absl::InvalidArgumentError("too many values for a format");
  }
  return Value::String(std::move(result));
}

absl::StatusOr<Value> FormatBraces(Interpreter& interpreter, const std::string& format,
                                   const Args& args) {
  std::string result;
  size_t n_automatic = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    const bool is_double = i + 1 < format.size() && format[i + 1] == c;
    if ((c != '{' && c != '}') || is_double) {
      result.push_back(c);
      if (c == '{' || c == '}') ++i;
      continue;
    }
    const size_t end = format.find('}', i);
    if (c == '}' || end == std::string::npos) {
      return absl::InvalidArgumentError("a format has a single brace");
    }
    const std::string_view field = std::string_view(format).substr(i + 1, end - i - 1);
    i = end;
    size_t index = 0;
    const auto parsed = std::from_chars(field.data(), field.data() + field.size(), index);
    const bool is_index =
        !field.empty() && parsed.ptr == field.data() + field.size() && parsed.ec == std::errc();
    if (field.empty()) index = n_automatic++;
    const Value* value = nullptr;
    if (field.empty() || is_index) {
      if (index < args.positional.size()) value = &args.positional[index];
    } else {
      for (const auto& [name, given] : args.named) {
        if (name == field) value = &given;
      }
    }
    if (value == nullptr) {
      return absl::InvalidArgumentError(
          fmt::format("the format '{{{}}}' has no value, or a form that is not supported", field));
    }
    LH_ASSIGN_OR_RETURN(const std::string text, interpreter.Str(*value));
    LH_RETURN_IF_ERROR(interpreter.CheckLength(result.size() + text.size()));
    result += text;
  }
  return Value::String(std::move(result));
}

}  // namespace longhaul::jinja
