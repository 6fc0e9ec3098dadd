// Operators and literals, in jinja2's order of precedence.

#include <fmt/format.h>

#include <optional>

#include "server/text/jinja/limits.h"
#include "server/text/jinja/parser_state.h"

namespace longhaul::jinja {

int Parser::DepthOf(std::initializer_list<const Expr*> children) {
  int depth = 0;
  for (const Expr* child : children) {
    if (child != nullptr) depth = std::max(depth, child->depth);
  }
  return depth;
}

absl::StatusOr<ExprPtr> Parser::Make(int line, Expr::Node node, int depth) {
  if (depth >= kMaxNodeDepth) {
    return SyntaxError(line, fmt::format("an expression nests deeper than {} levels; split it "
                                         "with {{% set %}}",
                                         kMaxNodeDepth));
  }
  auto expr = std::make_unique<Expr>();
  expr->line = line;
  expr->depth = depth + 1;
  expr->node = std::move(node);
  return expr;
}

absl::StatusOr<ExprPtr> Parser::ParseTuple(Conditionals conditionals, bool in_parentheses) {
  const int begin_line = line();
  const auto at_end = [this] {
    return current().type == TokenType::kVariableEnd || current().type == TokenType::kBlockEnd ||
           AtOperator(")") || AtName("recursive");
  };
  SequenceExpr tuple{SequenceKind::kTuple, {}};
  bool is_tuple = false;
  int depth = 0;
  while (!at_end()) {
    LH_ASSIGN_OR_RETURN(ExprPtr item,
                        conditionals == Conditionals::kYes ? ParseConditional() : ParseOr());
    depth = std::max(depth, item->depth);
    tuple.items.push_back(std::move(item));
    if (!SkipIfOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!tuple.items.empty()) return std::move(tuple.items[0]);
    if (!in_parentheses) return Unexpected("an expression");
  }
  return Make(begin_line, std::move(tuple), depth);
}

absl::StatusOr<ExprPtr> Parser::ParseConditional() {
  const DepthGuard guard(&depth_);
  LH_RETURN_IF_ERROR(CheckDepth());
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr then, ParseOr());
  while (SkipIfName("if")) {
    LH_ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    ExprPtr otherwise;
    if (SkipIfName("else")) {
      LH_ASSIGN_OR_RETURN(otherwise, ParseConditional());
    }
    const int depth = DepthOf({condition.get(), then.get(), otherwise.get()});
    LH_ASSIGN_OR_RETURN(
        then,
        Make(begin_line, Conditional{std::move(condition), std::move(then), std::move(otherwise)},
             depth));
  }
  return then;
}

