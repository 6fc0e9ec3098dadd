// Requests and answers as plain C++: what HTTP, gRPC and the CLI share. No JSON, no protobuf.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "server/text/chat_template.h"

namespace longhaul::api {

struct SparseChoice {                 // "sparse": {"mode": "...", "alpha": 0.95}
  std::optional<std::string> mode;
  std::optional<float> alpha;
};

// What the model's generation_config.json may say for requests that do not. Absent in both: the
// engine's own (SamplingParams).
struct SamplingChoice {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;       // 0 = off
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
};

struct Sampling : SamplingChoice {    // the rest as in SamplingParams
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<uint64_t> seed;
  int32_t n_logprobs = -1;
  int32_t min_tokens = 0;             // nor does a stop string end the answer before
};

struct GenerationDefaults {           // of a model
  SamplingChoice sampling;
  std::optional<int64_t> max_tokens;  // of chat requests
};

using Prompt = std::variant<std::string, std::vector<int32_t>, ChatPrompt>;

struct GenerateRequest {
  std::string request_id;             // the client's, or made by the front end
  std::string caller;                 // ApiKeys::Caller: who asks; empty where nobody needs a key
  std::string model;                  // empty = the served one
  Prompt prompt;
  Sampling sampling;
  std::optional<int64_t> max_tokens;  // absent: 16 for completions, the rest of the context for chat
  int32_t n = 1;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;            // only stop_token_ids of the request end an answer
  bool add_special_tokens = true;     // BOS in front of a text prompt
  bool echo = false;                  // completions: the prompt's text comes first, with logprobs
                                      // where the answer has them
  int32_t n_prompt_logprobs = -1;     // -1 = none, k = of the prompt's tokens and the k likeliest
  bool stream = false;
  bool include_usage = false;         // stream_options.include_usage
  bool return_progress = false;
  SparseChoice sparse;
  std::string cache_salt;
  int32_t priority = 0;
  std::optional<double> timeout_s;
};

// When the phases before the engine ended; TTFT counts from `accepted`.
struct FrontPhases {
  Clock::time_point accepted;         // first byte of the request
  int64_t read_us = 0;                // body read
  int64_t parse_us = 0;               // JSON or protobuf to C++
  int64_t template_us = 0;            // chat template (with tokenize for chat)
  int64_t tokenize_us = 0;
};

struct LogprobEntry {
  std::string token;                  // readable
  std::string bytes;
  float logprob = 0;                  // NaN: none, of the first token of an echoed prompt
};

struct TokenLogprobs {
  LogprobEntry chosen;
  std::vector<LogprobEntry> top;
};

// How likely the tokens of the prompt were. One per token, in order, over several chunks.
struct RankedLogprob {
  int32_t id = 0;
  int32_t rank = 0;                   // 1 = the likeliest
  std::string token;                  // readable
  float logprob = 0;
};
struct PromptLogprobs {
  // The prompt's own token, then the likeliest others. Empty for the first token of the prompt.
  std::vector<std::vector<RankedLogprob>> tokens;
};

// Text that became final; several tokens may share one delta and one token may give none.
struct TextDelta {
  int32_t choice = 0;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs; // one per id, or none
  int64_t logprobs_begin_bytes = 0;    // where the text of the first of them is in all of the text
  std::optional<FinishReason> finish;  // set in the choice's last delta
  std::string stop_reason;             // the stop string that matched, if one did
  std::optional<int32_t> stop_token;   // the one of the request's stop_token_ids, if it was one
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
};

struct Timings {                       // microseconds
  int64_t read = 0, parse = 0, template_ = 0, tokenize = 0, queue = 0, prefill = 0;
  int64_t ttft = 0;                    // from `accepted` to the first token
  int64_t decode = 0;
};

struct Summary {                       // the last chunk
  absl::Status status;
  Usage usage;
  Timings timings;
  SparseReport sparse;
  std::string sparse_mode;             // resolved
};

// AcceptedEvent first, unless the request was refused; PromptLogprobs before the text; Summary last.
using Chunk = std::variant<AcceptedEvent, PromptLogprobs, TextDelta, ProgressEvent, Summary>;

}  // namespace longhaul::api
