// The tests of `is`.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"

namespace longhaul::jinja {
namespace {

using Result = absl::StatusOr<bool>;

template <bool (*Holds)(const Value&)>
Result Simple(Interpreter&, const Value& value, const BoundArgs&) {
  return Holds(value);
}

bool IsDefined(const Value& value) { return !value.is_undefined(); }
bool IsUndefined(const Value& value) { return value.is_undefined(); }
bool IsNone(const Value& value) { return value.is_none(); }
bool IsBoolean(const Value& value) { return value.is_bool(); }
bool IsTrue(const Value& value) { return value.is_bool() && value.bool_value(); }
bool IsFalse(const Value& value) { return value.is_bool() && !value.bool_value(); }
bool IsInteger(const Value& value) { return value.is_int(); }
bool IsFloat(const Value& value) { return value.is_float(); }
bool IsNumber(const Value& value) { return value.is_number(); }
bool IsString(const Value& value) { return value.is_string(); }
bool IsMapping(const Value& value) { return value.is_dict(); }
bool IsIterable(const Value& value) {
  return value.is_string() || value.is_sequence() || value.is_dict() || value.is_undefined();
}
bool IsSequence(const Value& value) {
  return value.is_string() || value.is_dict() || value.is_undefined() ||
         (value.is_sequence() && !value.is(SequenceKind::kIterator) &&
          !value.is(SequenceKind::kView));
}
bool IsCallable(const Value& value) {
  // Undefined has a __call__, which raises.
  return value.is_undefined() || (value.is_object() && value.object()->callable());
}
bool IsEscaped(const Value&) { return false; }

template <int64_t kRest>
Result HasParity(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  LH_ASSIGN_OR_RETURN(const Value rest,
                      ApplyBinary(interpreter, BinaryOp::kMod, value, Value::Int(2)));
  return Equal(rest, Value::Int(kRest));
}

Result IsDivisibleBy(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  LH_ASSIGN_OR_RETURN(const Value rest,
                      ApplyBinary(interpreter, BinaryOp::kMod, value, *args.Get(0)));
  return Equal(rest, Value::Int(0));
}

template <CompareOp kOp>
Result Compares(Interpreter& interpreter, const Value& value, const BoundArgs& args) {
  return ApplyCompare(interpreter, kOp, value, *args.Get(0));
}

Result IsSameAs(Interpreter&, const Value& value, const BoundArgs& args) {
  const Value& other = *args.Get(0);
  if (value.IdenticalTo(other)) return true;
  // Constants are the same object in Python; whether two equal texts are is left open there.
  return value.kind() == other.kind() && !value.is_float() && !value.is_sequence() &&
         !value.is_dict() && !value.is_object() && Equal(value, other);
}

template <CharTest kTest>
Result HasCase(Interpreter& interpreter, const Value& value, const BoundArgs&) {
  LH_ASSIGN_OR_RETURN(const std::string text, interpreter.Str(value));
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(text.size())));
  return TestChars(text, kTest);
}

Result IsFilterName(Interpreter&, const Value& value, const BoundArgs&) {
  return value.is_string() && FindFilter(value.text()) != nullptr;
}

Result IsTestName(Interpreter&, const Value& value, const BoundArgs&) {
  return value.is_string() && FindTest(value.text()) != nullptr;
}

constexpr Test kTests[] = {
    {"defined", "", Simple<IsDefined>},
    {"undefined", "", Simple<IsUndefined>},
    {"none", "", Simple<IsNone>},
    {"boolean", "", Simple<IsBoolean>},
    {"true", "", Simple<IsTrue>},
    {"false", "", Simple<IsFalse>},
    {"integer", "", Simple<IsInteger>},
    {"float", "", Simple<IsFloat>},
    {"number", "", Simple<IsNumber>},
    {"string", "", Simple<IsString>},
    {"mapping", "", Simple<IsMapping>},
    {"iterable", "", Simple<IsIterable>},
    {"sequence", "", Simple<IsSequence>},
    {"callable", "", Simple<IsCallable>},
    {"escaped", "", Simple<IsEscaped>},
    {"odd", "", HasParity<1>},
    {"even", "", HasParity<0>},
    {"divisibleby", "num", IsDivisibleBy},
    {"sameas", "other", IsSameAs},
    {"lower", "", HasCase<CharTest::kLower>},
    {"upper", "", HasCase<CharTest::kUpper>},
    {"in", "seq", Compares<CompareOp::kIn>},
    {"==", "other", Compares<CompareOp::kEq>},
    {"eq", "other", Compares<CompareOp::kEq>},
    {"equalto", "other", Compares<CompareOp::kEq>},
    {"!=", "other", Compares<CompareOp::kNe>},
    {"ne", "other", Compares<CompareOp::kNe>},
    {"<", "other", Compares<CompareOp::kLt>},
    {"lt", "other", Compares<CompareOp::kLt>},
    {"lessthan", "other", Compares<CompareOp::kLt>},
    {"<=", "other", Compares<CompareOp::kLe>},
    {"le", "other", Compares<CompareOp::kLe>},
    {">", "other", Compares<CompareOp::kGt>},
    {"gt", "other", Compares<CompareOp::kGt>},
    {"greaterthan", "other", Compares<CompareOp::kGt>},
    {">=", "other", Compares<CompareOp::kGe>},
    {"ge", "other", Compares<CompareOp::kGe>},
    {"filter", "", IsFilterName},
    {"test", "", IsTestName},
};

}  // namespace

const Test* FindTest(std::string_view name) {
  const Test* it = std::find_if(std::begin(kTests), std::end(kTests),
                                [name](const Test& test) { return test.name == name; });
  return it == std::end(kTests) ? nullptr : it;
}

}  // namespace longhaul::jinja
