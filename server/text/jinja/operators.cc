#include "server/text/jinja/operators.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace longhaul::jinja {
namespace {

absl::Status WrongTypes(std::string_view op, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right}) {
    if (value->is_undefined()) return absl::InvalidArgumentError(value->undefined_hint());
  }
  return absl::InvalidArgumentError(
      fmt::format("'{}' does not work between {} and {}", op, left.type_name(), right.type_name()));
}

absl::Status OutOfRange() {
  return absl::InvalidArgumentError("a number leaves the range of 64 bit integers");
}

std::string_view OperatorText(BinaryOp op) {
  constexpr std::string_view kNames[] = {"+", "-", "*", "/", "//", "%", "**"};
  return kNames[static_cast<size_t>(op)];
}

int64_t FloorDivide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

absl::StatusOr<Value> IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return absl::InvalidArgumentError("0 to a negative power");
    return Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return OutOfRange();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return OutOfRange();
  }
  return Value::Int(result);
}

absl::StatusOr<Value> OnIntegers(BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case BinaryOp::kSub:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case BinaryOp::kMul:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case BinaryOp::kPow:
      return IntegerPower(a, b);
    default:
      if (b == 0) return absl::InvalidArgumentError("division by zero");
      if (op == BinaryOp::kDiv)
        return Value::Float(static_cast<double>(a) / static_cast<double>(b));
      if (b == -1) {  // the one quotient that does not fit
        overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
        if (op == BinaryOp::kMod) return Value::Int(0);
      } else {
        result = op == BinaryOp::kMod ? a - FloorDivide(a, b) * b : FloorDivide(a, b);
      }
  }
  if (overflow) return OutOfRange();
  return Value::Int(result);
}

absl::StatusOr<Value> OnFloats(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::Float(a + b);
    case BinaryOp::kSub:
      return Value::Float(a - b);
    case BinaryOp::kMul:
      return Value::Float(a * b);
    case BinaryOp::kPow: {
      const double power = std::pow(a, b);
      if ((std::isinf(power) && std::isfinite(a) && std::isfinite(b)) || std::isnan(power)) {
        return absl::InvalidArgumentError("a power that is no number");
      }
      return Value::Float(power);
    }
    default:
      break;
  }
  if (b == 0) return absl::InvalidArgumentError("division by zero");
  if (op == BinaryOp::kDiv) return Value::Float(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == BinaryOp::kMod) return Value::Float(rest == 0 ? std::copysign(0.0, b) : rest);
  return Value::Float(std::round((a - rest) / b));
}

absl::StatusOr<Value> JoinSequences(Interpreter& interpreter, const Value& left,
                                    const Value& right) {
  const std::vector<Value>& a = left.sequence().items;
  const std::vector<Value>& b = right.sequence().items;
  LH_RETURN_IF_ERROR(interpreter.Charge(static_cast<int64_t>(a.size() + b.size())));
  std::vector<Value> items;
  items.reserve(a.size() + b.size());
  items.insert(items.end(), a.begin(), a.end());
  items.insert(items.end(), b.begin(), b.end());
  return Value::Make(left.sequence().kind, std::move(items));
}

// A text or list n times.
absl::StatusOr<Value> Repeat(Interpreter& interpreter, const Value& value, int64_t n) {
  n = std::max<int64_t>(n, 0);
  const size_t size = value.is_string() ? value.text().size() : value.sequence().items.size();
  int64_t total = 0;
  if (__builtin_mul_overflow(static_cast<int64_t>(size), n, &total)) {
    total = std::numeric_limits<int64_t>::max();
  }
  if (value.is_string()) {
    LH_RETURN_IF_ERROR(interpreter.ChargeText(static_cast<size_t>(total)));
    std::string text;
    text.reserve(static_cast<size_t>(total));
    for (int64_t i = 0; i < n && size > 0; ++i) text += value.text();
    return Value::String(std::move(text));
  }
  LH_RETURN_IF_ERROR(interpreter.Charge(total));
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(total));
  for (int64_t i = 0; i < n && size > 0; ++i) {
    items.insert(items.end(), value.sequence().items.begin(), value.sequence().items.end());
  }
  return Value::Make(value.sequence().kind, std::move(items));
}

bool IsListOrTuple(const Value& value) {
  return value.is(SequenceKind::kList) || value.is(SequenceKind::kTuple);
}

