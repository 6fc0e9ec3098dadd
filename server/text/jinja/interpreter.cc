// Statements, scopes and macros.

#include "server/text/jinja/interpreter.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/to_text.h"

namespace longhaul::jinja {

Interpreter::ScopeHolder::ScopeHolder(Interpreter* interpreter, Scope* parent)
    : interpreter_(interpreter) {
  if (interpreter->free_scopes_.empty()) {
    scope_ = &interpreter->scopes_.emplace_back();
  } else {
    scope_ = interpreter->free_scopes_.back();
    interpreter->free_scopes_.pop_back();
  }
  scope_->parent = parent;
}

Interpreter::ScopeHolder::~ScopeHolder() {
  if (scope_->captured) return;
  scope_->variables.clear();
  interpreter_->free_scopes_.push_back(scope_);
}

Interpreter::Interpreter(const ParsedTemplate& parsed, const Dict& variables, const Limits& limits,
                         std::time_t now)
    : parsed_(parsed),
      limits_(limits),
      now_(now),
      steps_left_(limits.max_steps),
      loop_id_(IdOf("loop")),
      caller_id_(IdOf("caller")),
      kwargs_id_(IdOf("kwargs")),
      varargs_id_(IdOf("varargs")),
      globals_(parsed.names.size()) {
  for (size_t id = 0; id < parsed.names.size(); ++id) {
    const std::string& name = parsed.names[id];
    if (const Value* value = variables.Find(std::string_view(name))) {
      globals_[id] = *value;
    } else {
      globals_[id] = MakeGlobalFunction(*this, name);
    }
  }
}

int Interpreter::IdOf(std::string_view name) const {
  const auto it = std::find(parsed_.names.begin(), parsed_.names.end(), name);
  return it == parsed_.names.end() ? -1 : static_cast<int>(it - parsed_.names.begin());
}

absl::StatusOr<std::string> Interpreter::Run() {
  std::string output;
  out_ = &output;
  const ScopeHolder scope(this, nullptr);
  LH_RETURN_IF_ERROR(ExecBlock(parsed_.body, scope.get()).status());
  return output;
}

absl::Status Interpreter::Charge(int64_t n_steps) {
  steps_left_ -= std::min(n_steps, steps_left_ + 1);
  if (steps_left_ >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "more than {} steps; the limit keeps a template from running forever", limits_.max_steps));
}

