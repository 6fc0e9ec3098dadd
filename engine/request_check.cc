#include "engine/request_check.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "engine/sequence.h"
#include "fmt/format.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

absl::Status BadValue(std::string_view name, double value, std::string_view allowed) {
  return absl::InvalidArgumentError(fmt::format("{} is {:g}; it must be {}", name, value, allowed));
}

// Comparisons are written so that NaN fails.
absl::Status CheckSampling(const SamplingParams& params, int32_t vocab_size) {
  if (!(params.temperature >= 0 && params.temperature <= 1e4f)) {
    return BadValue("temperature", params.temperature, "at least 0 (0 is greedy)");
  }
  if (params.top_k < 0) return BadValue("top_k", params.top_k, "at least 0 (0 is off)");
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return BadValue("top_p", params.top_p, "above 0 and at most 1");
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return BadValue("min_p", params.min_p, "in [0, 1]");
  }
  if (!(params.repetition_penalty > 0 && params.repetition_penalty <= 1e4f)) {
    return BadValue("repetition_penalty", params.repetition_penalty, "above 0");
  }
  if (!(std::abs(params.presence_penalty) <= 2)) {
    return BadValue("presence_penalty", params.presence_penalty, "in [-2, 2]");
  }
  if (!(std::abs(params.frequency_penalty) <= 2)) {
    return BadValue("frequency_penalty", params.frequency_penalty, "in [-2, 2]");
  }
  if (params.n_logprobs < -1 || params.n_logprobs > vocab_size) {
    return BadValue("n_logprobs", params.n_logprobs,
                    fmt::format("at least 0 and at most the vocabulary size {}", vocab_size));
  }
  if (params.min_tokens < 0) return BadValue("min_tokens", params.min_tokens, "at least 0");
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return BadValue("token id in logit_bias", token, fmt::format("in [0, {})", vocab_size));
    }
    if (!(std::abs(bias) <= 1e4f)) return BadValue("logit_bias", bias, "in [-10000, 10000]");
  }
  return absl::OkStatus();
}

absl::Status CheckLength(const Request& request, const RequestLimits& limits) {
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  if (request.max_tokens < 0) {
    return BadValue("max_tokens", static_cast<double>(request.max_tokens), "at least 0");
  }
  if (request.n < 1 || request.n > limits.max_choices) {
    return BadValue("n", request.n, fmt::format("in [1, {}]", limits.max_choices));
  }
  const auto n_total = CheckedAdd(n_prompt, request.max_tokens);
  if (!n_total.has_value() || *n_total > limits.max_model_len) {
    return absl::OutOfRangeError(fmt::format(
        "the prompt has {} tokens and max_tokens is {}, together more than the {} tokens this "
        "server allows; shorten the prompt or lower max_tokens",
        n_prompt, request.max_tokens, limits.max_model_len));
  }
  const int64_t n_pages = PagesNeeded(n_prompt, request.max_tokens, request.n);
  if (n_pages > limits.n_pages) {
    return absl::OutOfRangeError(fmt::format(
        "the request needs {} KV cache pages of {} tokens ({} prompt tokens, {} choices of up to "
        "{} "
        "tokens), the whole cache has {}; shorten the request or start the server with a larger "
        "--kv-cache-memory",
        n_pages, kPageTokens, n_prompt, request.n, request.max_tokens, limits.n_pages));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequest(const Request& request, const RequestLimits& limits) {
  if (request.prompt.empty()) {
    return absl::InvalidArgumentError("the prompt is empty; it must have at least one token");
  }
  LH_RETURN_IF_ERROR(CheckLength(request, limits));
  LH_RETURN_IF_ERROR(CheckSampling(request.sampling, limits.vocab_size));
  if (request.n_prompt_logprobs < -1 || request.n_prompt_logprobs > limits.vocab_size) {
    return BadValue(
        "n_prompt_logprobs", request.n_prompt_logprobs,
        fmt::format("at least 0 and at most the vocabulary size {}", limits.vocab_size));
  }
  if (request.sparse.has_value()) {
    LH_RETURN_IF_ERROR(request.sparse->Validate());
    LH_RETURN_IF_ERROR(request.sparse->CheckModel(limits.n_layers, limits.n_heads));
  }
  for (int32_t token : request.stop_token_ids) {
    if (token < 0 || token >= limits.vocab_size) {
      return BadValue("stop token id", token, fmt::format("in [0, {})", limits.vocab_size));
    }
  }
  const auto bad = std::find_if(request.prompt.begin(), request.prompt.end(), [&](int32_t token) {
    return token < 0 || token >= limits.vocab_size;
  });
  if (bad != request.prompt.end()) {
    return absl::InvalidArgumentError(
        fmt::format("prompt token {} has id {}; it must be in [0, {})",
                    bad - request.prompt.begin(), *bad, limits.vocab_size));
  }
  return absl::OkStatus();
}

}  // namespace longhaul
