#include "server/api/openai_request.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <utility>

#include "server/api/chat_request.h"
#include "server/api/json_fields.h"
#include "server/api/status_map.h"

namespace longhaul::api {
namespace {

using nlohmann::json;

// Bounds on counts before anything is copied; the body limit bounds the rest. The Session checks
// the limits of the server (n, stop, logprobs, ...).
constexpr size_t kMaxPromptIds = size_t{1} << 26;
constexpr size_t kMaxStops = 1024;
constexpr size_t kMaxStopIds = 4096;
constexpr size_t kMaxBiases = 65536;

constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();

// Fields that change what the answer means and that this server does not implement.
constexpr const char* kRefusedEverywhere[] = {
    "guided_json",        "guided_regex",           "guided_choice",     "guided_grammar",
    "structured_outputs", "truncate_prompt_tokens", "allowed_token_ids", "bad_words",
    "prompt_embeds",      "use_beam_search",        "logits_processors", "kv_transfer_params"};
constexpr const char* kRefusedInChat[] = {"functions", "audio", "prediction", "web_search_options",
                                          "echo"};

void ReadLogitBias(JsonFields& fields, Sampling* sampling) {
  const json* bias = fields.Object("logit_bias");
  if (bias == nullptr) return;
  if (bias->size() > kMaxBiases) {
    return fields.Fail("logit_bias", fmt::format("may hold at most {} tokens", kMaxBiases));
  }
  for (const auto& [key, value] : bias->items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      return fields.Fail("logit_bias", "must map token ids (as strings) to numbers");
    }
    if (!value.is_number()) {
      return fields.Fail("logit_bias", fmt::format("must map token {} to a number, got {}", id,
                                                   JsonTypeName(value)));
    }
    sampling->logit_bias.emplace_back(id, value.get<float>());
  }
}

void ReadOptional(JsonFields& fields, const char* name, std::optional<float>* out) {
  if (float value = 0; fields.Float(name, &value)) *out = value;
}

void ReadSampling(JsonFields& fields, Sampling* sampling) {
  ReadOptional(fields, "temperature", &sampling->temperature);
  ReadOptional(fields, "top_p", &sampling->top_p);
  if (int32_t top_k = 0; fields.Int32("top_k", &top_k)) sampling->top_k = top_k == -1 ? 0 : top_k;
  ReadOptional(fields, "min_p", &sampling->min_p);
  ReadOptional(fields, "repetition_penalty", &sampling->repetition_penalty);
  fields.Float("presence_penalty", &sampling->presence_penalty);
  fields.Float("frequency_penalty", &sampling->frequency_penalty);
  fields.Int32("min_tokens", &sampling->min_tokens);
  if (int64_t seed = 0; fields.Int("seed", std::numeric_limits<int64_t>::min(), kMaxInt, &seed)) {
    sampling->seed = static_cast<uint64_t>(seed);
  }
  ReadLogitBias(fields, sampling);
}

void ReadSparse(JsonFields& fields, SparseChoice* sparse) {
  const json* object = fields.Object("sparse");
  if (object == nullptr) return;
  JsonFields inner(*object, "sparse.");
  if (std::string mode; inner.String("mode", &mode)) sparse->mode = mode;
  if (float alpha = 0; inner.Float("alpha", &alpha)) sparse->alpha = alpha;
  fields.Adopt(inner.status());
}

void ReadResponseFormat(JsonFields& fields) {
  const json* object = fields.Object("response_format");
  if (object == nullptr) return;
  JsonFields inner(*object, "response_format.");
  std::string type = "text";
  inner.String("type", &type);
  if (type != "text") {
    inner.Fail("type", fmt::format("'{}' is not supported by this server; use 'text'", type));
  }
  fields.Adopt(inner.status());
}

void ReadTimeout(JsonFields& fields, GenerateRequest* request) {
  double timeout_s = 0;
  if (fields.Double("timeout", &timeout_s)) request->timeout_s = timeout_s;
  if (!fields.Double("timeout_s", &timeout_s)) return;
  if (request->timeout_s) {
    fields.Fail("timeout_s", "is another name of 'timeout'; send only one of them");
  }
  request->timeout_s = timeout_s;
}

void ReadPromptLogprobs(JsonFields& fields, GenerateRequest* request) {
  int32_t n_top = 0;
  if (!fields.Int32("prompt_logprobs", &n_top)) return;
  if (n_top < 0) fields.Fail("prompt_logprobs", "must not be negative");
  // vLLM's answer has no place for them in a stream.
  if (request->stream) fields.Fail("prompt_logprobs", "needs 'stream': false");
  request->n_prompt_logprobs = n_top;
}

// What both endpoints have in common.
void ReadCommon(JsonFields& fields, GenerateRequest* request) {
  fields.String("model", &request->model);
  fields.String("request_id", &request->request_id);
  ReadSampling(fields, &request->sampling);
  if (int64_t max_tokens = 0; fields.Int("max_tokens", 0, kMaxInt, &max_tokens)) {
    request->max_tokens = max_tokens;
  }
  fields.Int32("n", &request->n);
  fields.Strings("stop", kMaxStops, &request->stop);
  fields.Ids("stop_token_ids", kMaxStopIds, &request->stop_token_ids);
  fields.Bool("include_stop_str_in_output", &request->include_stop_str_in_output);
  fields.Bool("ignore_eos", &request->ignore_eos);
  fields.Bool("add_special_tokens", &request->add_special_tokens);
  fields.Bool("stream", &request->stream);
  fields.Bool("return_progress", &request->return_progress);
  fields.String("cache_salt", &request->cache_salt);
  fields.Int32("priority", &request->priority);
  ReadTimeout(fields, request);
  ReadPromptLogprobs(fields, request);
  if (const json* options = fields.Object("stream_options")) {
    JsonFields inner(*options, "stream_options.");
    inner.Bool("include_usage", &request->include_usage);
    fields.Adopt(inner.status());
    if (!request->stream) fields.Fail("stream_options", "needs 'stream': true");
  }
  ReadSparse(fields, &request->sparse);
  ReadResponseFormat(fields);
  for (const char* name : kRefusedEverywhere) fields.Refuse(name);
  fields.Refuse("length_penalty", 1.0);
  if (bool skip = true; fields.Bool("skip_special_tokens", &skip) && !skip) {
    fields.Fail("skip_special_tokens", "must be true: this server never shows special tokens");
  }
}

// A string, [string], [ids] or [[ids]]; one prompt per request.
void ReadPrompt(JsonFields& fields, Prompt* prompt) {
  const json* value = fields.Get("prompt");
  if (value == nullptr) return fields.Fail("prompt", "is missing");
  if (value->is_string()) {
    *prompt = value->get_ref<const std::string&>();
    return;
  }
  if (!value->is_array()) {
    return fields.Fail("prompt",
                       fmt::format("must be a string or an array, got {}", JsonTypeName(*value)));
  }
  if (value->empty()) return fields.Fail("prompt", "must not be empty");
  const json& first = value->front();
  if (first.is_number()) {
    std::vector<int32_t> ids;
    fields.Ids("prompt", kMaxPromptIds, &ids);
    *prompt = std::move(ids);
    return;
  }
  if (value->size() != 1) {
    return fields.Fail("prompt",
                       fmt::format("holds {} prompts; send one prompt per request", value->size()));
  }
  if (first.is_string()) {
    *prompt = first.get_ref<const std::string&>();
  } else if (first.is_array()) {
    const json wrapped = {{"prompt", first}};
    JsonFields inner(wrapped);
    std::vector<int32_t> ids;
    inner.Ids("prompt", kMaxPromptIds, &ids);
    fields.Adopt(inner.status());
    *prompt = std::move(ids);
  } else {
    fields.Fail("prompt", fmt::format("must hold text or token ids, got {}", JsonTypeName(first)));
  }
}

}  // namespace

