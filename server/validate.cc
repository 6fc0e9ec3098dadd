#include "server/validate.h"

#include <fmt/format.h>

#include "server/api/status_map.h"

namespace longhaul {
namespace {

using api::InvalidParam;

constexpr int64_t kMaxStopStringBytes = 4096;
constexpr int64_t kMaxStopTokenIds = 128;
constexpr int64_t kMaxCacheSaltBytes = 256;
constexpr double kMaxTimeoutS = 7 * 86400;

template <typename T>
absl::Status InRange(const char* param, T value, T min, T max) {
  if (value >= min && value <= max) return absl::OkStatus();  // false for NaN
  return InvalidParam(param,
                      fmt::format("'{}' must be from {} to {}, got {}", param, min, max, value));
}

absl::Status ValidateSampling(const SamplingParams& s, const SessionConfig& config, bool chat,
                              int32_t vocab_size) {
  LH_RETURN_IF_ERROR(InRange("temperature", s.temperature, 0.0f, 2.0f));
  LH_RETURN_IF_ERROR(InRange("top_p", s.top_p, 1e-6f, 1.0f));
  LH_RETURN_IF_ERROR(InRange("top_k", s.top_k, 0, std::numeric_limits<int32_t>::max()));
  LH_RETURN_IF_ERROR(InRange("min_p", s.min_p, 0.0f, 1.0f));
  LH_RETURN_IF_ERROR(InRange("repetition_penalty", s.repetition_penalty, 0.01f, 10.0f));
  LH_RETURN_IF_ERROR(InRange("presence_penalty", s.presence_penalty, -2.0f, 2.0f));
  LH_RETURN_IF_ERROR(InRange("frequency_penalty", s.frequency_penalty, -2.0f, 2.0f));
  LH_RETURN_IF_ERROR(InRange(chat ? "top_logprobs" : "logprobs", int64_t{s.n_logprobs}, int64_t{-1},
                             config.max_logprobs));
  if (static_cast<int64_t>(s.logit_bias.size()) > config.max_logit_bias) {
    return InvalidParam("logit_bias", fmt::format("'logit_bias' may hold at most {} tokens, got {}",
                                                  config.max_logit_bias, s.logit_bias.size()));
  }
  for (const auto& [id, bias] : s.logit_bias) {
    LH_RETURN_IF_ERROR(ValidateIds({id}, vocab_size, "logit_bias"));
    LH_RETURN_IF_ERROR(InRange("logit_bias", bias, -100.0f, 100.0f));
  }
  return absl::OkStatus();
}

absl::Status ValidateStops(const api::GenerateRequest& request, const SessionConfig& config,
                           int32_t vocab_size) {
  if (static_cast<int64_t>(request.stop.size()) > config.max_stop_strings) {
    return InvalidParam("stop", fmt::format("'stop' may hold at most {} strings, got {}",
                                            config.max_stop_strings, request.stop.size()));
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty() || static_cast<int64_t>(stop.size()) > kMaxStopStringBytes) {
      return InvalidParam("stop", fmt::format("a string in 'stop' must have 1 to {} bytes, got {}",
                                              kMaxStopStringBytes, stop.size()));
    }
  }
  if (static_cast<int64_t>(request.stop_token_ids.size()) > kMaxStopTokenIds) {
    return InvalidParam("stop_token_ids",
                        fmt::format("'stop_token_ids' may hold at most {} ids, got {}",
                                    kMaxStopTokenIds, request.stop_token_ids.size()));
  }
  return ValidateIds(request.stop_token_ids, vocab_size, "stop_token_ids");
}

}  // namespace

