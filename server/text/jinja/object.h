// What a rendering makes besides plain values: namespaces, macros, loops, bound methods, functions.
// The Interpreter owns all of them until it is done, so Values may point to each other in circles.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/jinja/value.h"

namespace longhaul::jinja {

class Interpreter;
struct Scope;
struct MacroNode;
struct For;

// Arguments of a call, in the order they were written.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

class Object {
 public:
  virtual ~Object() = default;
  virtual std::string_view type_name() const = 0;
  virtual bool callable() const { return false; }
};

class Namespace final : public Object {
 public:
  explicit Namespace(Dict attributes) : attributes_(std::move(attributes)) {}
  std::string_view type_name() const override { return "namespace"; }
  const Value* Find(std::string_view name) const { return attributes_.Find(name); }
  void Set(std::string name, Value value) { attributes_.Set(std::move(name), std::move(value)); }

 private:
  Dict attributes_;
};

// A macro, or the body of a call block, which is the macro `caller`.
class Macro final : public Object {
 public:
  Macro(const MacroNode* node, Scope* scope) : node_(node), scope_(scope) {}
  std::string_view type_name() const override { return "macro"; }
  bool callable() const override { return true; }
  const MacroNode& node() const { return *node_; }
  Scope* scope() const { return scope_; }  // where it was defined; kept alive by the Interpreter

 private:
  const MacroNode* node_;
  Scope* scope_;
};

// A global function, or a method with the value it belongs to.
class Function final : public Object {
 public:
  using Body = std::function<absl::StatusOr<Value>(Interpreter&, const Args&)>;
  Function(std::string name, Body body) : name_(std::move(name)), body_(std::move(body)) {}
  std::string_view type_name() const override { return "function"; }
  bool callable() const override { return true; }
  const std::string& name() const { return name_; }
  absl::StatusOr<Value> Call(Interpreter& interpreter, const Args& args) const {
    return body_(interpreter, args);
  }

 private:
  std::string name_;
  Body body_;
};

// `loop` inside a for. Items pass the loop's condition one at a time, when they are needed, because
// the condition may look at what earlier rounds stored in a namespace.
class Loop final : public Object {
 public:
  Loop(const For* node, Value iterable, Scope* outer)
      : node_(node), iterable_(std::move(iterable)), outer_(outer) {}
  std::string_view type_name() const override { return "loop"; }

  // Goes to the next item; false at the end.
  absl::StatusOr<bool> Advance(Interpreter& interpreter);
  const Value& current() const { return current_; }
  // loop.index, loop.last, ...; nullopt: no such attribute.
  absl::StatusOr<std::optional<Value>> Attribute(Interpreter& interpreter, std::string_view name);

 private:
  absl::StatusOr<Value> Cycle(const Args& args) const;
  absl::StatusOr<Value> Changed(Interpreter& interpreter, const Args& args);
  absl::StatusOr<std::optional<Value>> Pull(Interpreter& interpreter);
  // The item after the current one, which it keeps for Advance; nullptr at the end.
  absl::StatusOr<const Value*> Peek(Interpreter& interpreter);
  absl::StatusOr<int64_t> Length(Interpreter& interpreter);

  const For* node_;
  const Value iterable_;  // a sequence
  Scope* const outer_;
  size_t position_ = 0;  // of the next item that was not pulled
  int64_t index0_ = -1;
  Value current_, previous_;
  std::deque<Value> ahead_;  // pulled and not yet current
  std::optional<std::vector<Value>> last_changed_;
};

}  // namespace longhaul::jinja
