// Runs a parsed template over one set of variables. Made for one rendering, used by one thread;
// owns every object and scope that comes up. Filters, tests and methods get it to charge their
// work, to call macros, and to look into values by Jinja's rules.
#pragma once

#include <ctime>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/jinja/ast.h"
#include "server/text/jinja/limits.h"
#include "server/text/jinja/object.h"
#include "server/text/jinja/parser.h"

namespace longhaul::jinja {

// Variables of a block. What is not found here is looked for in the parent.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables;  // by name id; few, so searched from the front
  bool captured = false;  // a macro looks into it: it lives until the rendering ends
};

class Interpreter {
 public:
  Interpreter(const ParsedTemplate& parsed, const Dict& variables, const Limits& limits,
              std::time_t now);
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  absl::StatusOr<std::string> Run();
  // After an error: where, and whether the template raised it itself (raise_exception).
  int error_line() const { return error_line_; }
  bool raised() const { return raised_; }

  // Counts what is evaluated inside each other while it lives; status() is an error at the limit.
  class DepthGuard {
   public:
    explicit DepthGuard(Interpreter* interpreter) : interpreter_(interpreter) {
      ++interpreter_->depth_;
    }
    ~DepthGuard() { --interpreter_->depth_; }
    DepthGuard(const DepthGuard&) = delete;
    DepthGuard& operator=(const DepthGuard&) = delete;
    absl::Status status() const;

   private:
    Interpreter* interpreter_;
  };

  // Counts work; an error when it was too much.
  absl::Status Charge(int64_t n_steps);
  // Refuses a text of so many bytes.
  absl::Status CheckLength(size_t n_bytes) const;
  // Before a text of so many bytes is made or searched.
  absl::Status ChargeText(size_t n_bytes);
  const Limits& limits() const { return limits_; }
  std::time_t now() const { return now_; }
  void set_raised() { raised_ = true; }

  // str(value).
  absl::StatusOr<std::string> Str(const Value& value);
  // value.name and value[key]; undefined when there is no such thing.
  absl::StatusOr<Value> GetAttribute(const Value& value, std::string_view name);
  absl::StatusOr<Value> GetItem(const Value& value, const Value& key);
  absl::StatusOr<Value> GetSlice(const Value& value, const Value& begin, const Value& end,
                                 const Value& step);
  absl::StatusOr<Value> Call(const Value& callee, const Args& args);
  // What a for loop would go over, as a list or another sequence that is not an iterator.
  absl::StatusOr<Value> ToSequence(const Value& value);
  absl::StatusOr<bool> LoopCondition(const For& loop, Scope* outer, const Value& item);

  template <typename T, typename... Rest>
  T* New(Rest&&... rest) {
    auto object = std::make_unique<T>(std::forward<Rest>(rest)...);
    T* raw = object.get();
    objects_.push_back(std::move(object));
    return raw;
  }

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };

  // A scope for a block; given back at its end unless a macro captured it.
  class ScopeHolder {
   public:
    ScopeHolder(Interpreter* interpreter, Scope* parent);
    ~ScopeHolder();
    ScopeHolder(const ScopeHolder&) = delete;
    ScopeHolder& operator=(const ScopeHolder&) = delete;
    Scope* get() const { return scope_; }
    Scope* operator->() const { return scope_; }

   private:
    Interpreter* interpreter_;
    Scope* scope_;
  };

  int IdOf(std::string_view name) const;
  const Value* Find(int id, const Scope* scope) const;
  static void Assign(Scope* scope, int id, Value value);
  static void Capture(Scope* scope);

  // Statements (interpreter.cc)
  absl::StatusOr<Flow> ExecBlock(const Block& block, Scope* scope);
  absl::StatusOr<Flow> Exec(const Statement& statement, Scope* scope);
  absl::StatusOr<Flow> Exec(const Text& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const Output& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const If& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const For& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const Set& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const SetBlock& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const MacroNode& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const CallBlock& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const FilterBlock& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const With& node, Scope* scope);
  absl::StatusOr<Flow> Exec(const LoopControl& node, Scope* scope);
  absl::Status Write(const Value& value);
  // What a block writes, in a scope of its own.
  absl::StatusOr<Value> Captured(const Block& block, Scope* parent);
  absl::StatusOr<Value> ApplyFilters(const std::vector<FilterCall>& filters, Value value,
                                     Scope* scope);
  absl::Status AssignTarget(const Target& target, Value value, Scope* scope);
  absl::StatusOr<Value> CallMacro(const Macro& macro, const Args& args);
  absl::Status BindMacro(const MacroNode& node, const Args& args, Scope* scope);

  // Expressions (interpreter_expr.cc)
  absl::StatusOr<Value> Eval(const Expr& expr, Scope* scope);
  absl::StatusOr<Value> EvalOrNone(const ExprPtr& expr, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Constant& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Name& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Attribute& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Item& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Slice& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const jinja::Call& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const FilterExpr& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const TestExpr& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Unary& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Binary& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Compare& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Logical& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Concat& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const Conditional& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const SequenceExpr& node, Scope* scope);
  absl::StatusOr<Value> EvalNode(const DictExpr& node, Scope* scope);
  absl::StatusOr<Value> EvalCall(const jinja::Call& node, Scope* scope,
                                 std::optional<Value> caller);
  absl::StatusOr<Args> EvalArgs(const ArgNodes& nodes, Scope* scope);
  absl::StatusOr<Value> ApplyFilter(const FilterCall& call, const Value& input, Scope* scope);

  const ParsedTemplate& parsed_;
  const Limits limits_;
  const std::time_t now_;
  int64_t steps_left_;
  int depth_ = 0;
  int error_line_ = 0;
  bool raised_ = false;

  int loop_id_, caller_id_, kwargs_id_, varargs_id_;
  std::vector<std::optional<Value>> globals_;  // by name id
  std::deque<Scope> scopes_;
  std::vector<Scope*> free_scopes_;
  std::vector<std::unique_ptr<Object>> objects_;
  std::string* out_ = nullptr;  // what is being written: the whole output, or that of a block
};

// The functions that every template can call, by name; nullopt: no such function.
std::optional<Value> MakeGlobalFunction(Interpreter& interpreter, std::string_view name);

}  // namespace longhaul::jinja