absl::Status ValidateIds(const std::vector<int32_t>& ids, int32_t vocab_size,
                         const std::string& param) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return InvalidParam(
          param, fmt::format("'{}' holds token id {}; this model's ids are from 0 to {}", param, id,
                             vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateRequest(const api::GenerateRequest& request, const SessionConfig& config,
                             int32_t vocab_size) {
  const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
  LH_RETURN_IF_ERROR(InRange("n", int64_t{request.n}, int64_t{1}, config.max_n));
  if (request.max_tokens && *request.max_tokens < 0) {
    return InvalidParam("max_tokens", fmt::format("'max_tokens' must not be negative, got {}",
                                                  *request.max_tokens));
  }
  const SamplingParams sampling = ResolveSampling(request.sampling, config.defaults.sampling);
  LH_RETURN_IF_ERROR(ValidateSampling(sampling, config, chat, vocab_size));
  if (sampling.min_tokens < 0 ||
      (request.max_tokens && sampling.min_tokens > *request.max_tokens)) {
    return InvalidParam(
        "min_tokens",
        fmt::format("'min_tokens' must be from 0 to 'max_tokens', got {}", sampling.min_tokens));
  }
  LH_RETURN_IF_ERROR(ValidateStops(request, config, vocab_size));
  LH_RETURN_IF_ERROR(InRange("prompt_logprobs", int64_t{request.n_prompt_logprobs}, int64_t{-1},
                             config.max_logprobs));
  if (request.echo && chat) return InvalidParam("echo", "'echo' needs a text or token prompt");
  if (static_cast<int64_t>(request.cache_salt.size()) > kMaxCacheSaltBytes) {
    return InvalidParam("cache_salt", fmt::format("'cache_salt' may have at most {} bytes, got {}",
                                                  kMaxCacheSaltBytes, request.cache_salt.size()));
  }
  if (request.timeout_s)
    LH_RETURN_IF_ERROR(InRange("timeout", *request.timeout_s, 0.001, kMaxTimeoutS));
  return absl::OkStatus();
}

absl::Status ValidatePromptLogprobs(int64_t n_prompt_tokens, int32_t n_top, int64_t n_copies,
                                    const SessionConfig& config, const std::string& param) {
  const int64_t n_values = n_prompt_tokens * (int64_t{n_top} + 1) * n_copies;
  if (n_values <= config.max_prompt_logprobs) return absl::OkStatus();
  return InvalidParam(
      param,
      fmt::format("'{}' of {} prompt tokens, {} likeliest ones each, in {} choices are {} values, "
                  "and an answer may hold {}; ask for fewer, or send a shorter prompt",
                  param, n_prompt_tokens, n_top, n_copies, n_values, config.max_prompt_logprobs));
}

SamplingParams ResolveSampling(const api::Sampling& sampling, const api::SamplingChoice& defaults) {
  SamplingParams params;
  const auto resolve = [](const auto& given, const auto& otherwise, auto& value) {
    if (given || otherwise) value = given ? *given : *otherwise;
  };
  resolve(sampling.temperature, defaults.temperature, params.temperature);
  resolve(sampling.top_k, defaults.top_k, params.top_k);
  resolve(sampling.top_p, defaults.top_p, params.top_p);
  resolve(sampling.min_p, defaults.min_p, params.min_p);
  resolve(sampling.repetition_penalty, defaults.repetition_penalty, params.repetition_penalty);
  params.presence_penalty = sampling.presence_penalty;
  params.frequency_penalty = sampling.frequency_penalty;
  params.logit_bias = sampling.logit_bias;
  params.seed = sampling.seed;
  params.n_logprobs = sampling.n_logprobs;
  params.min_tokens = sampling.min_tokens;
  return params;
}

absl::StatusOr<SparseOptions> ResolveSparse(const api::SparseChoice& choice,
                                            const SparseOptions& defaults) {
  SparseOptions options = defaults;
  if (choice.mode) {
    const absl::StatusOr<SparseMode> mode = ParseSparseMode(*choice.mode);
    if (!mode.ok()) return api::WithParam(mode.status(), "sparse.mode");
    options.mode = *mode;
  }
  if (choice.alpha) options.alpha = *choice.alpha;
  if (absl::Status status = options.Validate(); !status.ok()) {
    return api::WithParam(std::move(status), "sparse");
  }
  return options;
}

}  // namespace longhaul
