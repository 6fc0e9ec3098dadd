// Session: one loaded model behind every front end. api::GenerateRequest -> engine -> api::Chunk.
// HTTP, gRPC and the CLI all go through it, so they behave alike.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/api/types.h"
#include "server/request_record.h"
#include "server/text/tokenizer.h"

namespace longhaul {

// One running request: detokenizes, applies stop strings, counts. Read by one thread at a time.
// Dropping it cancels the request.
class Generation {
 public:
  virtual ~Generation() = default;
  // The next chunk if there is one; Summary is always the last.
  virtual std::optional<api::Chunk> TryNext() = 0;
  // Waits up to timeout.
  virtual std::optional<api::Chunk> Next(std::chrono::microseconds timeout) = 0;
  // Called from the engine thread when a chunk may be ready; must only post work elsewhere.
  virtual void SetReadyCallback(std::function<void()> on_ready) = 0;
  virtual void Cancel() = 0;
  virtual int64_t prompt_tokens() const = 0;
};

struct SessionConfig {
  std::string model_dir;
  std::string served_model_name;
  std::string chat_template_file;  // instead of the model folder's template; empty: that one
  SparseOptions sparse;            // default policy
  int64_t max_n = 128;
  int64_t max_stop_strings = 16;
  int64_t max_logprobs = 20;
  int64_t max_logit_bias = 1024;
  // Of one answer: prompt tokens x (1 + likeliest ones) x choices that repeat them. The body takes
  // about 80 bytes for each.
  int64_t max_prompt_logprobs = int64_t{1} << 21;
  bool use_generation_config = true;  // Create reads `defaults` from generation_config.json
  api::GenerationDefaults defaults;
  // Output tokens of a chat request that names no max_tokens, when the context has room for them;
  // the engine reserves pages for all of them, so "the rest of the context" would let one run at a
  // time.
  int64_t default_max_tokens = 16384;
  int tokenizer_threads = 0;
  bool prefix_cache_per_key = true;  // callers do not share cached prefixes
  // Called once per request that came as far as Start, refused ones included: by the thread that
  // calls Start, or that reads or drops its Generation. May be empty.
  std::function<void(const RequestRecord&)> on_finished;
};

class Session {
 public:
  // Loads the tokenizer and the chat template of the model folder.
  static absl::StatusOr<std::unique_ptr<Session>> Create(const SessionConfig& config,
                                                         std::unique_ptr<Engine> engine);
  // The same with parts made elsewhere.
  static std::unique_ptr<Session> CreateWith(const SessionConfig& config,
                                             std::unique_ptr<Tokenizer> tokenizer,
                                             std::unique_ptr<const ChatTemplate> chat,
                                             std::unique_ptr<Engine> engine);
  virtual ~Session() = default;

  // Validates, tokenizes and submits; blocks while it tokenizes, so call it off the network
  // threads. Status codes and what they become outside (server/api/status_map.h):
  //   InvalidArgument -> 400, OutOfRange -> 400 context_length_exceeded, NotFound -> 404,
  //   ResourceExhausted -> 429 + Retry-After, Unavailable -> 503 + Retry-After,
  //   DeadlineExceeded -> 504 (it passed while the prompt was read), Cancelled -> 499
  // Cheapest checks first. The engine may still refuse: then a Summary that is not OK is the only
  // chunk, and a front end must not have answered before.
  virtual absl::StatusOr<std::unique_ptr<Generation>> Start(const api::GenerateRequest& request,
                                                            const api::FrontPhases& phases) = 0;

  // Tells every request of `caller` with this id to end, as their clients' disconnecting would,
  // those included that are being tokenized. How many there were. Never blocks.
  virtual int Cancel(const std::string& caller, const std::string& request_id) = 0;

  // Ids of a prompt as Start would feed them to the engine: text with special tokens parsed, ids
  // checked against the vocabulary, messages rendered by the chat template. Blocks like Start.
  virtual absl::StatusOr<std::vector<int32_t>> Tokenize(const api::Prompt& prompt,
                                                        bool add_special_tokens) const = 0;

  virtual const Tokenizer& tokenizer() const = 0;
  virtual Engine& engine() = 0;
  virtual const SessionConfig& config() const = 0;
  virtual std::string chat_form() const = 0;
};

}  // namespace longhaul
