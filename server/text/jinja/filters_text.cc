// Filters on texts. As in jinja2, most of them take any value and look at its text.

#include <fmt/format.h>

#include <algorithm>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"

namespace longhaul::jinja {
namespace {

// The value itself if it is a text, else its text.
absl::StatusOr<Value> AsText(Interpreter& interpreter, const Value& value) {
  if (value.is_string()) return value;
  LH_ASSIGN_OR_RETURN(std::string text, interpreter.Str(value));
  return Value::String(std::move(text));
}

// For the few filters that take nothing else.
absl::Status RequireText(std::string_view filter, const Value& value) {
  if (value.is_string()) return absl::OkStatus();
  if (value.is_undefined()) return absl::InvalidArgumentError(value.undefined_hint());
  return absl::InvalidArgumentError(
      fmt::format("'{}' needs a text, got {}", filter, value.type_name()));
}

template <std::string (*Function)(std::string_view)>
absl::StatusOr<Value> Mapped(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.text().size()));
  return Value::String(Function(text.text()));
}

absl::StatusOr<Value> ToString(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  return AsText(interpreter, value);
}

absl::StatusOr<Value> Trim(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  std::string_view view = text.text();
  if (const Value* chars = args.Get(0); chars != nullptr && !chars->is_none()) {
    LH_ASSIGN_OR_RETURN(const std::string set, interpreter.Str(*chars));
    view = StripCharsLeft(StripCharsRight(view, set), set);
  } else {
    view = Strip(view);
  }
  if (view.size() == text.text().size()) return text;
  LH_RETURN_IF_ERROR(interpreter.ChargeText(view.size()));
  return Value::String(std::string(view));
}

absl::StatusOr<Value> ReplaceFilter(Interpreter& interpreter, const Value& value,
                                    const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  LH_ASSIGN_OR_RETURN(const Value from, AsText(interpreter, *args.Get(0)));
  LH_ASSIGN_OR_RETURN(const Value to, AsText(interpreter, *args.Get(1)));
  const bool has_count = args.Get(2) != nullptr && !args.Get(2)->is_none();
  int64_t count = -1;
  if (has_count) {
    LH_ASSIGN_OR_RETURN(count, IntArg(args, 2, -1));
  }
  return ReplaceText(interpreter, text, from.text(), to.text(), count);
}

absl::StatusOr<Value> Length(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  if (value.is_undefined()) return Value::Int(0);
  if (value.is_string()) {
    LH_RETURN_IF_ERROR(interpreter.ChargeText(value.text().size()));
    return Value::Int(CountChars(value.text()));
  }
  if (value.is_dict()) return Value::Int(static_cast<int64_t>(value.dict().size()));
  if (value.is_sequence() && !value.is(SequenceKind::kIterator)) {
    return Value::Int(static_cast<int64_t>(value.sequence().items.size()));
  }
  return absl::InvalidArgumentError(fmt::format("a {} has no length", value.type_name()));
}

absl::StatusOr<Value> Join(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string separator, TextArg(interpreter, args, 0, ""));
  Value items = value;
  if (const Value* attribute = args.Get(1); attribute != nullptr && !attribute->is_none()) {
    LH_ASSIGN_OR_RETURN(items, MapAttribute(interpreter, value, *attribute, nullptr));
  }
  return JoinText(interpreter, separator, items, /*convert=*/true);
}

absl::StatusOr<Value> Indent(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_RETURN_IF_ERROR(RequireText("indent", value));
  std::string indent;
  if (args.Get(0) != nullptr && args.Get(0)->is_string()) {
    indent = args.Get(0)->text();
  } else {
    LH_ASSIGN_OR_RETURN(const int64_t width, IntArg(args, 0, 4));
    if (width > 1000) return absl::InvalidArgumentError("'indent' needs a width up to 1000");
    indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const bool first = args.Truthy(1), blank = args.Truthy(2);
  const std::string source = value.text() + "\n";
  const std::vector<std::string_view> lines = SplitLines(source, /*keep_ends=*/false);
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(lines.size())));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(source.size() + lines.size() * indent.size()));
  std::string result = first ? indent : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      result += '\n';
      if (blank || !lines[i].empty()) result += indent;
    }
    result += lines[i];
  }
  return Value::String(std::move(result));
}

absl::StatusOr<Value> Escape(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.text().size() * 5));
  std::string result;
  for (const char c : text.text()) {
    const std::string_view escaped = c == '&'    ? "&amp;"
                                     : c == '<'  ? "&lt;"
                                     : c == '>'  ? "&gt;"
                                     : c == '\'' ? "&#39;"
                                     : c == '"'  ? "&#34;"
                                                 : std::string_view(&c, 1);
    result += escaped;
  }
  return Value::String(std::move(result));
}

