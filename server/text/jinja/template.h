// A chat template in the Jinja language, as transformers renders it (jinja2's immutable sandbox
// with trim_blocks, lstrip_blocks and loop controls). Parsed once, immutable; any number of threads
// may render at the same time. Knows nothing of models, files or requests. No escaping of HTML.
//
// Differences from jinja2: integers have 64 bits; generators and functions cannot be printed;
// include, import, extends, block and recursive loops are not there; everything has a limit.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/base/status.h"
#include "server/text/jinja/limits.h"
#include "server/text/jinja/value.h"

namespace longhaul::jinja {

struct ParsedTemplate;

class Template {
 public:
  // InvalidArgument: "line 7: expected '%}', got ...".
  static absl::StatusOr<std::unique_ptr<const Template>> Parse(std::string_view source);
  ~Template();

  // InvalidArgument names the line; a text of raise_exception follows it word for word. `now` is
  // what strftime_now shows, in local time.
  absl::StatusOr<std::string> Render(const Dict& variables, std::time_t now,
                                     const Limits& limits = Limits()) const;

  // Whether the template names this variable anywhere.
  bool Uses(std::string_view variable) const;

 private:
  explicit Template(std::unique_ptr<const ParsedTemplate> parsed);

  const std::unique_ptr<const ParsedTemplate> parsed_;
};

}  // namespace longhaul::jinja
