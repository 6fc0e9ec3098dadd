// api::Chunk to OpenAI response bodies: chat.completion, chat.completion.chunk and text_completion,
// with usage, logprobs of both kinds, and our additions: the top-level objects "longhaul" (timings
// and what the sparse prefill did) and "prompt_progress" (llama.cpp's names, and an ETA). One
// object per request, used by one thread at a time; does no input or output.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/api/types.h"

namespace longhaul::api {

struct ResponseHead {
  std::string id;         // chatcmpl-... or cmpl-...
  std::string model;      // as served
  int64_t created_s = 0;  // Unix time
  bool chat = false;
  int32_t n = 1;
  bool include_usage = false;
};

// Text of a stream, as Server-Sent Events: "data: {...}\n\n" and in the end "data: [DONE]\n\n".
class StreamWriter {
 public:
  explicit StreamWriter(ResponseHead head);

  // Events for one chunk, possibly none: the event that ends the last choice waits for the Summary,
  // so that "longhaul" is in the last chunk also when no usage was asked for. After a Summary the
  // stream is complete.
  std::string Write(const Chunk& chunk);

 private:
  nlohmann::ordered_json DeltaChunk(const TextDelta& delta);
  std::string WriteProgress(const ProgressEvent& progress);
  std::string WriteSummary(const Summary& summary);
  // {id, object, created, model, choices, usage: null}
  nlohmann::ordered_json MakeChunk(nlohmann::ordered_json choices) const;

  const ResponseHead head_;
  std::vector<bool> started_;  // [n] the role was sent
  int32_t n_finished_ = 0;
  std::optional<TextDelta> last_;  // the delta that ended the last choice
};

// The body of a request that does not stream. Logprobs become text as they come, so that those of a
// long prompt neither wait as objects nor are written at once.
class BodyWriter {
 public:
  explicit BodyWriter(ResponseHead head);

  void Add(const Chunk& chunk);
  // The Summary; present after it was added.
  const std::optional<Summary>& summary() const { return summary_; }
  // Needs a summary whose status is OK.
  std::string Body() const;

 private:
  struct Choice {
    std::string text;
    // The elements of each array of its logprobs as JSON, by the array's name.
    std::vector<std::pair<std::string, std::string>> logprobs;
    TextDelta end;  // the delta that ended it, without text and tokens
  };
  std::string ChoiceText(size_t index) const;

  const ResponseHead head_;
  std::vector<Choice> choices_;  // [n]
  std::string prompt_logprobs_;  // elements of that array
  std::optional<Summary> summary_;
};

// {"id": ..., "status": "cancelling"}
std::string CancelBody(const std::string& request_id);

// GET /v1/models and /v1/models/{id}
struct ModelCard {
  std::string id;
  int64_t created_s = 0;
  int64_t max_model_len = 0;
};
std::string ModelBody(const ModelCard& card);
std::string ModelListBody(const std::vector<ModelCard>& cards);

std::string TokenizeBody(const std::vector<int32_t>& ids, int64_t max_model_len,
                         const std::vector<std::string>* token_strs);
std::string DetokenizeBody(const std::string& text);

// {"timings": ..., "sparse": ...}: what "longhaul" holds; also printed by the CLI.
nlohmann::ordered_json LonghaulObject(const Summary& summary);

// "stop", "length", ...
const char* FinishReasonName(FinishReason reason);

}  // namespace longhaul::api
