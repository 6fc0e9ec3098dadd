#include "server/api/openai_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "server/api/status_map.h"

namespace longhaul::api {
namespace {

using Json = nlohmann::ordered_json;

constexpr float kLowestLogprob = -9999.0f;  // JSON has no infinity; vLLM's convention

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Event(const Json& value) { return "data: " + Dump(value) + "\n\n"; }

float Finite(float logprob) { return logprob > kLowestLogprob ? logprob : kLowestLogprob; }

Json Seconds(int64_t us) { return static_cast<double>(us) * 1e-6; }

Json ChatEntry(const LogprobEntry& entry) {
  Json bytes = Json::array();
  for (const char c : entry.bytes) bytes.push_back(static_cast<uint8_t>(c));
  return {{"token", entry.token}, {"logprob", Finite(entry.logprob)}, {"bytes", std::move(bytes)}};
}

Json ChatLogprobs(const std::vector<TokenLogprobs>& logprobs) {
  Json content = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    Json entry = ChatEntry(token.chosen);
    Json& top = entry["top_logprobs"] = Json::array();
    for (const LogprobEntry& candidate : token.top) top.push_back(ChatEntry(candidate));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

// `offset_bytes`: where the text of the first token starts in the choice's text. Tokens without
// text (special ones) have no length.
Json CompletionLogprobs(const std::vector<TokenLogprobs>& logprobs, int64_t offset_bytes) {
  Json tokens = Json::array(), values = Json::array(), top = Json::array(), offsets = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    tokens.push_back(token.chosen.token);
    values.push_back(std::isnan(token.chosen.logprob) ? Json(nullptr)
                                                      : Json(Finite(token.chosen.logprob)));
    Json candidates = Json::object();
    for (const LogprobEntry& candidate : token.top) {
      candidates[candidate.token] = Finite(candidate.logprob);
    }
    top.push_back(token.top.empty() ? Json(nullptr) : std::move(candidates));
    offsets.push_back(offset_bytes);
    offset_bytes += static_cast<int64_t>(token.chosen.bytes.size());
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(top)},
          {"text_offset", std::move(offsets)}};
}

Json LogprobsOf(const TextDelta& delta, bool chat) {
  if (delta.logprobs.empty()) return nullptr;
  return chat ? ChatLogprobs(delta.logprobs)
              : CompletionLogprobs(delta.logprobs, delta.logprobs_begin_bytes);
}

void AddEnd(const TextDelta& delta, Json* choice) {
  (*choice)["finish_reason"] = delta.finish ? Json(FinishReasonName(*delta.finish)) : Json(nullptr);
  if (!delta.finish) return;
  Json& reason = (*choice)["stop_reason"] = nullptr;
  if (!delta.stop_reason.empty()) reason = delta.stop_reason;
  if (delta.stop_token) reason = *delta.stop_token;
}

// The elements of each array in `logprobs` behind those of the same name.
void AppendArrays(const Json& logprobs, std::vector<std::pair<std::string, std::string>>* arrays) {
  size_t n = 0;
  for (const auto& [name, array] : logprobs.items()) {
    if (!array.is_array()) continue;
    if (n == arrays->size()) arrays->emplace_back(name, "");
    std::string& elements = (*arrays)[n++].second;
    const std::string text = Dump(array);
    if (!elements.empty()) elements += ',';
    elements.append(text, 1, text.size() - 2);
  }
}

// `object`, JSON as text, with one more member, whose value is JSON as text.
void AddMember(std::string_view name, std::string_view value, std::string* object) {
  object->pop_back();
  if (object->size() > 1) *object += ',';
  fmt::format_to(std::back_inserter(*object), "\"{}\":{}}}", name, value);
}

// vLLM's form: null for the first token, else {"id": {"logprob", "rank", "decoded_token"}, ...}.
void AppendPromptLogprobs(const PromptLogprobs& logprobs, std::string* elements) {
  for (const std::vector<RankedLogprob>& token : logprobs.tokens) {
    if (!elements->empty()) *elements += ',';
    if (token.empty()) *elements += "null";
    const char* before = "{";
    for (const RankedLogprob& entry : token) {
      fmt::format_to(std::back_inserter(*elements),
                     "{}\"{}\":{{\"logprob\":{},\"rank\":{},\"decoded_token\":{}}}", before,
                     entry.id, Finite(entry.logprob), entry.rank, Dump(entry.token));
      before = ",";
    }
    if (!token.empty()) *elements += '}';
  }
}

Json UsageObject(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json ProgressObject(const ProgressEvent& progress) {
  static constexpr const char* kPhases[] = {"queued", "prefill", "decode"};
  return {{"total", progress.total_tokens},
          {"cache", progress.cached_tokens},
          {"cached", progress.cached_tokens},
          {"processed", progress.processed_tokens},
          {"time_ms", progress.time_us / 1000},
          {"eta_ms", progress.eta_us < 0 ? Json(nullptr) : Json(progress.eta_us / 1000)},
          {"phase", kPhases[static_cast<int>(progress.phase)]},
          {"density", progress.density}};
}

}  // namespace

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

Json LonghaulObject(const Summary& summary) {
  const Timings& t = summary.timings;
  const SparseReport& s = summary.sparse;
  Json object;
  object["timings"] = {{"read_s", Seconds(t.read)},          {"parse_s", Seconds(t.parse)},
                       {"template_s", Seconds(t.template_)}, {"tokenize_s", Seconds(t.tokenize)},
                       {"queue_s", Seconds(t.queue)},        {"prefill_s", Seconds(t.prefill)},
                       {"ttft_s", Seconds(t.ttft)},          {"decode_s", Seconds(t.decode)}};
  object["sparse"] = {{"mode", summary.sparse_mode},
                      {"density", s.Density()},
                      {"recall_mean", s.RecallMean()},
                      {"recall_p1", s.RecallPercentile(1.0)},
                      {"recall_min", s.recall_min},
                      {"n_audited", s.n_recalls},
                      {"n_head_epochs", s.n_head_epochs},
                      {"n_streaming", s.n_streaming},
                      {"n_dense", s.n_dense},
                      {"n_repaired", s.n_repaired}};
  return object;
}

StreamWriter::StreamWriter(ResponseHead head) : head_(std::move(head)), started_(head_.n, false) {}

std::string StreamWriter::Write(const Chunk& chunk) {
  if (std::holds_alternative<AcceptedEvent>(chunk)) return "";
  // OpenAI's chunks have no place for them: the parser refuses them together with `stream`.
  if (std::holds_alternative<PromptLogprobs>(chunk)) return "";
  if (const auto* progress = std::get_if<ProgressEvent>(&chunk)) return WriteProgress(*progress);
  if (const auto* summary = std::get_if<Summary>(&chunk)) return WriteSummary(*summary);
  const auto& delta = std::get<TextDelta>(chunk);
  if (delta.finish && ++n_finished_ == head_.n) {
    last_ = delta;
    return "";
  }
  return Event(DeltaChunk(delta));
}

Json StreamWriter::MakeChunk(Json choices) const {
  Json chunk = {{"id", head_.id},
                {"object", head_.chat ? "chat.completion.chunk" : "text_completion"},
                {"created", head_.created_s},
                {"model", head_.model},
                {"choices", std::move(choices)}};
  if (head_.include_usage) chunk["usage"] = nullptr;
  return chunk;
}

Json StreamWriter::DeltaChunk(const TextDelta& delta) {
  Json choice = {{"index", delta.choice}};
  if (head_.chat) {
    Json& content = choice["delta"] = Json::object();
    if (!started_[delta.choice]) content["role"] = "assistant";
    content["content"] = delta.text;
  } else {
    choice["text"] = delta.text;
  }
  started_[delta.choice] = true;
  choice["logprobs"] = LogprobsOf(delta, head_.chat);
  AddEnd(delta, &choice);
  Json chunk = MakeChunk(Json::array());
  chunk["choices"].push_back(std::move(choice));
  return chunk;
}

std::string StreamWriter::WriteProgress(const ProgressEvent& progress) {
  // A choice without text, so that clients which look at choices[0] need not know the addition.
  Json choice = {{"index", 0}};
  if (head_.chat) {
    Json& content = choice["delta"] = Json::object();
    if (!started_[0]) content["role"] = "assistant";
    content["content"] = "";
    started_[0] = true;
  } else {
    choice["text"] = "";
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = nullptr;
  Json chunk = MakeChunk(Json::array());
  chunk["choices"].push_back(std::move(choice));
  chunk["prompt_progress"] = ProgressObject(progress);
  return Event(chunk);
}

std::string StreamWriter::WriteSummary(const Summary& summary) {
  std::string out;
  if (!summary.status.ok()) {
    // Headers are out, so the error travels as an event; OpenAI's clients raise it.
    out = "data: " + ErrorBody(ToHttpError(summary.status)) + "\n\n";
  } else {
    if (last_) {
      Json chunk = DeltaChunk(*last_);
      if (!head_.include_usage) chunk["longhaul"] = LonghaulObject(summary);
      out = Event(chunk);
    }
    if (head_.include_usage) {
      Json chunk = MakeChunk(Json::array());
      chunk["usage"] = UsageObject(summary.usage);
      chunk["longhaul"] = LonghaulObject(summary);
      out += Event(chunk);
    }
  }
  return out + "data: [DONE]\n\n";
}

BodyWriter::BodyWriter(ResponseHead head) : head_(std::move(head)), choices_(head_.n) {}

void BodyWriter::Add(const Chunk& chunk) {
  if (const auto* summary = std::get_if<Summary>(&chunk)) {
    summary_ = *summary;
  } else if (const auto* logprobs = std::get_if<PromptLogprobs>(&chunk)) {
    AppendPromptLogprobs(*logprobs, &prompt_logprobs_);
  } else if (const auto* delta = std::get_if<TextDelta>(&chunk)) {
    Choice& choice = choices_[delta->choice];
    choice.text += delta->text;
    AppendArrays(LogprobsOf(*delta, head_.chat), &choice.logprobs);
    choice.end.finish = delta->finish;
    choice.end.stop_reason = delta->stop_reason;
    choice.end.stop_token = delta->stop_token;
  }
}

std::string BodyWriter::ChoiceText(size_t index) const {
  const Choice& from = choices_[index];
  Json choice = {{"index", index}};
  if (head_.chat) {
    choice["message"] = {{"role", "assistant"}, {"content", from.text}, {"refusal", nullptr}};
  } else {
    choice["text"] = from.text;
  }
  AddEnd(from.end, &choice);
  if (from.logprobs.empty()) choice["logprobs"] = nullptr;
  std::string text = Dump(choice);
  if (!from.logprobs.empty()) {
    Json others = Json::object();
    if (head_.chat) others["refusal"] = nullptr;
    std::string logprobs = Dump(others);
    for (const auto& [name, elements] : from.logprobs) {
      AddMember(name, "[" + elements + "]", &logprobs);
    }
    AddMember("logprobs", logprobs, &text);
  }
  if (!head_.chat && !prompt_logprobs_.empty()) {
    AddMember("prompt_logprobs", "[" + prompt_logprobs_ + "]", &text);
  }
  return text;
}

std::string BodyWriter::Body() const {
  std::string choices;
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices += (i > 0 ? "," : "") + ChoiceText(i);
  }
  std::string body = Dump({{"id", head_.id},
                           {"object", head_.chat ? "chat.completion" : "text_completion"},
                           {"created", head_.created_s},
                           {"model", head_.model},
                           {"usage", UsageObject(summary_->usage)},
                           {"longhaul", LonghaulObject(*summary_)}});
  AddMember("choices", "[" + choices + "]", &body);
  if (head_.chat && !prompt_logprobs_.empty()) {
    AddMember("prompt_logprobs", "[" + prompt_logprobs_ + "]", &body);
  }
  return body;
}

namespace {

Json ModelObject(const ModelCard& card) {
  return {{"id", card.id},
          {"object", "model"},
          {"created", card.created_s},
          {"owned_by", "longhaul"},
          {"max_model_len", card.max_model_len}};
}

}  // namespace

std::string CancelBody(const std::string& request_id) {
  return Dump({{"id", request_id}, {"status", "cancelling"}});
}

std::string ModelBody(const ModelCard& card) { return Dump(ModelObject(card)); }

std::string ModelListBody(const std::vector<ModelCard>& cards) {
  Json data = Json::array();
  for (const ModelCard& card : cards) data.push_back(ModelObject(card));
  return Dump({{"object", "list"}, {"data", std::move(data)}});
}

std::string TokenizeBody(const std::vector<int32_t>& ids, int64_t max_model_len,
                         const std::vector<std::string>* token_strs) {
  return Dump({{"count", ids.size()},
               {"max_model_len", max_model_len},
               {"tokens", ids},
               {"token_strs", token_strs == nullptr ? Json(nullptr) : Json(*token_strs)}});
}

std::string DetokenizeBody(const std::string& text) { return Dump({{"prompt", text}}); }

}  // namespace longhaul::api
