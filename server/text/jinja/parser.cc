#include "server/text/jinja/parser.h"

#include <fmt/format.h>

#include "server/text/jinja/filters.h"
#include "server/text/jinja/limits.h"
#include "server/text/jinja/parser_state.h"

namespace longhaul::jinja {
namespace {

std::string Describe(const Token& token) {
  switch (token.type) {
    case TokenType::kEnd:
      return "the end of the template";
    case TokenType::kData:
      return "text";
    case TokenType::kVariableBegin:
      return "'{{'";
    case TokenType::kBlockBegin:
      return "'{%'";
    case TokenType::kString:
      return "a string";
    default:
      return fmt::format("'{}'", token.text);
  }
}

}  // namespace

bool Parser::SkipIfName(std::string_view name) {
  if (!AtName(name)) return false;
  Skip();
  return true;
}

bool Parser::SkipIfOperator(std::string_view text) {
  if (!AtOperator(text)) return false;
  Skip();
  return true;
}

absl::Status Parser::Unexpected(std::string_view expected) const {
  return SyntaxError(line(), fmt::format("expected {}, got {}", expected, Describe(current())));
}

absl::Status Parser::ExpectOperator(std::string_view text) {
  return SkipIfOperator(text) ? absl::OkStatus() : Unexpected(fmt::format("'{}'", text));
}

absl::Status Parser::ExpectName(std::string_view name) {
  return SkipIfName(name) ? absl::OkStatus() : Unexpected(fmt::format("'{}'", name));
}

absl::StatusOr<std::string> Parser::ExpectIdentifier() {
  if (current().type != TokenType::kName) return Unexpected("a name");
  std::string name = current().text;
  Skip();
  return name;
}

absl::Status Parser::CheckDepth() const {
  if (depth_ <= kMaxNodeDepth) return absl::OkStatus();
  return SyntaxError(line(), fmt::format("nested deeper than {} levels", kMaxNodeDepth));
}

int Parser::NameId(const std::string& name) {
  const auto [it, is_new] = name_ids_.try_emplace(name, static_cast<int>(names_.size()));
  if (is_new) names_.push_back(name);
  return it->second;
}

absl::StatusOr<ParsedTemplate> Parser::Run() {
  ParsedTemplate parsed;
  LH_ASSIGN_OR_RETURN(parsed.body, ParseBody({}));
  parsed.names = std::move(names_);
  return parsed;
}

absl::StatusOr<Block> Parser::ParseBody(std::initializer_list<std::string_view> ends) {
  const DepthGuard guard(&depth_);
  LH_RETURN_IF_ERROR(CheckDepth());
  Block body;
  for (;;) {
    const int begin_line = line();
    switch (current().type) {
      case TokenType::kData:
        body.push_back({Text{current().text}, begin_line});
        Skip();
        continue;
      case TokenType::kVariableBegin: {
        Skip();
        LH_ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(Conditionals::kYes, false));
        if (current().type != TokenType::kVariableEnd) return Unexpected("'}}'");
        Skip();
        body.push_back({Output{std::move(value)}, begin_line});
        continue;
      }
      case TokenType::kBlockBegin: {
        Skip();
        const auto is_end = [this](std::string_view end) { return AtName(end); };
        if (std::any_of(ends.begin(), ends.end(), is_end)) return body;
        LH_ASSIGN_OR_RETURN(Statement statement, ParseStatement());
        body.push_back(std::move(statement));
        if (current().type != TokenType::kBlockEnd) return Unexpected("'%}'");
        Skip();
        continue;
      }
      default:
        if (ends.size() == 0) return body;
        return SyntaxError(begin_line, fmt::format("the template ends before '{}'", *ends.begin()));
    }
  }
}

absl::StatusOr<Block> Parser::ParseTagBody(std::initializer_list<std::string_view> ends) {
  SkipIfOperator(":");
  if (current().type != TokenType::kBlockEnd) return Unexpected("'%}'");
  Skip();
  return ParseBody(ends);
}

