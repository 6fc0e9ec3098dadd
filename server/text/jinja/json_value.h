// JSON text to template values, in the order in which the text names the keys: templates print
// tools as JSON, and models were trained on the order of the schema. Pure function; any thread.
#pragma once

#include <string_view>

#include "kernels/base/status.h"
#include "server/text/jinja/value.h"

namespace longhaul::jinja {

// InvalidArgument: not valid JSON, or nested deeper than 64 levels. Integers beyond 64 bits become
// floats; of equal keys the last one counts.
absl::StatusOr<Value> ParseJsonValue(std::string_view text);

}  // namespace longhaul::jinja
