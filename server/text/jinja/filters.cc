// Binding of arguments, the merged table, and filters on any value.

#include "server/text/jinja/filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"
#include "server/text/jinja/to_text.h"

namespace longhaul::jinja {
namespace {

using Table = absl::flat_hash_map<std::string, const Filter*>;

Table MakeTable() {
  Table table;
  for (const auto* part : {&TextFilters(), &ListFilters(), &ValueFilters()}) {
    for (const Filter& filter : *part) table[std::string(filter.name)] = &filter;
  }
  return table;
}

absl::StatusOr<Value> Default(Interpreter&, const Value& value, const BoundArgs& args) {
  if (!value.is_undefined() && (!args.Truthy(1) || value.Truthy())) return value;
  return args.Get(0) != nullptr ? *args.Get(0) : Value::String("");
}

// Python's int(text): white space around, a sign, digits with single underscores between them.
std::optional<int64_t> ParseInt(std::string_view text, int base) {
  text = Strip(text);
  std::string digits;
  bool negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  const char lower = text.size() > 1 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : '\0';
  if ((base == 16 && lower == 'x') || (base == 8 && lower == 'o') || (base == 2 && lower == 'b')) {
    text.remove_prefix(2);
  }
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      digits.push_back(text[i]);
    } else if (i == 0 || i + 1 == text.size() || text[i + 1] == '_') {
      return std::nullopt;
    }
  }
  if (negative) digits.insert(digits.begin(), '-');
  int64_t number = 0;
  const char* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, number, base);
  if (parsed.ec != std::errc() || parsed.ptr != end || text.empty() || text[0] == '-') {
    return std::nullopt;
  }
  return number;
}

std::optional<double> ParseFloat(std::string_view text) {
  text = Strip(text);
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  double number = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  if (text.empty() || parsed.ptr != end) return std::nullopt;
  return parsed.ec == std::errc() ? std::optional(number) : std::nullopt;
}

absl::StatusOr<Value> ToInt(Interpreter&, const Value& value, const BoundArgs& args) {
  if (value.is_undefined()) return absl::InvalidArgumentError(value.undefined_hint());
  const Value otherwise = args.Get(0) != nullptr ? *args.Get(0) : Value::Int(0);
  LH_ASSIGN_OR_RETURN(const int64_t base, IntArg(args, 1, 10));
  if (base < 2 || base > 36) return absl::InvalidArgumentError("'int' needs a base from 2 to 36");
  if (value.is_int() || value.is_bool()) return Value::Int(value.int_value());
  std::optional<double> number;
  if (value.is_string()) {
    if (const auto integer = ParseInt(value.text(), static_cast<int>(base))) {
      return Value::Int(*integer);
    }
    number = ParseFloat(value.text());
  } else if (value.is_float()) {
    number = value.float_value();
  }
  if (!number || !(std::abs(*number) < 0x1p63)) return otherwise;
  return Value::Int(static_cast<int64_t>(*number));
}

absl::StatusOr<Value> ToFloat(Interpreter&, const Value& value, const BoundArgs& args) {
  if (value.is_undefined()) return absl::InvalidArgumentError(value.undefined_hint());
  if (value.is_number()) return Value::Float(value.number());
  if (value.is_string()) {
    if (const auto number = ParseFloat(value.text())) return Value::Float(*number);
  }
  return args.Get(0) != nullptr ? *args.Get(0) : Value::Float(0);
}

absl::Status NeedsNumber(std::string_view filter, const Value& value) {
  if (value.is_undefined()) return absl::InvalidArgumentError(value.undefined_hint());
  return absl::InvalidArgumentError(
      fmt::format("'{}' needs a number, got {}", filter, value.type_name()));
}

absl::StatusOr<Value> Abs(Interpreter&, const Value& value, const BoundArgs&) {
  if (!value.is_number()) return NeedsNumber("abs", value);
  if (value.is_float()) return Value::Float(std::abs(value.float_value()));
  return value.int_value() < 0 ? ApplyUnary(UnaryOp::kNegate, value)
                               : Value::Int(value.int_value());
}

absl::StatusOr<Value> Round(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  if (!value.is_number()) return NeedsNumber("round", value);
  LH_ASSIGN_OR_RETURN(const int64_t digits, IntArg(args, 0, 0));
  LH_ASSIGN_OR_RETURN(const std::string method, TextArg(interpreter, args, 1, "common"));
  if (digits < -300 || digits > 300) {
    return absl::InvalidArgumentError("'round' needs a precision from -300 to 300");
  }
  const double number = value.number();
  const double scale = std::pow(10.0, static_cast<double>(digits));
  if (method == "ceil") return Value::Float(std::ceil(number * scale) / scale);
  if (method == "floor") return Value::Float(std::floor(number * scale) / scale);
  if (method != "common") {
    return absl::InvalidArgumentError("'round' knows the methods common, ceil and floor");
  }
  if (!value.is_float() && digits >= 0) return Value::Int(value.int_value());
  if (digits < 0) {
    const double rounded = std::nearbyint(number * scale) / scale;
    return value.is_float() ? Value::Float(rounded) : Value::Int(static_cast<int64_t>(rounded));
  }
  if (digits > 17 || !std::isfinite(number)) return Value::Float(number);
  // The decimal text rounds the exact value, half to even, as Python does.
  const std::string text = fmt::format("{:.{}f}", number, digits);
  double rounded = 0;
  std::from_chars(text.data(), text.data() + text.size(), rounded);
  return Value::Float(rounded);
}

