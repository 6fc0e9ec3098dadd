#include "server/load/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/load/http_client.h"
#include "server/load/prompt_text.h"

namespace longhaul::load {
namespace {

template <typename Number>
absl::Status CheckRange(const char* flag, Number value, Number low, Number high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("--{} {} is out of range: {} to {}", flag, value, low, high));
}

absl::Status CheckPrompt(const char* flag, int64_t n_tokens, int64_t n_answer) {
  constexpr int64_t kMaxTokens = int64_t{1} << 24;
  return CheckRange(flag, n_tokens, PromptText::MinTokens(n_answer), kMaxTokens);
}

absl::Status CheckScenarios(const LoadOptions& o) {
  const std::vector<std::string>& names = o.scenarios;
  const std::vector<std::string>& known = ScenarioNames();
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return absl::InvalidArgumentError(
          fmt::format("--scenario {} is not known: {}", name, fmt::join(known, ", ")));
    }
  }
  const bool plots = names.empty() || std::find(names.begin(), names.end(), "mixed") != names.end();
  if (!o.svg_path.empty() && !plots) {
    return absl::InvalidArgumentError(
        "--svg shows the scenario mixed, which --scenario leaves out");
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<std::string>& ScenarioNames() {
  static const std::vector<std::string> names = {"mixed", "parallel", "cancel",
                                                 "retry", "health",   "streams"};
  return names;
}

absl::Status CheckOptions(const LoadOptions& o) {
  LH_RETURN_IF_ERROR(ParseUrl(o.url).status());
  LH_RETURN_IF_ERROR(CheckScenarios(o));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("short-output", o.short_output, 1, 4096));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("stream-output", o.stream_output, 1, 65536));
  LH_RETURN_IF_ERROR(
      CheckPrompt("short-tokens", o.short_tokens, std::max(o.short_output, o.stream_output)));
  LH_RETURN_IF_ERROR(CheckPrompt("long-tokens", o.long_tokens, 1));
  LH_RETURN_IF_ERROR(CheckPrompt("parallel-tokens", o.parallel_tokens, 1));
  LH_RETURN_IF_ERROR(CheckRange("utilisation", o.utilisation, 0.01, 0.95));
  LH_RETURN_IF_ERROR(CheckRange("seconds", o.seconds, 0.5, 86400.0));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("parallel", o.parallel, 2, 64));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("cancels", o.cancels, 1, 1000));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("retries", o.retries, 1, 100));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("new-tokens", o.new_tokens, 16, 1 << 20));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("body-bytes", o.body_bytes, 1 << 10, 1 << 30));
  LH_RETURN_IF_ERROR(CheckRange<int64_t>("streams", o.streams, 1, 4096));
  LH_RETURN_IF_ERROR(CheckRange("slice-ms", o.slice_ms, 1.0, 60000.0));
  LH_RETURN_IF_ERROR(CheckRange("timeout", o.timeout_s, 1.0, 86400.0));
  if (o.api_key.find_first_of("\r\n") != std::string::npos) {
    return absl::InvalidArgumentError("--api-key must be one line");
  }
  if (!o.extra_body.empty() &&
      !nlohmann::json::parse(o.extra_body, nullptr, /*allow_exceptions=*/false).is_object()) {
    return absl::InvalidArgumentError("--extra-body must be a JSON object");
  }
  return absl::OkStatus();
}

}  // namespace longhaul::load
