// Methods of texts, lists and dicts. What would change a list or dict is missing on purpose: the
// sandbox of transformers forbids it.

#include <fmt/format.h>

#include <algorithm>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"

namespace longhaul::jinja {
namespace {

using Result = absl::StatusOr<Value>;

absl::StatusOr<std::string_view> RequiredText(const BoundArgs& args, size_t i) {
  if (args.Get(i)->is_string()) return std::string_view(args.Get(i)->text());
  return absl::InvalidArgumentError(
      fmt::format("a method of a text needs a text, got {}", args.Get(i)->type_name()));
}

absl::StatusOr<Value> Texts(Interpreter& interpreter, const std::vector<std::string_view>& parts) {
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(parts.size())));
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(Value::String(std::string(part)));
  return Value::List(std::move(items));
}

template <bool kLeft, bool kRight>
Result StripMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  std::string_view text = self.text();
  if (args.Get(0) != nullptr && !args.Get(0)->is_none()) {
    LH_ASSIGN_OR_RETURN(const std::string_view chars, RequiredText(args, 0));
    LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(chars.size())));
    if (kLeft) text = StripCharsLeft(text, chars);
    if (kRight) text = StripCharsRight(text, chars);
  } else {
    if (kLeft) text = StripLeft(text);
    if (kRight) text = StripRight(text);
  }
  if (text.size() == self.text().size()) return self;
  LH_RETURN_IF_ERROR(interpreter.ChargeText(text.size()));
  return Value::String(std::string(text));
}

template <std::string (*Function)(std::string_view)>
Result Mapped(Interpreter& interpreter, const Value& self, const BoundArgs&) {
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  return Value::String(Function(self.text()));
}

template <bool kFromRight>
Result SplitMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const int64_t max_splits, IntArg(args, 1, -1));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  if (args.Get(0) == nullptr || args.Get(0)->is_none()) {
    // Every other byte may end a part.
    LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(self.text().size() / 2)));
    return Texts(interpreter, kFromRight ? SplitSpaceRight(self.text(), max_splits)
                                         : SplitSpace(self.text(), max_splits));
  }
  LH_ASSIGN_OR_RETURN(const std::string_view separator, RequiredText(args, 0));
  if (separator.empty()) return absl::InvalidArgumentError("'split' needs a separator");
  return Texts(interpreter, kFromRight ? SplitRight(self.text(), separator, max_splits)
                                       : Split(self.text(), separator, max_splits));
}

Result SplitLinesMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  return Texts(interpreter, SplitLines(self.text(), args.Truthy(0)));
}

// str.partition and str.rpartition: before, separator, after.
template <bool kFromRight>
Result Partition(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string_view separator, RequiredText(args, 0));
  if (separator.empty()) return absl::InvalidArgumentError("'partition' needs a separator");
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  const std::string_view text = self.text();
  const size_t at = kFromRight ? text.rfind(separator) : text.find(separator);
  std::vector<std::string_view> parts = {text, "", ""};
  if (at != std::string_view::npos) {
    parts = {text.substr(0, at), separator, text.substr(at + separator.size())};
  } else if (kFromRight) {
    std::reverse(parts.begin(), parts.end());
  }
  LH_ASSIGN_OR_RETURN(const Value list, Texts(interpreter, parts));
  return Value::Make(SequenceKind::kTuple, list.sequence().items);
}

template <bool kStart>
bool HasAffix(std::string_view text, std::string_view affix) {
  if (affix.size() > text.size()) return false;
  return (kStart ? text.substr(0, affix.size()) : text.substr(text.size() - affix.size())) == affix;
}

// With one text or a tuple of texts.
template <bool kStart>
Result HasAffixMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  std::string_view text = self.text();
  if (args.Get(1) != nullptr || args.Get(2) != nullptr) {
    return absl::InvalidArgumentError("startswith and endswith take no position here; cut first");
  }
  if (!args.Get(0)->is(SequenceKind::kTuple)) {
    LH_ASSIGN_OR_RETURN(const std::string_view affix, RequiredText(args, 0));
    return Value::Bool(HasAffix<kStart>(text, affix));
  }
  for (const Value& affix : args.Get(0)->sequence().items) {
    LH_RETURN_IF_ERROR(interpreter.Charge(affix.weight()));
    if (!affix.is_string()) return absl::InvalidArgumentError("an affix must be a text");
    if (HasAffix<kStart>(text, affix.text())) return Value::Bool(true);
  }
  return Value::Bool(false);
}

