// Expressions, and how values are looked into.

#include <fmt/format.h>

#include <algorithm>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/py_string.h"
#include "server/text/jinja/to_text.h"

namespace longhaul::jinja {
namespace {

absl::Status UseOfUndefined(const Value& value) {
  return absl::InvalidArgumentError(value.undefined_hint());
}

Value NoAttribute(const Value& value, std::string_view name) {
  return Value::Undefined(fmt::format("'{}{}' has no attribute '{}'", value.type_name(),
                                      value.is_none() ? "" : " object", name));
}

bool IsIndexable(const Value& value) {
  return value.is(SequenceKind::kList) || value.is(SequenceKind::kTuple) ||
         value.is(SequenceKind::kRange);
}

// An index of a slice: an integer or nothing; false for anything else.
bool ReadIndex(const Value& value, std::optional<int64_t>* index) {
  if (value.is_none()) return true;
  if (!value.is_int() && !value.is_bool()) return false;
  *index = value.int_value();
  return true;
}

}  // namespace

absl::StatusOr<Value> Interpreter::Eval(const Expr& expr, Scope* scope) {
  const DepthGuard guard(this);
  absl::Status ready = Charge(1);
  if (ready.ok()) ready = guard.status();
  absl::StatusOr<Value> value =
      ready.ok() ? std::visit([&](const auto& node) { return EvalNode(node, scope); }, expr.node)
                 : ready;
  if (value.ok() && value->depth() > kMaxNesting) {
    value = absl::InvalidArgumentError(
        fmt::format("lists or dicts nest deeper than {} levels", kMaxNesting));
  }
  if (!value.ok() && error_line_ == 0) error_line_ = expr.line;
  return value;
}

absl::StatusOr<Value> Interpreter::EvalOrNone(const ExprPtr& expr, Scope* scope) {
  if (!expr) return Value::None();
  return Eval(*expr, scope);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Constant& node, Scope*) { return node.value; }

absl::StatusOr<Value> Interpreter::EvalNode(const Name& node, Scope* scope) {
  if (const Value* value = Find(node.id, scope)) return *value;
  return Value::Undefined(
      fmt::format("'{}' is undefined", parsed_.names[static_cast<size_t>(node.id)]));
}

absl::StatusOr<Value> Interpreter::EvalNode(const Attribute& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value object, Eval(*node.object, scope));
  return GetAttribute(object, node.name);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Item& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value object, Eval(*node.object, scope));
  LH_ASSIGN_OR_RETURN(const Value key, Eval(*node.key, scope));
  return GetItem(object, key);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Slice& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value object, Eval(*node.object, scope));
  LH_ASSIGN_OR_RETURN(const Value begin, EvalOrNone(node.begin, scope));
  LH_ASSIGN_OR_RETURN(const Value end, EvalOrNone(node.end, scope));
  LH_ASSIGN_OR_RETURN(const Value step, EvalOrNone(node.step, scope));
  return GetSlice(object, begin, end, step);
}

absl::StatusOr<Args> Interpreter::EvalArgs(const ArgNodes& nodes, Scope* scope) {
  Args args;
  for (const ExprPtr& node : nodes.positional) {
    LH_ASSIGN_OR_RETURN(Value value, Eval(*node, scope));
    args.positional.push_back(std::move(value));
  }
  if (nodes.star) {
    LH_ASSIGN_OR_RETURN(const Value list, Eval(*nodes.star, scope));
    LH_ASSIGN_OR_RETURN(const Value sequence, ToSequence(list));
    LH_RETURN_IF_ERROR(Charge(sequence.weight()));
    const std::vector<Value>& items = sequence.sequence().items;
    args.positional.insert(args.positional.end(), items.begin(), items.end());
  }
  for (const auto& [name, node] : nodes.named) {
    LH_ASSIGN_OR_RETURN(Value value, Eval(*node, scope));
    args.named.emplace_back(name, std::move(value));
  }
  if (nodes.double_star) {
    LH_ASSIGN_OR_RETURN(const Value value, Eval(*nodes.double_star, scope));
    if (!value.is_dict()) {
      return absl::InvalidArgumentError(
          fmt::format("'**' needs a dict, got {}", value.type_name()));
    }
    LH_RETURN_IF_ERROR(Charge(value.weight()));
    for (const auto& [key, item] : value.dict().entries()) {
      if (!key.is_string()) return absl::InvalidArgumentError("names of arguments must be text");
      args.named.emplace_back(key.text(), item);
    }
  }
  return args;
}

absl::StatusOr<Value> Interpreter::EvalNode(const jinja::Call& node, Scope* scope) {
  return EvalCall(node, scope, std::nullopt);
}