absl::StatusOr<GenerateRequest> ParseChatCompletion(std::string_view body) {
  LH_ASSIGN_OR_RETURN(const json object, ParseJsonObject(body));
  JsonFields fields(object);
  GenerateRequest request;
  request.prompt = ReadChatPrompt(fields, body);
  ReadCommon(fields, &request);
  if (int64_t max = 0; fields.Int("max_completion_tokens", 0, kMaxInt, &max)) {
    request.max_tokens = max;
  }
  bool logprobs = false;
  fields.Bool("logprobs", &logprobs);
  int32_t top_logprobs = 0;
  const bool has_top = fields.Int32("top_logprobs", &top_logprobs);
  if (has_top && top_logprobs < 0) fields.Fail("top_logprobs", "must not be negative");
  if (has_top && top_logprobs > 0 && !logprobs) {
    fields.Fail("top_logprobs", "needs 'logprobs': true");
  }
  if (logprobs) request.sampling.n_logprobs = top_logprobs;
  for (const char* name : kRefusedInChat) fields.Refuse(name);
  fields.Refuse("modalities", json::array({"text"}));
  if (!fields.ok()) return fields.status();
  return request;
}

absl::StatusOr<GenerateRequest> ParseCompletion(std::string_view body) {
  LH_ASSIGN_OR_RETURN(const json object, ParseJsonObject(body));
  JsonFields fields(object);
  GenerateRequest request;
  ReadPrompt(fields, &request.prompt);
  ReadCommon(fields, &request);
  fields.Bool("echo", &request.echo);
  if (int32_t n_logprobs = 0; fields.Int32("logprobs", &n_logprobs)) {
    if (n_logprobs < 0) fields.Fail("logprobs", "must not be negative");
    request.sampling.n_logprobs = n_logprobs;
  }
  int64_t best_of = 0;
  if (fields.Int("best_of", 1, kMaxInt, &best_of) && best_of != request.n) {
    fields.Fail("best_of", "must equal 'n': this server returns every choice that it generates");
  }
  fields.Refuse("suffix");
  if (!fields.ok()) return fields.status();
  return request;
}

absl::StatusOr<TokenizeRequest> ParseTokenize(std::string_view body) {
  LH_ASSIGN_OR_RETURN(const json object, ParseJsonObject(body));
  JsonFields fields(object);
  TokenizeRequest request;
  fields.String("model", &request.model);
  if (fields.Get("messages") != nullptr) {
    request.prompt = ReadChatPrompt(fields, body);
  } else {
    std::string text;
    if (!fields.String("prompt", &text))
      fields.Fail("prompt", "is missing: send 'prompt' or 'messages'");
    request.prompt = std::move(text);
  }
  fields.Bool("add_special_tokens", &request.add_special_tokens);
  fields.Bool("return_token_strs", &request.return_token_strs);
  if (!fields.ok()) return fields.status();
  return request;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenize(std::string_view body) {
  LH_ASSIGN_OR_RETURN(const json object, ParseJsonObject(body));
  JsonFields fields(object);
  DetokenizeRequest request;
  fields.String("model", &request.model);
  if (!fields.Ids("tokens", kMaxPromptIds, &request.tokens)) fields.Fail("tokens", "is missing");
  if (!fields.ok()) return fields.status();
  return request;
}

}  // namespace longhaul::api
