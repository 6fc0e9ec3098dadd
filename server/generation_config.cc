#include "server/generation_config.h"

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "server/text/json_file.h"

namespace longhaul {
namespace {

using nlohmann::json;

// The member as a number in [min, max], also of those that must be whole.
template <typename T>
absl::Status Read(const JsonFields& fields, const char* key, T min, T max, std::optional<T>* out) {
  const json* value = fields.Find(key);
  if (value == nullptr) return absl::OkStatus();
  const bool right_type = std::is_integral_v<T> ? value->is_number_integer() : value->is_number();
  const double number = right_type ? value->get<double>() : 0;
  if (!right_type || !(number >= static_cast<double>(min) && number <= static_cast<double>(max))) {
    return fields.Error(key,
                        fmt::format("is {}, expected {} from {} to {}; correct it, or start with "
                                    "--generation-config none",
                                    value->dump(-1, ' ', false, json::error_handler_t::replace),
                                    std::is_integral_v<T> ? "an integer" : "a number", min, max));
  }
  *out = value->get<T>();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<api::GenerationDefaults> ReadGenerationDefaults(const std::string& model_dir) {
  const std::string path = model_dir + "/generation_config.json";
  const absl::StatusOr<json> file = ReadJsonFile(path);
  if (absl::IsNotFound(file.status())) return api::GenerationDefaults();
  if (!file.ok()) return file.status();
  const JsonFields fields(path, "", &*file);
  constexpr int32_t kMaxTokens = std::numeric_limits<int32_t>::max();
  api::GenerationDefaults defaults;
  api::SamplingChoice& sampling = defaults.sampling;
  LH_RETURN_IF_ERROR(Read(fields, "temperature", 0.0f, 2.0f, &sampling.temperature));
  LH_RETURN_IF_ERROR(Read(fields, "top_k", -1, kMaxTokens, &sampling.top_k));
  if (sampling.top_k == -1) sampling.top_k = 0;
  LH_RETURN_IF_ERROR(Read(fields, "top_p", 1e-6f, 1.0f, &sampling.top_p));
  LH_RETURN_IF_ERROR(Read(fields, "min_p", 0.0f, 1.0f, &sampling.min_p));
  LH_RETURN_IF_ERROR(
      Read(fields, "repetition_penalty", 0.01f, 10.0f, &sampling.repetition_penalty));
  LH_RETURN_IF_ERROR(
      Read(fields, "max_new_tokens", int64_t{1}, int64_t{kMaxTokens}, &defaults.max_tokens));
  return defaults;
}

}  // namespace longhaul