absl::StatusOr<Value> Interpreter::EvalCall(const jinja::Call& node, Scope* scope,
                                            std::optional<Value> caller) {
  // A method is called without making a value of it first.
  const auto* attribute = std::get_if<Attribute>(&node.callee->node);
  Value object, callee;
  const Method* method = nullptr;
  if (attribute != nullptr) {
    LH_ASSIGN_OR_RETURN(object, Eval(*attribute->object, scope));
    method = FindMethod(object, attribute->name);
    if (method == nullptr) {
      LH_ASSIGN_OR_RETURN(callee, GetAttribute(object, attribute->name));
    }
  } else {
    LH_ASSIGN_OR_RETURN(callee, Eval(*node.callee, scope));
  }
  LH_ASSIGN_OR_RETURN(Args args, EvalArgs(node.args, scope));
  if (caller) args.named.emplace_back("caller", *std::move(caller));
  if (method == nullptr) return Call(callee, args);
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind(method->name, method->signature, args));
  return method->apply(*this, object, bound);
}

absl::StatusOr<Value> Interpreter::Call(const Value& callee, const Args& args) {
  if (callee.is_undefined()) return UseOfUndefined(callee);
  Object* object = callee.is_object() ? callee.object() : nullptr;
  if (const auto* macro = dynamic_cast<const Macro*>(object)) return CallMacro(*macro, args);
  if (const auto* function = dynamic_cast<const Function*>(object)) {
    return function->Call(*this, args);
  }
  return absl::InvalidArgumentError(fmt::format("a {} cannot be called", callee.type_name()));
}

absl::StatusOr<Value> Interpreter::ApplyFilter(const FilterCall& call, const Value& input,
                                               Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Args args, EvalArgs(call.args, scope));
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind(call.filter->name, call.filter->signature, args));
  return call.filter->apply(*this, input, bound);
}

absl::StatusOr<Value> Interpreter::EvalNode(const FilterExpr& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value input, Eval(*node.input, scope));
  return ApplyFilter(node.call, input, scope);
}

absl::StatusOr<Value> Interpreter::EvalNode(const TestExpr& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value input, Eval(*node.input, scope));
  LH_ASSIGN_OR_RETURN(const Args args, EvalArgs(node.args, scope));
  LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind(node.test->name, node.test->signature, args));
  LH_ASSIGN_OR_RETURN(const bool holds, node.test->apply(*this, input, bound));
  return Value::Bool(holds);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Unary& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value operand, Eval(*node.operand, scope));
  return ApplyUnary(node.op, operand);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Binary& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value left, Eval(*node.left, scope));
  LH_ASSIGN_OR_RETURN(const Value right, Eval(*node.right, scope));
  return ApplyBinary(*this, node.op, std::move(left), right);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Compare& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value left, Eval(*node.first, scope));
  for (const auto& [op, expr] : node.rest) {
    LH_ASSIGN_OR_RETURN(Value right, Eval(*expr, scope));
    LH_ASSIGN_OR_RETURN(const bool holds, ApplyCompare(*this, op, left, right));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Logical& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value left, Eval(*node.left, scope));
  if (left.Truthy() != node.is_and) return left;
  return Eval(*node.right, scope);
}

absl::StatusOr<Value> Interpreter::EvalNode(const Concat& node, Scope* scope) {
  std::string text;
  for (const ExprPtr& part : node.parts) {
    LH_ASSIGN_OR_RETURN(const Value value, Eval(*part, scope));
    const size_t before = text.size();
    if (value.is_string()) LH_RETURN_IF_ERROR(CheckLength(before + value.text().size()));
    LH_RETURN_IF_ERROR(AppendStr(value, limits_.max_output_bytes, &text));
    LH_RETURN_IF_ERROR(ChargeText(text.size() - before));
  }
  return Value::String(std::move(text));
}

absl::StatusOr<Value> Interpreter::EvalNode(const Conditional& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value condition, Eval(*node.condition, scope));
  if (condition.Truthy()) return Eval(*node.then, scope);
  if (node.otherwise) return Eval(*node.otherwise, scope);
  return Value::Undefined("the inline if was false and has no else");
}

absl::StatusOr<Value> Interpreter::EvalNode(const SequenceExpr& node, Scope* scope) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExprPtr& expr : node.items) {
    LH_ASSIGN_OR_RETURN(Value item, Eval(*expr, scope));
    items.push_back(std::move(item));
  }
  return Value::Make(node.kind, std::move(items));
}

absl::StatusOr<Value> Interpreter::EvalNode(const DictExpr& node, Scope* scope) {
  Dict dict;
  for (const auto& [key_expr, value_expr] : node.entries) {
    LH_ASSIGN_OR_RETURN(Value key, Eval(*key_expr, scope));
    LH_ASSIGN_OR_RETURN(Value value, Eval(*value_expr, scope));
    LH_RETURN_IF_ERROR(CheckKey(*this, key));
    dict.Set(std::move(key), std::move(value));
  }
  return Value::Of(std::move(dict));
}

absl::StatusOr<std::string> Interpreter::Str(const Value& value) {
  std::string text;
  LH_RETURN_IF_ERROR(AppendStr(value, limits_.max_output_bytes, &text));
  LH_RETURN_IF_ERROR(ChargeText(text.size()));
  return text;
}

