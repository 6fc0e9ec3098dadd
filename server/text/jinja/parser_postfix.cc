// What may follow a value: attributes, items, calls, filters and tests.

#include <fmt/format.h>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/parser_state.h"

namespace longhaul::jinja {

int Parser::DepthOf(const ArgNodes& args) {
  int depth = 0;
  const auto see = [&depth](const ExprPtr& expr) {
    if (expr) depth = std::max(depth, expr->depth);
  };
  for (const ExprPtr& arg : args.positional) see(arg);
  for (const auto& [name, arg] : args.named) see(arg);
  see(args.star);
  see(args.double_star);
  return depth;
}

absl::StatusOr<ExprPtr> Parser::ParsePostfix(ExprPtr expr) {
  for (;;) {
    if (AtOperator(".") || AtOperator("[")) {
      LH_ASSIGN_OR_RETURN(expr, ParseSubscript(std::move(expr)));
    } else if (AtOperator("(")) {
      LH_ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseFiltersAndTests(ExprPtr expr) {
  for (;;) {
    if (SkipIfOperator("|")) {
      LH_ASSIGN_OR_RETURN(FilterCall call, ParseFilterCall());
      const int depth = DepthOf({expr.get()});
      const int call_line = call.line;
      FilterExpr filter{std::move(expr), std::move(call)};
      const int args_depth = DepthOf(filter.call.args);
      LH_ASSIGN_OR_RETURN(expr, Make(call_line, std::move(filter), std::max(depth, args_depth)));
    } else if (SkipIfName("is")) {
      LH_ASSIGN_OR_RETURN(expr, ParseTest(std::move(expr)));
    } else if (AtOperator("(")) {
      LH_ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> Parser::ParseSubscript(ExprPtr object) {
  const int begin_line = line();
  const Expr* child = object.get();
  if (SkipIfOperator(".")) {
    if (current().type == TokenType::kInteger) {
      LH_ASSIGN_OR_RETURN(ExprPtr key, Make(line(), Constant{Value::Int(current().integer)}));
      Skip();
      return Make(begin_line, Item{std::move(object), std::move(key)}, DepthOf({child}));
    }
    LH_ASSIGN_OR_RETURN(std::string name, ExpectIdentifier());
    return Make(begin_line, Attribute{std::move(object), std::move(name)}, DepthOf({child}));
  }
  Skip();  // [
  ExprPtr parts[3];
  bool is_slice = false;
  for (size_t i = 0; i < 3; ++i) {
    if (!AtOperator(":") && !AtOperator("]")) {
      LH_ASSIGN_OR_RETURN(parts[i], ParseExpression());
    }
    if (i == 2 || !SkipIfOperator(":")) break;
    is_slice = true;
  }
  LH_RETURN_IF_ERROR(ExpectOperator("]"));
  const int depth = DepthOf({child, parts[0].get(), parts[1].get(), parts[2].get()});
  if (is_slice) {
    return Make(
        begin_line,
        Slice{std::move(object), std::move(parts[0]), std::move(parts[1]), std::move(parts[2])},
        depth);
  }
  if (!parts[0]) return SyntaxError(begin_line, "expected an index between '[' and ']'");
  return Make(begin_line, Item{std::move(object), std::move(parts[0])}, depth);
}

absl::StatusOr<ArgNodes> Parser::ParseArgs() {
  LH_RETURN_IF_ERROR(ExpectOperator("("));
  ArgNodes args;
  bool first = true;
  while (!AtOperator(")")) {
    if (!first) {
      LH_RETURN_IF_ERROR(ExpectOperator(","));
      if (AtOperator(")")) break;
    }
    first = false;
    if (args.double_star || (args.star && AtOperator("*"))) {
      return SyntaxError(line(), "nothing may follow '**' in a call, and '*' stands once");
    }
    if (SkipIfOperator("*")) {
      LH_ASSIGN_OR_RETURN(args.star, ParseExpression());
    } else if (SkipIfOperator("**")) {
      LH_ASSIGN_OR_RETURN(args.double_star, ParseExpression());
    } else if (current().type == TokenType::kName && next().Is(TokenType::kOperator, "=")) {
      std::string name = current().text;
      Skip();
      Skip();
      LH_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      args.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (args.star || !args.named.empty()) {
        return SyntaxError(line(), "an argument without a name follows one with a name");
      }
      LH_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      args.positional.push_back(std::move(value));
    }
  }
  LH_RETURN_IF_ERROR(ExpectOperator(")"));
  return args;
}

absl::StatusOr<ExprPtr> Parser::ParseCall(ExprPtr callee) {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ArgNodes args, ParseArgs());
  const Expr* child = callee.get();
  const int depth = std::max(DepthOf(args), DepthOf({child}));
  return Make(begin_line, Call{std::move(callee), std::move(args)}, depth);
}

absl::StatusOr<FilterCall> Parser::ParseFilterCall() {
  FilterCall call;
  call.line = line();
  LH_ASSIGN_OR_RETURN(const std::string name, ExpectIdentifier());
  call.filter = FindFilter(name);
  if (call.filter == nullptr) {
    return SyntaxError(call.line, fmt::format("no filter named '{}'", name));
  }
  if (AtOperator("(")) {
    LH_ASSIGN_OR_RETURN(call.args, ParseArgs());
  }
  return call;
}

absl::StatusOr<ExprPtr> Parser::ParseTest(ExprPtr input) {
  const int begin_line = line();
  const bool negated = SkipIfName("not");
  LH_ASSIGN_OR_RETURN(const std::string name, ExpectIdentifier());
  const Test* test = FindTest(name);
  if (test == nullptr) return SyntaxError(begin_line, fmt::format("no test named '{}'", name));
  ArgNodes args;
  const TokenType type = current().type;
  if (AtOperator("(")) {
    LH_ASSIGN_OR_RETURN(args, ParseArgs());
  } else if (type == TokenType::kString || type == TokenType::kInteger ||
             type == TokenType::kFloat || AtOperator("[") || AtOperator("{") ||
             (type == TokenType::kName && !AtName("else") && !AtName("or") && !AtName("and"))) {
    if (AtName("is")) return SyntaxError(line(), "tests with 'is' cannot follow each other");
    LH_ASSIGN_OR_RETURN(ExprPtr arg, ParsePrimary());
    LH_ASSIGN_OR_RETURN(arg, ParsePostfix(std::move(arg)));
    args.positional.push_back(std::move(arg));
  }
  const Expr* child = input.get();
  const int depth = std::max(DepthOf(args), DepthOf({child}));
  LH_ASSIGN_OR_RETURN(ExprPtr expr,
                      Make(begin_line, TestExpr{std::move(input), test, std::move(args)}, depth));
  if (!negated) return expr;
  child = expr.get();
  return Make(begin_line, Unary{UnaryOp::kNot, std::move(expr)}, DepthOf({child}));
}

}  // namespace longhaul::jinja
