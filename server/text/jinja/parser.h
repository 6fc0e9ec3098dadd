// Tokens to a syntax tree, with jinja2's grammar. What templates of models do not need (include,
// import, extends, block, recursive loops) is refused by its name. Stateless; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "server/text/jinja/ast.h"

namespace longhaul::jinja {

struct ParsedTemplate {
  Block body;
  std::vector<std::string> names;  // of variables, by id
};

// Errors are InvalidArgument with the line.
absl::StatusOr<ParsedTemplate> Parse(std::string_view source);

}  // namespace longhaul::jinja