template <bool kStart>
Result RemoveAffix(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string_view affix, RequiredText(args, 0));
  if (affix.empty() || !HasAffix<kStart>(self.text(), affix)) return self;
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  const size_t n = self.text().size() - affix.size();
  return Value::String(self.text().substr(kStart ? affix.size() : 0, n));
}

Result ReplaceMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string_view from, RequiredText(args, 0));
  LH_ASSIGN_OR_RETURN(const std::string_view to, RequiredText(args, 1));
  LH_ASSIGN_OR_RETURN(const int64_t count, IntArg(args, 2, -1));
  return ReplaceText(interpreter, self, std::string(from), std::string(to), count);
}

// str.find, rfind (-1 when absent) and index (an error then).
template <bool kFromRight, bool kMustBeThere>
Result FindText(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string_view what, RequiredText(args, 0));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  const std::string_view text = self.text();
  const size_t at = kFromRight ? text.rfind(what) : text.find(what);
  if (at != std::string_view::npos) return Value::Int(CountChars(text.substr(0, at)));
  if (kMustBeThere) return absl::InvalidArgumentError("'index' found no such text");
  return Value::Int(-1);
}

Result CountText(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const std::string_view what, RequiredText(args, 0));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  return Value::Int(CountOccurrences(self.text(), what));
}

Result JoinMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  return JoinText(interpreter, self.text(), *args.Get(0), /*convert=*/false);
}

Result FormatMethod(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  return FormatBraces(interpreter, self.text(), args.rest());
}

template <CharTest kTest>
Result TestMethod(Interpreter& interpreter, const Value& self, const BoundArgs&) {
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(self.text().size())));
  return Value::Bool(TestChars(self.text(), kTest));
}

// str.ljust, rjust and zfill.
enum class Side : uint8_t { kLeft, kRight, kZeros };
template <Side kSide>
Result Justify(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const int64_t width, IntArg(args, 0, 0));
  std::string_view fill = kSide == Side::kZeros ? "0" : " ";
  if (kSide != Side::kZeros && args.Get(1) != nullptr) {
    LH_ASSIGN_OR_RETURN(fill, RequiredText(args, 1));
    if (CountChars(fill) != 1) return absl::InvalidArgumentError("the fill must be one character");
  }
  LH_RETURN_IF_ERROR(interpreter.ChargeText(self.text().size()));
  const int64_t missing = width - CountChars(self.text());
  if (missing <= 0) return self;
  LH_RETURN_IF_ERROR(interpreter.CheckLength(static_cast<size_t>(missing)));
  LH_RETURN_IF_ERROR(interpreter.ChargeText(static_cast<size_t>(missing) * fill.size()));
  std::string padding;
  for (int64_t i = 0; i < missing; ++i) padding += fill;
  std::string text = self.text();
  if (kSide == Side::kLeft) return Value::String(text + padding);
  const bool has_sign = !text.empty() && (text[0] == '-' || text[0] == '+');
  return Value::String(text.insert(kSide == Side::kZeros && has_sign ? 1 : 0, padding));
}

Result ListIndex(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_RETURN_IF_ERROR(interpreter.Charge(self.weight()));
  const std::vector<Value>& items = self.sequence().items;
  for (size_t i = 0; i < items.size(); ++i) {
    if (Equal(items[i], *args.Get(0))) return Value::Int(static_cast<int64_t>(i));
  }
  return absl::InvalidArgumentError("'index' found no such item");
}

Result ListCount(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_RETURN_IF_ERROR(interpreter.Charge(self.weight()));
  const std::vector<Value>& items = self.sequence().items;
  return Value::Int(std::count_if(items.begin(), items.end(), [&args](const Value& item) {
    return Equal(item, *args.Get(0));
  }));
}

