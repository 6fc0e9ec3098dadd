// libFuzzer: a template and JSON for its variables, with a zero byte between them. Whatever it is,
// it ends soon, with a text inside the limits or with an error that names a line.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/text/jinja/json_value.h"
#include "server/text/jinja/template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longhaul::jinja;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t border = input.find('\0');
  const auto parsed = Template::Parse(input.substr(0, border));
  if (!parsed.ok()) return 0;
  Dict variables;
  if (border != std::string_view::npos) {
    const auto json = ParseJsonValue(input.substr(border + 1));
    if (json.ok() && json->is_dict()) variables = json->dict();
  }
  Limits limits;
  limits.max_steps = 200'000;
  limits.max_output_bytes = 1 << 20;
  const auto text = (*parsed)->Render(variables, 1'700'000'000, limits);
  if (text.ok() ? static_cast<int64_t>(text->size()) > limits.max_output_bytes
                : text.status().message().find("line ") == std::string::npos) {
    std::abort();
  }
  return 0;
}