absl::Status Interpreter::CheckLength(size_t n_bytes) const {
  if (n_bytes <= static_cast<size_t>(limits_.max_output_bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("a text of more than {} bytes comes out; the limit keeps a template from filling "
                  "the memory",
                  limits_.max_output_bytes));
}

absl::Status Interpreter::ChargeText(size_t n_bytes) {
  LH_RETURN_IF_ERROR(CheckLength(n_bytes));
  return Charge(static_cast<int64_t>(n_bytes / 64));
}

const Value* Interpreter::Find(int id, const Scope* scope) const {
  for (; scope != nullptr; scope = scope->parent) {
    for (const auto& [variable, value] : scope->variables) {
      if (variable == id) return &value;
    }
  }
  const std::optional<Value>& global = globals_[static_cast<size_t>(id)];
  return global ? &*global : nullptr;
}

void Interpreter::Assign(Scope* scope, int id, Value value) {
  for (auto& [variable, old] : scope->variables) {
    if (variable == id) {
      old = std::move(value);
      return;
    }
  }
  scope->variables.emplace_back(id, std::move(value));
}

void Interpreter::Capture(Scope* scope) {
  for (; scope != nullptr && !scope->captured; scope = scope->parent) scope->captured = true;
}

absl::Status Interpreter::DepthGuard::status() const {
  if (interpreter_->depth_ <= kMaxEvalDepth) return absl::OkStatus();
  return absl::InvalidArgumentError("macros or filters call each other too deeply");
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecBlock(const Block& block, Scope* scope) {
  for (const Statement& statement : block) {
    LH_ASSIGN_OR_RETURN(const Flow flow, Exec(statement, scope));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const Statement& statement, Scope* scope) {
  const DepthGuard guard(this);
  absl::Status ready = Charge(1);
  if (ready.ok()) ready = guard.status();
  absl::StatusOr<Flow> flow =
      ready.ok() ? std::visit([&](const auto& node) { return Exec(node, scope); }, statement.node)
                 : ready;
  if (!flow.ok() && error_line_ == 0) error_line_ = statement.line;
  return flow;
}

absl::Status Interpreter::Write(const Value& value) {
  const size_t before = out_->size();
  if (value.is_string()) LH_RETURN_IF_ERROR(CheckLength(before + value.text().size()));
  LH_RETURN_IF_ERROR(AppendStr(value, limits_.max_output_bytes, out_));
  return ChargeText(out_->size() - before);
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const Text& node, Scope*) {
  LH_RETURN_IF_ERROR(CheckLength(out_->size() + node.text.size()));
  LH_RETURN_IF_ERROR(ChargeText(node.text.size()));
  out_->append(node.text);
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const Output& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value value, Eval(*node.value, scope));
  LH_RETURN_IF_ERROR(Write(value));
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const If& node, Scope* scope) {
  for (const If::Branch& branch : node.branches) {
    LH_ASSIGN_OR_RETURN(const Value condition, Eval(*branch.condition, scope));
    if (condition.Truthy()) return ExecBlock(branch.body, scope);
  }
  return ExecBlock(node.otherwise, scope);
}

absl::StatusOr<bool> Interpreter::LoopCondition(const For& loop, Scope* outer, const Value& item) {
  const ScopeHolder scope(this, outer);
  LH_RETURN_IF_ERROR(AssignTarget(loop.target, item, scope.get()));
  LH_ASSIGN_OR_RETURN(const Value condition, Eval(*loop.condition, scope.get()));
  return condition.Truthy();
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const For& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(const Value iterable, Eval(*node.iterable, scope));
  LH_ASSIGN_OR_RETURN(Value sequence, ToSequence(iterable));
  LH_RETURN_IF_ERROR(Charge(kObjectSteps));
  Loop* loop = New<Loop>(&node, std::move(sequence), scope);
  const ScopeHolder body_scope(this, scope);
  bool any = false;
  for (;;) {
    LH_ASSIGN_OR_RETURN(const bool more, loop->Advance(*this));
    if (!more) break;
    any = true;
    LH_RETURN_IF_ERROR(Charge(1));
    body_scope->variables.clear();
    if (loop_id_ >= 0) Assign(body_scope.get(), loop_id_, Value::Of(loop));
    LH_RETURN_IF_ERROR(AssignTarget(node.target, loop->current(), body_scope.get()));
    LH_ASSIGN_OR_RETURN(const Flow flow, ExecBlock(node.body, body_scope.get()));
    if (flow == Flow::kBreak) break;
  }
  if (any) return Flow::kNext;
  const ScopeHolder else_scope(this, scope);
  return ExecBlock(node.otherwise, else_scope.get());
}

absl::Status Interpreter::AssignTarget(const Target& target, Value value, Scope* scope) {
  if (target.is_tuple) {
    LH_ASSIGN_OR_RETURN(const Value sequence, ToSequence(value));
    const std::vector<Value>& items = sequence.sequence().items;
    if (items.size() != target.items.size()) {
      return absl::InvalidArgumentError(fmt::format("{} values cannot be assigned to {} names",
                                                    items.size(), target.items.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) {
      LH_RETURN_IF_ERROR(AssignTarget(target.items[i], items[i], scope));
    }
    return absl::OkStatus();
  }
  if (target.attribute.empty()) {
    Assign(scope, target.id, std::move(value));
    return absl::OkStatus();
  }
  const Value* found = Find(target.id, scope);
  Namespace* space =
      found != nullptr && found->is_object() ? dynamic_cast<Namespace*>(found->object()) : nullptr;
  if (space == nullptr) {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is no namespace, so its attribute '{}' cannot be set",
                    parsed_.names[static_cast<size_t>(target.id)], target.attribute));
  }
  space->Set(target.attribute, std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const Set& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value value, Eval(*node.value, scope));
  LH_RETURN_IF_ERROR(AssignTarget(node.target, std::move(value), scope));
  return Flow::kNext;
}

absl::StatusOr<Value> Interpreter::Captured(const Block& block, Scope* parent) {
  std::string text;
  std::string* outer = std::exchange(out_, &text);
  const ScopeHolder scope(this, parent);
  const absl::Status status = ExecBlock(block, scope.get()).status();
  out_ = outer;
  if (!status.ok()) return status;
  return Value::String(std::move(text));
}

absl::StatusOr<Value> Interpreter::ApplyFilters(const std::vector<FilterCall>& filters, Value value,
                                                Scope* scope) {
  for (const FilterCall& call : filters) {
    LH_ASSIGN_OR_RETURN(value, ApplyFilter(call, value, scope));
  }
  return value;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const SetBlock& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value text, Captured(node.body, scope));
  LH_ASSIGN_OR_RETURN(Value value, ApplyFilters(node.filters, std::move(text), scope));
  LH_RETURN_IF_ERROR(AssignTarget(node.target, std::move(value), scope));
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const FilterBlock& node, Scope* scope) {
  LH_ASSIGN_OR_RETURN(Value text, Captured(node.body, scope));
  LH_ASSIGN_OR_RETURN(const Value value, ApplyFilters(node.filters, std::move(text), scope));
  LH_RETURN_IF_ERROR(Write(value));
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const With& node, Scope* scope) {
  const ScopeHolder inner(this, scope);
  for (const auto& [target, expr] : node.assignments) {
    LH_ASSIGN_OR_RETURN(Value value, Eval(*expr, scope));
    LH_RETURN_IF_ERROR(AssignTarget(target, std::move(value), inner.get()));
  }
  return ExecBlock(node.body, inner.get());
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const LoopControl& node, Scope*) {
  return node.is_break ? Flow::kBreak : Flow::kContinue;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const MacroNode& node, Scope* scope) {
  LH_RETURN_IF_ERROR(Charge(kObjectSteps));
  Capture(scope);
  Assign(scope, node.id, Value::Of(New<Macro>(&node, scope)));
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Exec(const CallBlock& node, Scope* scope) {
  LH_RETURN_IF_ERROR(Charge(kObjectSteps));
  Capture(scope);
  const Value caller = Value::Of(New<Macro>(&node.caller, scope));
  LH_ASSIGN_OR_RETURN(const Value value,
                      EvalCall(std::get<jinja::Call>(node.call->node), scope, caller));
  LH_RETURN_IF_ERROR(Write(value));
  return Flow::kNext;
}

absl::Status Interpreter::BindMacro(const MacroNode& node, const Args& args, Scope* scope) {
  const size_t n_parameters = node.parameters.size();
  std::vector<bool> used(args.named.size(), false);
  const auto take_named = [&](std::string_view name) -> const Value* {
    for (size_t i = 0; i < args.named.size(); ++i) {
      if (args.named[i].first != name) continue;
      used[i] = true;
      return &args.named[i].second;
    }
    return nullptr;
  };
  bool has_caller_parameter = false;
  for (size_t i = 0; i < n_parameters; ++i) {
    const MacroNode::Parameter& parameter = node.parameters[i];
    has_caller_parameter |= parameter.name == "caller";
    const Value* given =
        i < args.positional.size() ? &args.positional[i] : take_named(parameter.name);
    Value value;
    if (given != nullptr) {
      value = *given;
    } else if (parameter.default_value) {
      LH_ASSIGN_OR_RETURN(value, Eval(*parameter.default_value, scope));
    } else {
      value = Value::Undefined(fmt::format("parameter '{}' was not provided", parameter.name));
    }
    Assign(scope, parameter.id, std::move(value));
  }
  if (node.uses_caller && !has_caller_parameter) {
    const Value* caller = take_named("caller");
    Assign(scope, caller_id_, caller != nullptr ? *caller : Value::Undefined("No caller defined"));
  }
  if (node.uses_varargs) {
    std::vector<Value> rest;
    for (size_t i = n_parameters; i < args.positional.size(); ++i)
      rest.push_back(args.positional[i]);
    Assign(scope, varargs_id_, Value::Make(SequenceKind::kTuple, std::move(rest)));
  } else if (args.positional.size() > n_parameters) {
    return absl::InvalidArgumentError(
        fmt::format("the macro '{}' takes not more than {} arguments", node.name, n_parameters));
  }
  Dict rest;
  for (size_t i = 0; i < args.named.size(); ++i) {
    if (used[i]) continue;
    if (!node.uses_kwargs) {
      return absl::InvalidArgumentError(
          fmt::format("the macro '{}' takes no argument '{}'", node.name, args.named[i].first));
    }
    rest.Set(args.named[i].first, args.named[i].second);
  }
  if (node.uses_kwargs) Assign(scope, kwargs_id_, Value::Of(std::move(rest)));
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::CallMacro(const Macro& macro, const Args& args) {
  const ScopeHolder scope(this, macro.scope());
  LH_RETURN_IF_ERROR(BindMacro(macro.node(), args, scope.get()));
  return Captured(macro.node().body, scope.get());
}

}  // namespace longhaul::jinja
