// `loop`: the items of a for, and where in them it is.

#include <algorithm>

#include "server/text/jinja/ast.h"
#include "server/text/jinja/interpreter.h"

namespace longhaul::jinja {

absl::StatusOr<std::optional<Value>> Loop::Pull(Interpreter& interpreter) {
  const std::vector<Value>& items = iterable_.sequence().items;
  while (position_ < items.size()) {
    const Value& item = items[position_++];
    if (!node_->condition) return item;
    LH_ASSIGN_OR_RETURN(const bool fits, interpreter.LoopCondition(*node_, outer_, item));
    if (fits) return item;
  }
  return std::nullopt;
}

absl::StatusOr<bool> Loop::Advance(Interpreter& interpreter) {
  std::optional<Value> next;
  if (!ahead_.empty()) {
    next = std::move(ahead_.front());
    ahead_.pop_front();
  } else {
    LH_ASSIGN_OR_RETURN(next, Pull(interpreter));
  }
  if (!next) return false;
  ++index0_;
  previous_ = std::exchange(current_, *std::move(next));
  return true;
}

absl::StatusOr<const Value*> Loop::Peek(Interpreter& interpreter) {
  if (ahead_.empty()) {
    LH_ASSIGN_OR_RETURN(std::optional<Value> next, Pull(interpreter));
    if (!next) return nullptr;
    ahead_.push_back(*std::move(next));
  }
  return &ahead_.front();
}

absl::StatusOr<int64_t> Loop::Length(Interpreter& interpreter) {
  if (!node_->condition) return static_cast<int64_t>(iterable_.sequence().items.size());
  for (;;) {
    LH_ASSIGN_OR_RETURN(std::optional<Value> next, Pull(interpreter));
    if (!next) return index0_ + 1 + static_cast<int64_t>(ahead_.size());
    ahead_.push_back(*std::move(next));
  }
}

absl::StatusOr<Value> Loop::Cycle(const Args& args) const {
  if (args.positional.empty() || !args.named.empty()) {
    return absl::InvalidArgumentError("loop.cycle needs values to go through");
  }
  return args.positional[static_cast<size_t>(index0_) % args.positional.size()];
}

absl::StatusOr<Value> Loop::Changed(Interpreter& interpreter, const Args& args) {
  for (const Value& value : args.positional) LH_RETURN_IF_ERROR(interpreter.Charge(value.weight()));
  const std::vector<Value>& now = args.positional;
  const bool same = last_changed_ && std::equal(now.begin(), now.end(), last_changed_->begin(),
                                                last_changed_->end(), Equal);
  if (!same) last_changed_ = now;
  return Value::Bool(!same);
}

absl::StatusOr<std::optional<Value>> Loop::Attribute(Interpreter& interpreter,
                                                     std::string_view name) {
  if (name == "index") return Value::Int(index0_ + 1);
  if (name == "index0") return Value::Int(index0_);
  if (name == "first") return Value::Bool(index0_ == 0);
  if (name == "depth") return Value::Int(1);
  if (name == "depth0") return Value::Int(0);
  if (name == "last" || name == "nextitem") {
    LH_ASSIGN_OR_RETURN(const Value* next, Peek(interpreter));
    if (name == "last") return Value::Bool(next == nullptr);
    return next != nullptr ? *next : Value::Undefined("there is no next item");
  }
  if (name == "previtem") {
    return index0_ == 0 ? Value::Undefined("there is no previous item") : previous_;
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    LH_ASSIGN_OR_RETURN(const int64_t length, Length(interpreter));
    if (name == "length") return Value::Int(length);
    return Value::Int(length - index0_ - (name == "revindex" ? 0 : 1));
  }
  if (name == "cycle") {
    const auto cycle = [this](Interpreter&, const Args& args) { return Cycle(args); };
    return Value::Of(interpreter.New<Function>("loop.cycle", cycle));
  }
  if (name == "changed") {
    const auto changed = [this](Interpreter& runner, const Args& args) {
      return Changed(runner, args);
    };
    return Value::Of(interpreter.New<Function>("loop.changed", changed));
  }
  return std::nullopt;
}

}  // namespace longhaul::jinja
