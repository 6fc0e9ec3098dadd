#include "server/api/openai_response.h"

#include <algorithm>
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

// `offset_bytes`: where the text of the first token starts in the choice's text.
Json CompletionLogprobs(const std::vector<TokenLogprobs>& logprobs, int64_t offset_bytes) {
  Json tokens = Json::array(), values = Json::array(), top = Json::array(), offsets = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    tokens.push_back(token.chosen.token);
    values.push_back(Finite(token.chosen.logprob));
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

Json LogprobsOf(const TextDelta& delta, bool chat, int64_t offset_bytes) {
  if (delta.logprobs.empty()) return nullptr;
  return chat ? ChatLogprobs(delta.logprobs) : CompletionLogprobs(delta.logprobs, offset_bytes);
}

void AddEnd(const TextDelta& delta, Json* choice) {
  (*choice)["finish_reason"] = delta.finish ? Json(FinishReasonName(*delta.finish)) : Json(nullptr);
  if (delta.finish) {
    (*choice)["stop_reason"] = delta.stop_reason.empty() ? Json(nullptr) : Json(delta.stop_reason);
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

StreamWriter::StreamWriter(ResponseHead head)
    : head_(std::move(head)), started_(head_.n, false), text_bytes_(head_.n, 0) {}

std::string StreamWriter::Write(const Chunk& chunk) {
  if (std::holds_alternative<AcceptedEvent>(chunk)) return "";
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
  choice["logprobs"] = LogprobsOf(delta, head_.chat, text_bytes_[delta.choice]);
  text_bytes_[delta.choice] += static_cast<int64_t>(delta.text.size());
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

BodyWriter::BodyWriter(ResponseHead head) : head_(std::move(head)), choices_(head_.n) {
  for (int32_t i = 0; i < head_.n; ++i) choices_[i].choice = i;
}

void BodyWriter::Add(const Chunk& chunk) {
  if (const auto* summary = std::get_if<Summary>(&chunk)) {
    summary_ = *summary;
  } else if (const auto* delta = std::get_if<TextDelta>(&chunk)) {
    TextDelta& choice = choices_[delta->choice];
    choice.text += delta->text;
    choice.logprobs.insert(choice.logprobs.end(), delta->logprobs.begin(), delta->logprobs.end());
    if (delta->finish) {
      choice.finish = delta->finish;
      choice.stop_reason = delta->stop_reason;
    }
  }
}

std::string BodyWriter::Body() const {
  Json choices = Json::array();
  for (const TextDelta& from : choices_) {
    Json choice = {{"index", from.choice}};
    if (head_.chat) {
      choice["message"] = {{"role", "assistant"}, {"content", from.text}, {"refusal", nullptr}};
    } else {
      choice["text"] = from.text;
    }
    choice["logprobs"] = LogprobsOf(from, head_.chat, 0);
    AddEnd(from, &choice);
    choices.push_back(std::move(choice));
  }
  return Dump({{"id", head_.id},
               {"object", head_.chat ? "chat.completion" : "text_completion"},
               {"created", head_.created_s},
               {"model", head_.model},
               {"choices", std::move(choices)},
               {"usage", UsageObject(summary_->usage)},
               {"longhaul", LonghaulObject(*summary_)}});
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
