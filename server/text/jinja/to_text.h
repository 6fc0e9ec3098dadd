// Values to text: as {{ }} prints them (Python's str and repr), and as JSON (json.dumps). Pure
// functions; any thread. InvalidArgument when the text would pass max_bytes, or when a value has no
// such form (macros, generators).
#pragma once

#include <string>

#include "kernels/base/status.h"
#include "server/text/jinja/value.h"

namespace longhaul::jinja {

// Python's repr() of a float: the shortest text that reads back as the same number.
std::string FloatText(double value);

// Appends str(value). A string is appended as it is.
absl::Status AppendStr(const Value& value, int64_t max_bytes, std::string* out);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool has_indent = false;  // one entry per line
  std::string indent;       // of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
absl::Status AppendJson(const Value& value, const JsonStyle& style, int64_t max_bytes,
                        std::string* out);

}  // namespace longhaul::jinja
