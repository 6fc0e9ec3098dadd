// What the engine accepts and what it answers: token ids only; no text, no JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/sparse_policy.h"
#include "kernels/base/status.h"

namespace longhaul {

using Clock = std::chrono::steady_clock;

struct SamplingParams {
  float temperature = 1.0f;                           // 0 = greedy
  int32_t top_k = 0;                                  // 0 = off
  float top_p = 1.0f;                                 // (0, 1]
  float min_p = 0.0f;                                 // [0, 1]
  float repetition_penalty = 1.0f;                    // > 0; over prompt and output
  float presence_penalty = 0.0f;                      // [-2, 2]; over output
  float frequency_penalty = 0.0f;                     // [-2, 2]; over output
  std::vector<std::pair<int32_t, float>> logit_bias;  // (token id, added to its logit)
  std::optional<uint64_t> seed;  // same seed, same request, same batch: same tokens
  int32_t n_logprobs = -1;       // -1 = none, 0 = of the chosen token, k = and the k likeliest
  int32_t min_tokens = 0;        // no stop token before so many output tokens
};

struct Request {
  std::string id;               // for logs and cancel; never trusted as unique
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  int64_t max_tokens = 16;              // output tokens per choice, >= 0 (0: prefill only)
  int32_t n = 1;                        // choices; they share the prompt's pages
  std::vector<int32_t> stop_token_ids;  // end of sequence tokens included by the server
  int32_t n_prompt_logprobs = -1;       // PromptLogprobsEvents: -1 = none, 0 = of the prompt's own
                                        // tokens, k = and the k likeliest. The whole prompt is
                                        // computed then: nothing is taken from the prefix cache
  std::optional<SparseOptions> sparse;  // absent: the server's default
  std::string cache_salt;               // namespace of the prefix cache
  int32_t priority = 0;                 // lower runs earlier
  std::optional<Clock::time_point> deadline;
  bool report_progress = false;  // ProgressEvents, at most one per slice
  bool report_heads = false;     // DoneEvent.sparse.heads
  Clock::time_point accepted = Clock::now();
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// One generated token of one choice. The stop token itself is delivered (with its finish reason),
// so that usage can count it; the server does not print it.
struct TokenEvent {
  int32_t choice = 0;
  int32_t token = -1;  // -1: no token, only the finish reason (max_tokens = 0)
  std::optional<FinishReason> finish;
  float logprob = 0;                       // valid when n_logprobs >= 0
  std::vector<TokenLogprob> top_logprobs;  // n_logprobs entries, likeliest first
};

// How likely the model found prompt tokens [begin, begin + n), given those before them, as the
// prefill computed it: under a sparse policy with its approximation. In the order of the prompt,
// from the second token on (the first has nothing before it), before the first TokenEvent.
struct PromptLogprobsEvent {
  int64_t begin = 0;
  int32_t n_top = 0;
  std::vector<TokenLogprob> tokens;  // [n] the prompt's own
  std::vector<int32_t> ranks;        // [n] of those; 1 = the likeliest
  std::vector<TokenLogprob> top;     // [n, n_top] likeliest first
};

enum class Phase : uint8_t { kQueued, kPrefill, kDecode };

struct ProgressEvent {
  Phase phase = Phase::kQueued;
  int64_t total_tokens = 0;      // of the prompt
  int64_t cached_tokens = 0;     // known from the prefix cache
  int64_t processed_tokens = 0;  // cached included
  int64_t time_us = 0;           // since acceptance
  int64_t eta_us = -1;           // until the first token; -1 = not known yet
  double density = 1.0;          // so far
};

// Always the last event of a stream. A refusal carries RetryAfterUs (engine/retry_after.h).
struct DoneEvent {
  absl::Status status;  // not OK: the request failed after it was admitted
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;  // of all choices
  int64_t queue_us = 0;       // acceptance by the engine until the first slice
  int64_t prefill_us = 0;     // first slice until the first token
  int64_t decode_us = 0;      // first token until the last
  SparseReport sparse;
};

// The first event of a request that was taken: it will be worked on. A request that is refused
// after Submit (its deadline cannot be met) gets a DoneEvent instead, and nothing before it. Front
// ends send no answer, not even its header, before they have seen one of the two.
struct AcceptedEvent {
  int64_t cached_tokens = 0;       // of the prompt, known from the prefix cache by now
  int64_t predicted_ttft_us = -1;  // from this event to the first token; -1 = not known
};

using StreamEvent =
    std::variant<AcceptedEvent, PromptLogprobsEvent, TokenEvent, ProgressEvent, DoneEvent>;

}  // namespace longhaul