absl::StatusOr<ExprPtr> Parser::ParseOr() {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr left, ParseAnd());
  while (SkipIfName("or")) {
    LH_ASSIGN_OR_RETURN(ExprPtr right, ParseAnd());
    const int depth = DepthOf({left.get(), right.get()});
    LH_ASSIGN_OR_RETURN(left,
                        Make(begin_line, Logical{false, std::move(left), std::move(right)}, depth));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseAnd() {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr left, ParseNot());
  while (SkipIfName("and")) {
    LH_ASSIGN_OR_RETURN(ExprPtr right, ParseNot());
    const int depth = DepthOf({left.get(), right.get()});
    LH_ASSIGN_OR_RETURN(left,
                        Make(begin_line, Logical{true, std::move(left), std::move(right)}, depth));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseNot() {
  const DepthGuard guard(&depth_);
  LH_RETURN_IF_ERROR(CheckDepth());
  const int begin_line = line();
  if (!SkipIfName("not")) return ParseCompare();
  LH_ASSIGN_OR_RETURN(ExprPtr operand, ParseNot());
  const Expr* child = operand.get();
  return Make(begin_line, Unary{UnaryOp::kNot, std::move(operand)}, DepthOf({child}));
}

std::optional<CompareOp> Parser::SkipCompareOp() {
  constexpr std::pair<std::string_view, CompareOp> kOps[] = {
      {"==", CompareOp::kEq}, {"!=", CompareOp::kNe}, {"<", CompareOp::kLt},
      {"<=", CompareOp::kLe}, {">", CompareOp::kGt},  {">=", CompareOp::kGe}};
  for (const auto& [text, op] : kOps) {
    if (SkipIfOperator(text)) return op;
  }
  if (SkipIfName("in")) return CompareOp::kIn;
  if (AtName("not") && next().Is(TokenType::kName, "in")) {
    Skip();
    Skip();
    return CompareOp::kNotIn;
  }
  return std::nullopt;
}

absl::StatusOr<ExprPtr> Parser::ParseCompare() {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr first, ParseSum());
  std::optional<CompareOp> op = SkipCompareOp();
  if (!op) return first;
  Compare compare;
  int depth = first->depth;
  compare.first = std::move(first);
  for (; op; op = SkipCompareOp()) {
    LH_ASSIGN_OR_RETURN(ExprPtr operand, ParseSum());
    depth = std::max(depth, operand->depth);
    compare.rest.emplace_back(*op, std::move(operand));
  }
  return Make(begin_line, std::move(compare), depth);
}

absl::StatusOr<ExprPtr> Parser::ParseSum() {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr left, ParseConcat());
  while (AtOperator("+") || AtOperator("-")) {
    const BinaryOp op = AtOperator("+") ? BinaryOp::kAdd : BinaryOp::kSub;
    Skip();
    LH_ASSIGN_OR_RETURN(ExprPtr right, ParseConcat());
    const int depth = DepthOf({left.get(), right.get()});
    LH_ASSIGN_OR_RETURN(left,
                        Make(begin_line, Binary{op, std::move(left), std::move(right)}, depth));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseConcat() {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr first, ParseProduct());
  if (!AtOperator("~")) return first;
  Concat concat;
  int depth = first->depth;
  concat.parts.push_back(std::move(first));
  while (SkipIfOperator("~")) {
    LH_ASSIGN_OR_RETURN(ExprPtr part, ParseProduct());
    depth = std::max(depth, part->depth);
    concat.parts.push_back(std::move(part));
  }
  return Make(begin_line, std::move(concat), depth);
}

absl::StatusOr<ExprPtr> Parser::ParseProduct() {
  constexpr std::pair<std::string_view, BinaryOp> kOps[] = {{"*", BinaryOp::kMul},
                                                            {"/", BinaryOp::kDiv},
                                                            {"//", BinaryOp::kFloorDiv},
                                                            {"%", BinaryOp::kMod}};
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr left, ParsePower());
  for (;;) {
    const auto* op = std::find_if(std::begin(kOps), std::end(kOps), [this](const auto& candidate) {
      return SkipIfOperator(candidate.first);
    });
    if (op == std::end(kOps)) return left;
    LH_ASSIGN_OR_RETURN(ExprPtr right, ParsePower());
    const int depth = DepthOf({left.get(), right.get()});
    LH_ASSIGN_OR_RETURN(
        left, Make(begin_line, Binary{op->second, std::move(left), std::move(right)}, depth));
  }
}

absl::StatusOr<ExprPtr> Parser::ParsePower() {
  const int begin_line = line();
  LH_ASSIGN_OR_RETURN(ExprPtr left, ParseUnary(/*with_filters=*/true));
  while (SkipIfOperator("**")) {
    LH_ASSIGN_OR_RETURN(ExprPtr right, ParseUnary(/*with_filters=*/true));
    const int depth = DepthOf({left.get(), right.get()});
    LH_ASSIGN_OR_RETURN(
        left, Make(begin_line, Binary{BinaryOp::kPow, std::move(left), std::move(right)}, depth));
  }
  return left;
}