Result Copy(Interpreter&, const Value& self, const BoundArgs&) { return self; }

Result DictGet(Interpreter& interpreter, const Value& self, const BoundArgs& args) {
  LH_RETURN_IF_ERROR(CheckKey(interpreter, *args.Get(0)));
  if (const Value* found = self.dict().Find(*args.Get(0))) return *found;
  return args.Get(1) != nullptr ? *args.Get(1) : Value::None();
}

enum class View : uint8_t { kKeys, kValues, kItems };
template <View kView>
Result DictView(Interpreter& interpreter, const Value& self, const BoundArgs&) {
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(self.dict().size())));
  std::vector<Value> items;
  items.reserve(self.dict().size());
  for (const auto& [key, value] : self.dict().entries()) {
    items.push_back(kView == View::kKeys     ? key
                    : kView == View::kValues ? value
                                             : Value::Make(SequenceKind::kTuple, {key, value}));
  }
  return Value::Make(SequenceKind::kView, std::move(items));
}

constexpr Method kTextMethods[] = {
    {"strip", "| chars", StripMethod<true, true>},
    {"lstrip", "| chars", StripMethod<true, false>},
    {"rstrip", "| chars", StripMethod<false, true>},
    {"split", "| sep maxsplit", SplitMethod<false>},
    {"rsplit", "| sep maxsplit", SplitMethod<true>},
    {"splitlines", "| keepends", SplitLinesMethod},
    {"partition", "sep", Partition<false>},
    {"rpartition", "sep", Partition<true>},
    {"startswith", "prefix | start end", HasAffixMethod<true>},
    {"endswith", "suffix | start end", HasAffixMethod<false>},
    {"removeprefix", "prefix", RemoveAffix<true>},
    {"removesuffix", "suffix", RemoveAffix<false>},
    {"upper", "", Mapped<ToUpper>},
    {"lower", "", Mapped<ToLower>},
    {"title", "", Mapped<ToTitle>},
    {"capitalize", "", Mapped<Capitalize>},
    {"replace", "old new | count", ReplaceMethod},
    {"find", "sub", FindText<false, false>},
    {"rfind", "sub", FindText<true, false>},
    {"index", "sub", FindText<false, true>},
    {"count", "sub", CountText},
    {"join", "iterable", JoinMethod},
    {"format", "*", FormatMethod},
    {"ljust", "width | fillchar", Justify<Side::kLeft>},
    {"rjust", "width | fillchar", Justify<Side::kRight>},
    {"zfill", "width", Justify<Side::kZeros>},
    {"isalpha", "", TestMethod<CharTest::kAlpha>},
    {"isdigit", "", TestMethod<CharTest::kDigit>},
    {"isalnum", "", TestMethod<CharTest::kAlnum>},
    {"isspace", "", TestMethod<CharTest::kSpace>},
    {"islower", "", TestMethod<CharTest::kLower>},
    {"isupper", "", TestMethod<CharTest::kUpper>},
};
constexpr Method kListMethods[] = {
    {"index", "value", ListIndex}, {"count", "value", ListCount}, {"copy", "", Copy}};
constexpr Method kDictMethods[] = {{"get", "key | default", DictGet},
                                   {"items", "", DictView<View::kItems>},
                                   {"keys", "", DictView<View::kKeys>},
                                   {"values", "", DictView<View::kValues>},
                                   {"copy", "", Copy}};

template <size_t n>
const Method* FindIn(const Method (&table)[n], std::string_view name) {
  const Method* it = std::find_if(std::begin(table), std::end(table),
                                  [name](const Method& method) { return method.name == name; });
  return it == std::end(table) ? nullptr : it;
}

}  // namespace

const Method* FindMethod(const Value& value, std::string_view name) {
  if (value.is_string()) return FindIn(kTextMethods, name);
  if (value.is_dict()) return FindIn(kDictMethods, name);
  if (value.is(SequenceKind::kList) || value.is(SequenceKind::kTuple) ||
      value.is(SequenceKind::kRange)) {
    return FindIn(kListMethods, name);
  }
  return nullptr;
}

}  // namespace longhaul::jinja