absl::StatusOr<Statement> Parser::ParseStatement() {
  if (current().type != TokenType::kName) return Unexpected("the name of a tag");
  const int begin_line = line();
  const std::string& tag = current().text;
  absl::StatusOr<Statement> statement = absl::UnknownError("");
  if (tag == "for") {
    statement = ParseFor();
  } else if (tag == "if") {
    statement = ParseIf();
  } else if (tag == "set") {
    statement = ParseSet();
  } else if (tag == "macro") {
    statement = ParseMacro();
  } else if (tag == "call") {
    statement = ParseCallBlock();
  } else if (tag == "filter") {
    statement = ParseFilterBlock();
  } else if (tag == "with") {
    statement = ParseWith();
  } else if (tag == "generation") {
    statement = ParseGeneration();
  } else if (tag == "break" || tag == "continue") {
    statement = ParseLoopControl();
  } else {
    return SyntaxError(begin_line,
                       fmt::format("the tag '{}' is not known or does not belong here", tag));
  }
  if (statement.ok()) statement->line = begin_line;
  return statement;
}

absl::StatusOr<Statement> Parser::ParseFor() {
  Skip();
  For loop;
  LH_ASSIGN_OR_RETURN(loop.target, ParseTarget(/*with_attribute=*/false));
  LH_RETURN_IF_ERROR(ExpectName("in"));
  LH_ASSIGN_OR_RETURN(loop.iterable, ParseTuple(Conditionals::kNo, false));
  if (SkipIfName("if")) {
    LH_ASSIGN_OR_RETURN(loop.condition, ParseExpression());
  }
  if (AtName("recursive")) return SyntaxError(line(), "recursive loops are not supported");
  ++n_loops_;
  LH_ASSIGN_OR_RETURN(loop.body, ParseTagBody({"endfor", "else"}));
  --n_loops_;
  if (SkipIfName("else")) {
    LH_ASSIGN_OR_RETURN(loop.otherwise, ParseTagBody({"endfor"}));
  }
  Skip();
  return Statement{std::move(loop)};
}

absl::StatusOr<Statement> Parser::ParseIf() {
  If node;
  do {
    Skip();  // if, elif
    If::Branch& branch = node.branches.emplace_back();
    LH_ASSIGN_OR_RETURN(branch.condition, ParseTuple(Conditionals::kNo, false));
    LH_ASSIGN_OR_RETURN(branch.body, ParseTagBody({"endif", "elif", "else"}));
  } while (AtName("elif"));
  if (SkipIfName("else")) {
    LH_ASSIGN_OR_RETURN(node.otherwise, ParseTagBody({"endif"}));
  }
  Skip();
  return Statement{std::move(node)};
}

absl::StatusOr<Target> Parser::ParseOneTarget(bool with_attribute) {
  const DepthGuard guard(&depth_);
  LH_RETURN_IF_ERROR(CheckDepth());
  if (SkipIfOperator("(")) {
    LH_ASSIGN_OR_RETURN(Target target, ParseTarget(with_attribute));
    LH_RETURN_IF_ERROR(ExpectOperator(")"));
    return target;
  }
  Target target;
  LH_ASSIGN_OR_RETURN(const std::string name, ExpectIdentifier());
  constexpr std::string_view kReserved[] = {"true",  "false", "none", "True",
                                            "False", "None",  "loop"};
  if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
    return SyntaxError(line(), fmt::format("'{}' cannot be assigned to", name));
  }
  target.id = NameId(name);
  if (with_attribute && SkipIfOperator(".")) {
    LH_ASSIGN_OR_RETURN(target.attribute, ExpectIdentifier());
  }
  return target;
}

absl::StatusOr<Target> Parser::ParseTarget(bool with_attribute) {
  LH_ASSIGN_OR_RETURN(Target first, ParseOneTarget(with_attribute));
  if (!AtOperator(",")) return first;
  Target tuple;
  tuple.is_tuple = true;
  tuple.items.push_back(std::move(first));
  while (SkipIfOperator(",")) {
    if (current().type != TokenType::kName && !AtOperator("(")) break;
    if (AtName("in")) break;
    LH_ASSIGN_OR_RETURN(Target item, ParseOneTarget(with_attribute));
    tuple.items.push_back(std::move(item));
  }
  return tuple;
}

absl::StatusOr<Statement> Parser::ParseSet() {
  Skip();
  LH_ASSIGN_OR_RETURN(Target target, ParseTarget(/*with_attribute=*/true));
  if (SkipIfOperator("=")) {
    LH_ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(Conditionals::kYes, false));
    return Statement{Set{std::move(target), std::move(value)}};
  }
  SetBlock block;
  block.target = std::move(target);
  while (SkipIfOperator("|")) {
    LH_ASSIGN_OR_RETURN(FilterCall call, ParseFilterCall());
    block.filters.push_back(std::move(call));
  }
  const int n_loops = std::exchange(n_loops_, 0);  // no break out of the block
  LH_ASSIGN_OR_RETURN(block.body, ParseTagBody({"endset"}));
  n_loops_ = n_loops;
  Skip();
  return Statement{std::move(block)};
}

