#include "server/text/jinja/template.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/text/detokenizer.h"
#include "server/text/jinja/interpreter.h"
#include "server/text/jinja/parser.h"

namespace longhaul::jinja {

Template::Template(std::unique_ptr<const ParsedTemplate> parsed) : parsed_(std::move(parsed)) {}
Template::~Template() = default;

absl::StatusOr<std::unique_ptr<const Template>> Template::Parse(std::string_view source) {
  if (static_cast<int64_t>(source.size()) > kMaxTemplate_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("{} bytes, at most {} are accepted", source.size(), kMaxTemplate_bytes));
  }
  if (const size_t at = FindInvalidUtf8(source); at != std::string_view::npos) {
    return absl::InvalidArgumentError(fmt::format("not valid UTF-8 at byte {}", at));
  }
  LH_ASSIGN_OR_RETURN(ParsedTemplate parsed, jinja::Parse(source));
  auto owned = std::make_unique<const ParsedTemplate>(std::move(parsed));
  return std::unique_ptr<const Template>(new Template(std::move(owned)));
}

absl::StatusOr<std::string> Template::Render(const Dict& variables, std::time_t now,
                                             const Limits& limits) const {
  Interpreter interpreter(*parsed_, variables, limits, now);
  absl::StatusOr<std::string> text = interpreter.Run();
  if (text.ok()) return text;
  const std::string message(text.status().message());
  if (interpreter.raised()) {
    return absl::InvalidArgumentError(
        fmt::format("the chat template refuses this conversation (its line {}): {}",
                    interpreter.error_line(), message));
  }
  return absl::InvalidArgumentError(
      fmt::format("the chat template fails in line {}: {}", interpreter.error_line(), message));
}

bool Template::Uses(std::string_view variable) const {
  const auto& names = parsed_->names;
  return std::find(names.begin(), names.end(), variable) != names.end();
}

}  // namespace longhaul::jinja