absl::StatusOr<Value> ToJson(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  JsonStyle style;
  style.ensure_ascii = args.Truthy(0);
  if (const Value* indent = args.Get(1); indent != nullptr && !indent->is_none()) {
    style.has_indent = true;
    style.item_separator = ",";
    if (indent->is_string()) {
      style.indent = indent->text();
    } else {
      LH_ASSIGN_OR_RETURN(const int64_t width, IntArg(args, 1, 0));
      if (width > 64) return absl::InvalidArgumentError("'tojson' needs an indent up to 64");
      style.indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
  }
  if (const Value* separators = args.Get(2); separators != nullptr && !separators->is_none()) {
    LH_ASSIGN_OR_RETURN(const Value pair, interpreter.ToSequence(*separators));
    const std::vector<Value>& items = pair.sequence().items;
    if (items.size() != 2 || !items[0].is_string() || !items[1].is_string()) {
      return absl::InvalidArgumentError("'tojson' needs two texts as separators");
    }
    style.item_separator = items[0].text();
    style.key_separator = items[1].text();
  }
  style.sort_keys = args.Truthy(3);
  LH_RETURN_IF_ERROR(interpreter.Charge(value.weight()));
  std::string text;
  LH_RETURN_IF_ERROR(AppendJson(value, style, interpreter.limits().max_output_bytes, &text));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.size()));
  return Value::String(std::move(text));
}

absl::StatusOr<Value> GetAttr(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string name, TextArg(interpreter, args, 0, ""));
  if (value.is_dict()) {  // the filter looks at attributes only
    if (FindMethod(value, name) == nullptr) {
      return Value::Undefined(fmt::format("'dict object' has no attribute '{}'", name));
    }
  }
  return interpreter.GetAttribute(value, name);
}

}  // namespace

const std::vector<Filter>& ValueFilters() {
  static const std::vector<Filter> table = {
      {"default", "| default_value boolean", Default},
      {"d", "| default_value boolean", Default},
      {"int", "| default base", ToInt},
      {"float", "| default", ToFloat},
      {"abs", "", Abs},
      {"round", "| precision method", Round},
      {"tojson", "| ensure_ascii indent separators sort_keys", ToJson},
      {"attr", "name", GetAttr},
  };
  return table;
}

const Filter* FindFilter(std::string_view name) {
  static const Table table = MakeTable();
  const auto it = table.find(std::string(name));
  return it == table.end() ? nullptr : it->second;
}

absl::StatusOr<BoundArgs> Bind(std::string_view function, std::string_view signature,
                               const Args& args) {
  BoundArgs bound;
  bound.args_ = &args;
  size_t n_used_by_name = 0;
  bool optional = false, takes_rest = false;
  for (const std::string_view name : SplitSpace(signature, -1)) {
    if (name == "|") {
      optional = true;
      continue;
    }
    if (name == "*") {
      takes_rest = true;
      continue;
    }
    const size_t i = bound.slots_.size();
    const Value* slot = i < args.positional.size() ? &args.positional[i] : nullptr;
    for (const auto& [given, value] : args.named) {
      if (given != name) continue;
      if (slot != nullptr) {
        return absl::InvalidArgumentError(
            fmt::format("'{}' gets its argument '{}' twice", function, name));
      }
      slot = &value;
      ++n_used_by_name;
    }
    if (slot == nullptr && !optional) {
      return absl::InvalidArgumentError(
          fmt::format("'{}' needs the argument '{}'", function, name));
    }
    bound.slots_.push_back(slot);
  }
  if (takes_rest) return bound;
  if (args.positional.size() > bound.slots_.size()) {
    return absl::InvalidArgumentError(
        fmt::format("'{}' takes not more than {} arguments", function, bound.slots_.size()));
  }
  if (n_used_by_name < args.named.size()) {
    for (const auto& [given, value] : args.named) {
      const std::vector<std::string_view> names = SplitSpace(signature, -1);
      if (std::find(names.begin(), names.end(), given) == names.end()) {
        return absl::InvalidArgumentError(
            fmt::format("'{}' has no argument '{}'", function, given));
      }
    }
  }
  return bound;
}

absl::StatusOr<int64_t> IntArg(const BoundArgs& args, size_t i, int64_t otherwise) {
  const Value* value = args.Get(i);
  if (value == nullptr) return otherwise;
  if (!value->is_int() && !value->is_bool()) {
    return absl::InvalidArgumentError(
        fmt::format("an argument must be an integer, got {}", value->type_name()));
  }
  return value->int_value();
}

absl::StatusOr<std::string> TextArg(Interpreter& interpreter, const BoundArgs& args, size_t i,
                                    std::string_view otherwise) {
  const Value* value = args.Get(i);
  if (value == nullptr) return std::string(otherwise);
  return interpreter.Str(*value);
}

}  // namespace longhaul::jinja