absl::Status Parser::ParseSignature(MacroNode* macro) {
  LH_RETURN_IF_ERROR(ExpectOperator("("));
  while (!AtOperator(")")) {
    if (!macro->parameters.empty()) LH_RETURN_IF_ERROR(ExpectOperator(","));
    MacroNode::Parameter parameter;
    LH_ASSIGN_OR_RETURN(parameter.name, ExpectIdentifier());
    parameter.id = NameId(parameter.name);
    if (SkipIfOperator("=")) {
      LH_ASSIGN_OR_RETURN(parameter.default_value, ParseExpression());
    } else if (!macro->parameters.empty() && macro->parameters.back().default_value) {
      return SyntaxError(line(), fmt::format("the parameter '{}' needs a default, as the one "
                                             "before it has",
                                             parameter.name));
    }
    macro->parameters.push_back(std::move(parameter));
  }
  return ExpectOperator(")");
}

absl::Status Parser::ParseMacroBody(std::string_view end, MacroNode* macro) {
  const int n_loops = std::exchange(n_loops_, 0);
  macros_.push_back(macro);
  LH_ASSIGN_OR_RETURN(macro->body, ParseTagBody({end}));
  macros_.pop_back();
  n_loops_ = n_loops;
  Skip();
  return absl::OkStatus();
}

absl::StatusOr<Statement> Parser::ParseMacro() {
  Skip();
  MacroNode macro;
  LH_ASSIGN_OR_RETURN(macro.name, ExpectIdentifier());
  macro.id = NameId(macro.name);
  LH_RETURN_IF_ERROR(ParseSignature(&macro));
  LH_RETURN_IF_ERROR(ParseMacroBody("endmacro", &macro));
  return Statement{std::move(macro)};
}

absl::StatusOr<Statement> Parser::ParseCallBlock() {
  Skip();
  CallBlock block;
  block.caller.name = "caller";
  if (AtOperator("(")) LH_RETURN_IF_ERROR(ParseSignature(&block.caller));
  LH_ASSIGN_OR_RETURN(block.call, ParseExpression());
  if (!std::holds_alternative<Call>(block.call->node)) {
    return SyntaxError(block.call->line, "a call block needs the call of a macro");
  }
  LH_RETURN_IF_ERROR(ParseMacroBody("endcall", &block.caller));
  return Statement{std::move(block)};
}

absl::StatusOr<Statement> Parser::ParseFilterBlock() {
  Skip();
  FilterBlock block;
  do {
    LH_ASSIGN_OR_RETURN(FilterCall call, ParseFilterCall());
    block.filters.push_back(std::move(call));
  } while (SkipIfOperator("|"));
  const int n_loops = std::exchange(n_loops_, 0);
  LH_ASSIGN_OR_RETURN(block.body, ParseTagBody({"endfilter"}));
  n_loops_ = n_loops;
  Skip();
  return Statement{std::move(block)};
}

absl::StatusOr<Statement> Parser::ParseWith() {
  Skip();
  With with;
  while (current().type != TokenType::kBlockEnd) {
    if (!with.assignments.empty()) LH_RETURN_IF_ERROR(ExpectOperator(","));
    LH_ASSIGN_OR_RETURN(Target target, ParseTarget(/*with_attribute=*/false));
    LH_RETURN_IF_ERROR(ExpectOperator("="));
    LH_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    with.assignments.emplace_back(std::move(target), std::move(value));
  }
  LH_ASSIGN_OR_RETURN(with.body, ParseTagBody({"endwith"}));
  Skip();
  return Statement{std::move(with)};
}

absl::StatusOr<Statement> Parser::ParseGeneration() {
  Skip();
  const int n_loops = std::exchange(n_loops_, 0);
  With block;
  LH_ASSIGN_OR_RETURN(block.body, ParseTagBody({"endgeneration"}));
  n_loops_ = n_loops;
  Skip();
  return Statement{std::move(block)};
}

absl::StatusOr<Statement> Parser::ParseLoopControl() {
  const bool is_break = AtName("break");
  if (n_loops_ == 0) {
    return SyntaxError(line(), fmt::format("'{}' outside of a for", current().text));
  }
  Skip();
  return Statement{LoopControl{is_break}};
}

absl::StatusOr<ParsedTemplate> Parse(std::string_view source) {
  LH_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace longhaul::jinja