absl::StatusOr<ExprPtr> Parser::ParseUnary(bool with_filters) {
  const DepthGuard guard(&depth_);
  LH_RETURN_IF_ERROR(CheckDepth());
  const int begin_line = line();
  ExprPtr expr;
  if (AtOperator("-") || AtOperator("+")) {
    const UnaryOp op = AtOperator("-") ? UnaryOp::kNegate : UnaryOp::kPlus;
    Skip();
    LH_ASSIGN_OR_RETURN(ExprPtr operand, ParseUnary(/*with_filters=*/false));
    const Expr* child = operand.get();
    LH_ASSIGN_OR_RETURN(expr, Make(begin_line, Unary{op, std::move(operand)}, DepthOf({child})));
  } else {
    LH_ASSIGN_OR_RETURN(expr, ParsePrimary());
  }
  LH_ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
  return with_filters ? ParseFiltersAndTests(std::move(expr)) : std::move(expr);
}

absl::StatusOr<ExprPtr> Parser::ParseName() {
  const int begin_line = line();
  const std::string name = current().text;
  Skip();
  if (name == "true" || name == "True") return Make(begin_line, Constant{Value::Bool(true)});
  if (name == "false" || name == "False") return Make(begin_line, Constant{Value::Bool(false)});
  if (name == "none" || name == "None") return Make(begin_line, Constant{Value::None()});
  for (MacroNode* macro : macros_) {
    macro->uses_caller |= name == "caller";
    macro->uses_kwargs |= name == "kwargs";
    macro->uses_varargs |= name == "varargs";
  }
  return Make(begin_line, Name{NameId(name)});
}

absl::StatusOr<ExprPtr> Parser::ParsePrimary() {
  const Token& token = current();
  switch (token.type) {
    case TokenType::kName:
      return ParseName();
    case TokenType::kString: {
      std::string text;
      for (; current().type == TokenType::kString; Skip()) text += current().text;
      return Make(token.line, Constant{Value::String(std::move(text))});
    }
    case TokenType::kInteger:
      Skip();
      return Make(token.line, Constant{Value::Int(token.integer)});
    case TokenType::kFloat:
      Skip();
      return Make(token.line, Constant{Value::Float(token.number)});
    default:
      break;
  }
  if (AtOperator("[")) return ParseList();
  if (AtOperator("{")) return ParseDict();
  if (!SkipIfOperator("(")) return Unexpected("an expression");
  LH_ASSIGN_OR_RETURN(ExprPtr expr, ParseTuple(Conditionals::kYes, /*in_parentheses=*/true));
  LH_RETURN_IF_ERROR(ExpectOperator(")"));
  return expr;
}

absl::StatusOr<ExprPtr> Parser::ParseList() {
  const int begin_line = line();
  Skip();
  SequenceExpr list{SequenceKind::kList, {}};
  int depth = 0;
  while (!AtOperator("]")) {
    if (!list.items.empty()) {
      LH_RETURN_IF_ERROR(ExpectOperator(","));
      if (AtOperator("]")) break;
    }
    LH_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
    depth = std::max(depth, item->depth);
    list.items.push_back(std::move(item));
  }
  LH_RETURN_IF_ERROR(ExpectOperator("]"));
  return Make(begin_line, std::move(list), depth);
}

absl::StatusOr<ExprPtr> Parser::ParseDict() {
  const int begin_line = line();
  Skip();
  DictExpr dict;
  int depth = 0;
  while (!AtOperator("}")) {
    if (!dict.entries.empty()) {
      LH_RETURN_IF_ERROR(ExpectOperator(","));
      if (AtOperator("}")) break;
    }
    LH_ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
    LH_RETURN_IF_ERROR(ExpectOperator(":"));
    LH_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    depth = std::max({depth, key->depth, value->depth});
    dict.entries.emplace_back(std::move(key), std::move(value));
  }
  LH_RETURN_IF_ERROR(ExpectOperator("}"));
  return Make(begin_line, std::move(dict), depth);
}

}  // namespace longhaul::jinja