absl::StatusOr<Value> Interpreter::GetAttribute(const Value& value, std::string_view name) {
  if (value.is_undefined()) return UseOfUndefined(value);
  if (const Method* method = FindMethod(value, name)) {
    LH_RETURN_IF_ERROR(Charge(kObjectSteps));
    const auto body = [method, value](Interpreter& interpreter,
                                      const Args& args) -> absl::StatusOr<Value> {
      LH_ASSIGN_OR_RETURN(const BoundArgs bound, Bind(method->name, method->signature, args));
      return method->apply(interpreter, value, bound);
    };
    return Value::Of(New<Function>(std::string(name), body));
  }
  if (value.is_dict()) {
    if (const Value* found = value.dict().Find(name)) return *found;
  } else if (value.is_object()) {
    if (const auto* space = dynamic_cast<const Namespace*>(value.object())) {
      if (const Value* found = space->Find(name)) return *found;
    } else if (auto* loop = dynamic_cast<Loop*>(value.object())) {
      LH_ASSIGN_OR_RETURN(std::optional<Value> found, loop->Attribute(*this, name));
      if (found) return *std::move(found);
    }
  }
  return NoAttribute(value, name);
}

absl::StatusOr<Value> Interpreter::GetItem(const Value& value, const Value& key) {
  if (value.is_undefined()) return UseOfUndefined(value);
  if (value.is_dict()) {
    LH_RETURN_IF_ERROR(Charge(key.weight()));
    if (const Value* found = value.dict().Find(key)) return *found;
  }
  if ((key.is_int() || key.is_bool()) && (IsIndexable(value) || value.is_string())) {
    if (value.is_string()) LH_RETURN_IF_ERROR(ChargeText(value.text().size()));
    const int64_t length = value.is_string() ? CountChars(value.text())
                                             : static_cast<int64_t>(value.sequence().items.size());
    const int64_t index = key.int_value() < 0 ? key.int_value() + length : key.int_value();
    if (index >= 0 && index < length) {
      if (!value.is_string()) return value.sequence().items[static_cast<size_t>(index)];
      return Value::String(SliceChars(value.text(), index, index + 1, 1));
    }
  }
  if (key.is_string()) return GetAttribute(value, key.text());
  LH_ASSIGN_OR_RETURN(const std::string text, Str(key));
  return Value::Undefined(fmt::format("{} object has no element {}", value.type_name(), text));
}

absl::StatusOr<Value> Interpreter::GetSlice(const Value& value, const Value& begin,
                                            const Value& end, const Value& step) {
  if (value.is_undefined()) return UseOfUndefined(value);
  std::optional<int64_t> first, last, stride;
  if (!ReadIndex(begin, &first) || !ReadIndex(end, &last) || !ReadIndex(step, &stride) ||
      (!value.is_string() && !IsIndexable(value))) {
    return absl::InvalidArgumentError(
        fmt::format("a {} cannot be cut by these indices", value.type_name()));
  }
  const int64_t by = stride.value_or(1);
  if (by == 0) return absl::InvalidArgumentError("the step of a slice is 0");
  if (value.is_string()) {
    LH_RETURN_IF_ERROR(ChargeText(value.text().size()));
    if (by != 1) LH_RETURN_IF_ERROR(Charge(static_cast<int64_t>(value.text().size())));
    return Value::String(SliceChars(value.text(), first, last, by));
  }
  const Sequence& sequence = value.sequence();
  const SliceRange range =
      ResolveSlice(first, last, by, static_cast<int64_t>(sequence.items.size()));
  LH_RETURN_IF_ERROR(Charge(range.count));
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(range.count));
  for (int64_t i = 0, at = range.begin; i < range.count; ++i, at += range.step) {
    items.push_back(sequence.items[static_cast<size_t>(at)]);
  }
  return Value::Make(sequence.kind, std::move(items));
}

absl::StatusOr<Value> Interpreter::ToSequence(const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      break;
    case Value::Kind::kSequence: {
      const Sequence& sequence = value.sequence();
      if (sequence.kind != SequenceKind::kIterator) return value;
      items.assign(sequence.items.begin() + static_cast<int64_t>(sequence.n_consumed),
                   sequence.items.end());
      sequence.n_consumed = sequence.items.size();
      break;
    }
    case Value::Kind::kDict:
      LH_RETURN_IF_ERROR(Charge(static_cast<int64_t>(value.dict().size())));
      for (const auto& [key, item] : value.dict().entries()) items.push_back(key);
      break;
    case Value::Kind::kString:
      LH_RETURN_IF_ERROR(Charge(static_cast<int64_t>(value.text().size())));
      for (const std::string_view c : Chars(value.text())) {
        items.push_back(Value::String(std::string(c)));
      }
      break;
    default:
      return absl::InvalidArgumentError(fmt::format("a {} cannot be gone over", value.type_name()));
  }
  return Value::List(std::move(items));
}

}  // namespace longhaul::jinja
