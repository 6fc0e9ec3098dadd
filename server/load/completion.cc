#include "server/load/completion.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace longhaul::load {
namespace {

using nlohmann::json;

constexpr size_t kMaxErrorBytes = 64 << 10;
constexpr size_t kMaxTextBytes = 4 << 10;
constexpr size_t kMaxDetailBytes = 300;

// The member if it is there and an object, else an empty object.
const json& Object(const json& from, const char* name) {
  static const json empty = json::object();
  const auto at = from.find(name);
  return at != from.end() && at->is_object() ? *at : empty;
}

std::string String(const json& from, const char* name) {
  const auto at = from.find(name);
  if (at == from.end()) return "";
  if (at->is_string()) return at->get<std::string>();
  return at->is_number() ? at->dump() : "";
}

int64_t Integer(const json& from, const char* name, int64_t otherwise) {
  const auto at = from.find(name);
  return at != from.end() && at->is_number_integer() ? at->get<int64_t>() : otherwise;
}

// The text of a chunk's first choice, whichever way the server tells it.
std::string ChoiceText(const json& choice) {
  const json& delta = Object(choice, "delta");
  std::string text = String(choice, "text") + String(delta, "content");
  if (text.empty()) text = String(delta, "reasoning_content");
  if (text.empty()) text = String(delta, "reasoning");
  return text;
}

// "rate_limit_exceeded", or whatever names the error best.
std::string ErrorName(const json& error) {
  for (const char* name : {"code", "type"}) {
    if (const std::string text = String(error, name); !text.empty()) return text;
  }
  return "";
}

}  // namespace

std::string CompletionBody(const CompletionStyle& style, const std::string& prompt,
                           int64_t max_tokens, bool report_progress) {
  json body = {{"model", style.model},
               {"max_tokens", max_tokens},
               {"temperature", 0},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  if (style.chat) {
    body["messages"] = {{{"role", "user"}, {"content", prompt}}};
  } else {
    body["prompt"] = prompt;
  }
  if (style.longhaul && report_progress) body["return_progress"] = true;
  if (style.longhaul) body["ignore_eos"] = true;  // every answer has its full length
  if (!style.sparse_mode.empty()) body["sparse"] = {{"mode", style.sparse_mode}};
  if (!style.extra_body.empty()) body.merge_patch(json::parse(style.extra_body));
  return body.dump();
}

const char* CompletionPath(const CompletionStyle& style) {
  return style.chat ? "/v1/chat/completions" : "/v1/completions";
}

bool AnswerReader::Take(const HttpHead& head, std::string_view bytes) {
  if (head.status != 200) {
    error_body_ += bytes.substr(0, kMaxErrorBytes - std::min(error_body_.size(), kMaxErrorBytes));
    return true;
  }
  const absl::StatusOr<std::vector<SseEvent>> events = parser_.Feed(bytes);
  if (!events.ok()) {
    Fail("broken stream", std::string(events.status().message()));
    return false;
  }
  for (const SseEvent& event : *events) {
    if (!TakeEvent(event.data)) return false;
  }
  return true;
}

bool AnswerReader::TakeEvent(const std::string& data) {
  if (data == "[DONE]") {
    done_ = true;
    return true;
  }
  const json event = json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) {
    Fail("broken stream", "an event is not a JSON object");
    return false;
  }
  if (const json& error = Object(event, "error"); !error.empty()) {
    Fail(fmt::format("error event {}", ErrorName(error)), String(error, "message"));
    return false;
  }
  if (const json& usage = Object(event, "usage"); !usage.empty()) {
    answer_.prompt_tokens = Integer(usage, "prompt_tokens", -1);
    answer_.output_tokens = Integer(usage, "completion_tokens", -1);
    answer_.cached_tokens = Integer(Object(usage, "prompt_tokens_details"), "cached_tokens", -1);
  }
  if (const json& progress = Object(event, "prompt_progress"); !progress.empty()) {
    const int64_t total = Integer(progress, "total", 0);
    const int64_t processed = Integer(progress, "processed", 0);
    const double share =
        total > 0 ? static_cast<double>(processed) / static_cast<double>(total) : 0;
    answer_.progress.push_back({Elapsed(), share, String(progress, "phase")});
    return share < stop_at_share_;
  }
  const auto choices = event.find("choices");
  if (choices != event.end() && choices->is_array() && !choices->empty() &&
      (*choices)[0].is_object()) {
    const json& choice = (*choices)[0];
    TakeText(ChoiceText(choice), !String(choice, "finish_reason").empty());
  }
  return true;
}

void AnswerReader::TakeText(const std::string& text, bool finished) {
  const double now_s = Elapsed();
  // A first token without text (a special token, part of a character) shows only at the end.
  if (!text.empty() || (finished && answer_.ttft_s < 0)) {
    if (answer_.ttft_s < 0) {
      answer_.ttft_s = now_s;
    } else {
      answer_.gaps_s.push_back(now_s - last_text_s_);
    }
    last_text_s_ = now_s;
  }
  finished_ = finished_ || finished;
  answer_.text += text.substr(0, kMaxTextBytes - std::min(answer_.text.size(), kMaxTextBytes));
}

void AnswerReader::Fail(std::string kind, std::string detail) {
  if (!answer_.failure.empty()) return;
  answer_.failure = std::move(kind);
  answer_.detail = detail.substr(0, kMaxDetailBytes);
}

Answer AnswerReader::Finish(const HttpOutcome& outcome) {
  answer_.total_s = Elapsed();
  const std::string message(outcome.status.message());
  if (outcome.head.status != 0 && outcome.head.status != 200) {
    const json body = json::parse(error_body_, nullptr, /*allow_exceptions=*/false);
    const json& error = body.is_object() ? Object(body, "error") : body;
    const bool structured = error.is_object() && !error.empty();
    std::string name = structured ? ErrorName(error) : "";
    if (name == std::to_string(outcome.head.status)) name.clear();
    Fail(fmt::format("HTTP {}{}{}", outcome.head.status, name.empty() ? "" : " ", name),
         structured ? String(error, "message") : error_body_);
  } else if (absl::IsDeadlineExceeded(outcome.status)) {
    Fail("timeout", message);
  } else if (!outcome.status.ok()) {
    Fail(outcome.head.status == 0 ? "no connection" : "broken stream", message);
  } else if (outcome.stopped && answer_.failure.empty()) {
    answer_.stopped = true;
  } else if (!done_ && !finished_) {
    Fail("broken stream", "the stream ended before the answer did");
  }
  answer_.complete = answer_.failure.empty() && !answer_.stopped;
  return std::move(answer_);
}

void Failures::Add(const Answer& answer) {
  if (!answer.failure.empty()) Add(answer.failure, answer.detail);
}

void Failures::Add(const std::string& kind, const std::string& detail) {
  Kind& entry = kinds_[kind];
  if (entry.count++ == 0) entry.first_detail = detail;
}

int64_t Failures::n() const {
  int64_t total = 0;
  for (const auto& [name, kind] : kinds_) total += kind.count;
  return total;
}

}  // namespace longhaul::load
