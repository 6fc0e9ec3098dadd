// The parser in one class: statements (parser.cc), operators and literals (parser_expr.cc), and
// what may follow a value (parser_postfix.cc). Lives on the stack of Parse().
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "server/text/jinja/lexer.h"
#include "server/text/jinja/parser.h"

namespace longhaul::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<ParsedTemplate> Run();

 private:
  // Counts recursion while it lives.
  class DepthGuard {
   public:
    explicit DepthGuard(int* depth) : depth_(depth) { ++*depth_; }
    ~DepthGuard() { --*depth_; }
    DepthGuard(const DepthGuard&) = delete;
    DepthGuard& operator=(const DepthGuard&) = delete;

   private:
    int* depth_;
  };

  // Tokens
  const Token& current() const { return tokens_[pos_]; }
  const Token& next() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  bool AtName(std::string_view name) const { return current().Is(TokenType::kName, name); }
  bool AtOperator(std::string_view text) const { return current().Is(TokenType::kOperator, text); }
  void Skip() { pos_ = std::min(pos_ + 1, tokens_.size() - 1); }
  bool SkipIfName(std::string_view name);
  bool SkipIfOperator(std::string_view text);
  absl::Status ExpectOperator(std::string_view text);
  absl::Status ExpectName(std::string_view name);
  absl::StatusOr<std::string> ExpectIdentifier();
  absl::Status Unexpected(std::string_view expected) const;
  absl::Status CheckDepth() const;
  int NameId(const std::string& name);

  // Statements
  // Up to a block tag that begins with one of `ends`, which becomes the current token.
  absl::StatusOr<Block> ParseBody(std::initializer_list<std::string_view> ends);
  // The body of a tag, from the end of the tag, and the end tag's name.
  absl::StatusOr<Block> ParseTagBody(std::initializer_list<std::string_view> ends);
  absl::StatusOr<Statement> ParseStatement();
  absl::StatusOr<Statement> ParseFor();
  absl::StatusOr<Statement> ParseIf();
  absl::StatusOr<Statement> ParseSet();
  absl::StatusOr<Statement> ParseMacro();
  absl::StatusOr<Statement> ParseCallBlock();
  absl::StatusOr<Statement> ParseFilterBlock();
  absl::StatusOr<Statement> ParseWith();
  absl::StatusOr<Statement> ParseGeneration();
  absl::StatusOr<Statement> ParseLoopControl();
  absl::Status ParseSignature(MacroNode* macro);
  absl::Status ParseMacroBody(std::string_view end, MacroNode* macro);
  absl::StatusOr<Target> ParseTarget(bool with_attribute);
  absl::StatusOr<Target> ParseOneTarget(bool with_attribute);

  // Expressions
  enum class Conditionals : bool { kNo, kYes };
  // Several with commas between them are a tuple.
  absl::StatusOr<ExprPtr> ParseTuple(Conditionals conditionals, bool in_parentheses);
  absl::StatusOr<ExprPtr> ParseExpression() { return ParseConditional(); }
  absl::StatusOr<ExprPtr> ParseConditional();
  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseSum();
  absl::StatusOr<ExprPtr> ParseConcat();
  absl::StatusOr<ExprPtr> ParseProduct();
  absl::StatusOr<ExprPtr> ParsePower();
  absl::StatusOr<ExprPtr> ParseUnary(bool with_filters);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParseName();
  absl::StatusOr<ExprPtr> ParseList();
  absl::StatusOr<ExprPtr> ParseDict();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseFiltersAndTests(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object);
  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr input);
  absl::StatusOr<FilterCall> ParseFilterCall();  // from the filter's name on
  absl::StatusOr<ArgNodes> ParseArgs();
  std::optional<CompareOp> SkipCompareOp();

  // A node above children of this depth; refuses trees that are too deep.
  static absl::StatusOr<ExprPtr> Make(int line, Expr::Node node, int depth = 0);
  static int DepthOf(std::initializer_list<const Expr*> children);  // may be null
  static int DepthOf(const ArgNodes& args);

  const std::vector<Token> tokens_;
  size_t pos_ = 0;
  int depth_ = 0;
  int n_loops_ = 0;  // for tags around the current place, in this function
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, int> name_ids_;
  std::vector<MacroNode*> macros_;  // around the current place
};

}  // namespace longhaul::jinja