absl::StatusOr<bool> Contains(Interpreter& interpreter, const Value& container,
                              const Value& value) {
  if (container.is_string()) {
    if (!value.is_string()) return WrongTypes("in", value, container);
    return container.text().find(value.text()) != std::string::npos;
  }
  if (container.is_dict()) {
    LH_RETURN_IF_ERROR(CheckKey(interpreter, value));
    return container.dict().Find(value) != nullptr;
  }
  if (container.is_none() || container.is_number() || container.is_object()) {
    return WrongTypes("in", value, container);
  }
  LH_ASSIGN_OR_RETURN(const Value sequence, interpreter.ToSequence(container));
  const std::vector<Value>& items = sequence.sequence().items;
  return std::any_of(items.begin(), items.end(),
                     [&value](const Value& item) { return Equal(item, value); });
}

}  // namespace

absl::StatusOr<Value> ApplyUnary(UnaryOp op, const Value& operand) {
  if (op == UnaryOp::kNot) return Value::Bool(!operand.Truthy());
  if (operand.is_undefined()) return absl::InvalidArgumentError(operand.undefined_hint());
  if (!operand.is_number()) {
    return absl::InvalidArgumentError(
        fmt::format("a sign does not work on a {}", operand.type_name()));
  }
  if (operand.is_float()) {
    return Value::Float(op == UnaryOp::kNegate ? -operand.float_value() : operand.float_value());
  }
  if (op == UnaryOp::kPlus) return Value::Int(operand.int_value());
  return OnIntegers(BinaryOp::kSub, 0, operand.int_value());
}

absl::StatusOr<Value> ApplyBinary(Interpreter& interpreter, BinaryOp op, Value left,
                                  const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_float() || right.is_float()) return OnFloats(op, left.number(), right.number());
    return OnIntegers(op, left.int_value(), right.int_value());
  }
  if (op == BinaryOp::kAdd && left.is_string() && right.is_string()) {
    LH_RETURN_IF_ERROR(interpreter.ChargeText(left.text().size() + right.text().size()));
    return Value::Concat(std::move(left), right.text());
  }
  if (op == BinaryOp::kAdd && IsListOrTuple(left) && right.is_sequence() &&
      right.is(left.sequence().kind)) {
    return JoinSequences(interpreter, left, right);
  }
  if (op == BinaryOp::kMod && left.is_string()) {
    return FormatPercent(interpreter, left.text(), right);
  }
  const auto is_count = [](const Value& value) { return value.is_int() || value.is_bool(); };
  if (op == BinaryOp::kMul && is_count(right) && (left.is_string() || IsListOrTuple(left))) {
    return Repeat(interpreter, left, right.int_value());
  }
  if (op == BinaryOp::kMul && is_count(left) && (right.is_string() || IsListOrTuple(right))) {
    return Repeat(interpreter, right, left.int_value());
  }
  return WrongTypes(OperatorText(op), left, right);
}

absl::StatusOr<bool> Less(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    return left.is_float() || right.is_float() ? left.number() < right.number()
                                               : left.int_value() < right.int_value();
  }
  // The order of UTF-8 bytes is that of code points.
  if (left.is_string() && right.is_string()) return left.text() < right.text();
  if (!IsListOrTuple(left) || !right.is_sequence() || !right.is(left.sequence().kind)) {
    return WrongTypes("<", left, right);
  }
  const std::vector<Value>& a = left.sequence().items;
  const std::vector<Value>& b = right.sequence().items;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (!Equal(a[i], b[i])) return Less(a[i], b[i]);
  }
  return a.size() < b.size();
}

absl::StatusOr<bool> ApplyCompare(Interpreter& interpreter, CompareOp op, const Value& left,
                                  const Value& right) {
  LH_RETURN_IF_ERROR(interpreter.Charge(left.weight() + right.weight()));
  switch (op) {
    case CompareOp::kEq:
      return Equal(left, right);
    case CompareOp::kNe:
      return !Equal(left, right);
    case CompareOp::kLt:
      return Less(left, right);
    case CompareOp::kGt:
      return Less(right, left);
    case CompareOp::kLe:
    case CompareOp::kGe: {
      const Value& low = op == CompareOp::kLe ? left : right;
      const Value& high = op == CompareOp::kLe ? right : left;
      LH_ASSIGN_OR_RETURN(const bool less, Less(low, high));
      return less || Equal(low, high);
    }
    case CompareOp::kIn:
      return Contains(interpreter, right, left);
    case CompareOp::kNotIn: {
      LH_ASSIGN_OR_RETURN(const bool contains, Contains(interpreter, right, left));
      return !contains;
    }
  }
  return false;
}

absl::Status CheckKey(Interpreter& interpreter, const Value& key) {
  if (!key.is_string()) LH_RETURN_IF_ERROR(interpreter.Charge(key.weight()));
  if (IsHashable(key)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("a {} cannot be the key of a dict", key.type_name()));
}

}  // namespace longhaul::jinja
