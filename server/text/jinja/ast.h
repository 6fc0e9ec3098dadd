// A parsed template: statements and expressions. Immutable after parsing; shared by all threads.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "server/text/jinja/value.h"

namespace longhaul::jinja {

struct Filter;
struct Test;
struct Expr;
struct Statement;
using ExprPtr = std::unique_ptr<Expr>;  // nullptr where the grammar lets something be absent
using Block = std::vector<Statement>;

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class CompareOp : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };
enum class UnaryOp : uint8_t { kNot, kNegate, kPlus };

struct ArgNodes {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star;         // *list
  ExprPtr double_star;  // **dict
};

struct FilterCall {
  const Filter* filter;
  ArgNodes args;
  int line;
};

struct Constant {
  Value value;
};
struct Name {
  int id;  // index into Template's names
};
struct Attribute {
  ExprPtr object;
  std::string name;
};
struct Item {
  ExprPtr object;
  ExprPtr key;
};
struct Slice {
  ExprPtr object;
  ExprPtr begin, end, step;
};
struct Call {
  ExprPtr callee;
  ArgNodes args;
};
struct FilterExpr {
  ExprPtr input;
  FilterCall call;
};
struct TestExpr {
  ExprPtr input;
  const Test* test;
  ArgNodes args;
};
struct Unary {
  UnaryOp op;
  ExprPtr operand;
};
struct Binary {
  BinaryOp op;
  ExprPtr left, right;
};
struct Compare {  // a < b <= c
  ExprPtr first;
  std::vector<std::pair<CompareOp, ExprPtr>> rest;
};
struct Logical {
  bool is_and;
  ExprPtr left, right;
};
struct Concat {  // a ~ b ~ c
  std::vector<ExprPtr> parts;
};
struct Conditional {
  ExprPtr condition, then, otherwise;
};
struct SequenceExpr {
  SequenceKind kind;
  std::vector<ExprPtr> items;
};
struct DictExpr {
  std::vector<std::pair<ExprPtr, ExprPtr>> entries;
};

struct Expr {
  using Node =
      std::variant<Constant, Name, Attribute, Item, Slice, Call, FilterExpr, TestExpr, Unary,
                   Binary, Compare, Logical, Concat, Conditional, SequenceExpr, DictExpr>;
  Node node;
  int line = 0;
  int depth = 1;  // of the tree below, at most kMaxNodeDepth
};

// What a value is assigned to: a name, an attribute of a namespace, or several targets.
struct Target {
  int id = -1;
  std::string attribute;  // of the namespace `id`; empty: the name itself
  std::vector<Target> items;
  bool is_tuple = false;
};

struct Text {
  std::string text;
};
struct Output {
  ExprPtr value;
};
struct If {
  struct Branch {
    ExprPtr condition;
    Block body;
  };
  std::vector<Branch> branches;
  Block otherwise;
};
struct For {
  Target target;
  ExprPtr iterable, condition;
  Block body, otherwise;
};
struct Set {
  Target target;
  ExprPtr value;
};
struct SetBlock {
  Target target;
  std::vector<FilterCall> filters;
  Block body;
};
struct MacroNode {
  struct Parameter {
    int id;
    std::string name;
    ExprPtr default_value;
  };
  std::string name;
  int id = -1;
  std::vector<Parameter> parameters;
  Block body;
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;
};
struct CallBlock {
  ExprPtr call;  // a Call
  MacroNode caller;
};
struct FilterBlock {
  std::vector<FilterCall> filters;
  Block body;
};
struct With {  // also {% generation %}: a scope without names of its own
  std::vector<std::pair<Target, ExprPtr>> assignments;
  Block body;
};
struct LoopControl {
  bool is_break;
};

struct Statement {
  std::variant<Text, Output, If, For, Set, SetBlock, MacroNode, CallBlock, FilterBlock, With,
               LoopControl>
      node;
  int line = 0;
};

}  // namespace longhaul::jinja
