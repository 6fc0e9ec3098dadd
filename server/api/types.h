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

using Prompt = std::variant<std::string, std::vector<int32_t>, ChatPrompt>;

struct GenerateRequest {
  std::string request_id;             // the client's, or made by the front end
  std::string caller;                 // ApiKeys::Caller: who asks; empty where nobody needs a key
  std::string model;                  // empty = the served one
  Prompt prompt;
  SamplingParams sampling;
  std::optional<int64_t> max_tokens;  // absent: 16 for completions, the rest of the context for chat
  int32_t n = 1;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  bool add_special_tokens = true;     // BOS in front of a text prompt
  bool echo = false;                  // completions: the prompt's text comes first
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
  float logprob = 0;
};

struct TokenLogprobs {
  LogprobEntry chosen;
  std::vector<LogprobEntry> top;
};

// Text that became final; several tokens may share one delta and one token may give none.
struct TextDelta {
  int32_t choice = 0;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;
  std::optional<FinishReason> finish;  // set in the choice's last delta
  std::string stop_reason;             // the stop string that matched, if one did
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

// AcceptedEvent first, unless the request was refused; Summary last.
using Chunk = std::variant<AcceptedEvent, TextDelta, ProgressEvent, Summary>;

}  // namespace longhaul::api