absl::StatusOr<Value> WordCount(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(text.text().size())));
  return Value::Int(CountWords(text.text()));
}

absl::StatusOr<Value> Center(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  LH_ASSIGN_OR_RETURN(const int64_t width, IntArg(args, 0, 80));
  const int64_t missing = width - CountChars(text.text());
  if (missing <= 0) return text;
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.text().size() + static_cast<size_t>(missing)));
  // As CPython: the odd space goes left when the width is odd, too.
  const int64_t left = missing / 2 + (missing & width & 1);
  return Value::String(std::string(static_cast<size_t>(left), ' ') + text.text() +
                       std::string(static_cast<size_t>(missing - left), ' '));
}

absl::StatusOr<Value> Truncate(Interpreter& interpreter, const Value& value,
                               const BoundArgs& args) {
  LH_RETURN_IF_ERROR(RequireText("truncate", value));
  const Value& text = value;
  LH_ASSIGN_OR_RETURN(const int64_t length, IntArg(args, 0, 255));
  LH_ASSIGN_OR_RETURN(const std::string end, TextArg(interpreter, args, 2, "..."));
  LH_ASSIGN_OR_RETURN(const int64_t leeway, IntArg(args, 3, 5));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.text().size()));
  const int64_t n_end = CountChars(end);
  if (length < n_end || leeway < 0) {
    return absl::InvalidArgumentError("'truncate' needs a length of at least its end mark");
  }
  if (CountChars(text.text()) <= length || CountChars(text.text()) - length <= leeway) return text;
  std::string kept = SliceChars(text.text(), 0, length - n_end, 1);
  if (!args.Truthy(1)) kept = kept.substr(0, kept.rfind(' '));
  return Value::String(kept + end);
}

absl::StatusOr<Value> Format(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, value));
  const Args& given = args.rest();
  if (given.named.empty()) {
    return FormatPercent(interpreter, text.text(),
                         Value::Make(SequenceKind::kTuple, given.positional));
  }
  if (!given.positional.empty()) {
    return absl::InvalidArgumentError("'format' takes arguments with names or without, not both");
  }
  Dict dict;
  for (const auto& [name, item] : given.named) dict.Set(name, item);
  return FormatPercent(interpreter, text.text(), Value::Of(std::move(dict)));
}

}  // namespace

absl::StatusOr<Value> ReplaceText(Interpreter& interpreter, const Value& text,
                                  const std::string& from, const std::string& to, int64_t count) {
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.text().size()));
  int64_t n = CountOccurrences(text.text(), from);
  if (count >= 0) n = std::min(n, count);
  if (n == 0) return text;
  LH_RETURN_IF_ERROR(interpreter.Charge(n));
  const size_t n_bytes = text.text().size() - static_cast<size_t>(n) * from.size();
  LH_RETURN_IF_ERROR(interpreter.ChargeText(n_bytes + static_cast<size_t>(n) * to.size()));
  return Value::String(Replace(text.text(), from, to, count));
}

absl::StatusOr<Value> JoinText(Interpreter& interpreter, const std::string& separator,
                               const Value& items, bool convert) {
  LH_ASSIGN_OR_RETURN(const Value sequence, interpreter.ToSequence(items));
  std::string result;
  bool first = true;
  for (const Value& item : sequence.sequence().items) {
    if (!convert && !item.is_string()) {
      return absl::InvalidArgumentError(
          fmt::format("'join' needs texts, got {}; the filter join converts", item.type_name()));
    }
    LH_ASSIGN_OR_RETURN(const Value text, AsText(interpreter, item));
    LH_RETURN_IF_ERROR(
        interpreter.Charge(1 + static_cast<int64_t>((separator.size() + text.text().size()) / 64)));
    if (!first) result += separator;
    first = false;
    result += text.text();
    LH_RETURN_IF_ERROR(interpreter.CheckLength(result.size()));
  }
  return Value::String(std::move(result));
}

const std::vector<Filter>& TextFilters() {
  static const std::vector<Filter> table = {
      {"trim", "| chars", Trim},
      {"replace", "old new | count", ReplaceFilter},
      {"upper", "", Mapped<ToUpper>},
      {"lower", "", Mapped<ToLower>},
      {"capitalize", "", Mapped<Capitalize>},
      {"title", "", Mapped<TitleWords>},
      {"string", "", ToString},
      {"safe", "", ToString},
      {"length", "", Length},
      {"count", "", Length},
      {"join", "| d attribute", Join},
      {"indent", "| width first blank", Indent},
      {"escape", "", Escape},
      {"e", "", Escape},
      {"forceescape", "", Escape},
      {"wordcount", "", WordCount},
      {"center", "| width", Center},
      {"truncate", "| length killwords end leeway", Truncate},
      {"format", "*", Format},
  };
  return table;
}

}  // namespace longhaul::jinja
