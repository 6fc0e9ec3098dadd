// A server with OpenAI's completions, asked over HTTP. A Longhaul server is also told the policy,
// and tells what its prefill did.

#include <utility>  // before Boost 1.74's awaitable.hpp, which forgets it

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <nlohmann/json.hpp>
#include <random>

#include "server/eval/question.h"
#include "server/eval/target.h"
#include "server/load/completion.h"
#include "server/load/http_client.h"
#include "server/load/prompt_text.h"
#include "server/load/sse_parser.h"

namespace longhaul::eval {
namespace {

using nlohmann::json;

constexpr size_t kMaxBodyBytes = 4 << 20;
constexpr int64_t kProbeWords = 512;  // of the prompt whose tokens are counted

double Number(const json& from, const char* name, double otherwise) {
  const auto at = from.find(name);
  return at != from.end() && at->is_number() ? at->get<double>() : otherwise;
}

// What an answer's last event says of the prefill, and progress on the way.
class ExtensionReader {
 public:
  void Take(std::string_view bytes, const std::function<void(double)>& on_progress) {
    const auto events = parser_.Feed(bytes);
    if (!events.ok()) return;  // load::AnswerReader reports it
    for (const load::SseEvent& event : *events) {
      const json object = json::parse(event.data, nullptr, /*allow_exceptions=*/false);
      if (!object.is_object()) continue;
      if (const auto at = object.find("prompt_progress"); at != object.end() && at->is_object()) {
        const double total = Number(*at, "total", 0);
        if (total > 0) on_progress(Number(*at, "processed", 0) / total);
      }
      const auto ours = object.find("longhaul");
      if (ours == object.end() || !ours->is_object()) continue;
      const auto sparse = ours->find("sparse");
      if (sparse == ours->end() || !sparse->is_object()) continue;
      density_ = Number(*sparse, "density", 1);
      recall_mean_ = Number(*sparse, "recall_mean", 1);
    }
  }
  double density() const { return density_; }
  double recall_mean() const { return recall_mean_; }

 private:
  load::SseParser parser_;
  double density_ = 1, recall_mean_ = 1;
};

class UrlTarget final : public EvalTarget {
 public:
  UrlTarget(const EvalOptions& options, std::unique_ptr<boost::asio::io_context> io,
            load::HttpClient client)
      : timeout_s_(options.timeout_s), io_(std::move(io)), client_(std::move(client)) {
    info_.target = options.url;
    run_id_ = (uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  }

  absl::Status Probe(const std::string& model);

  const TargetInfo& info() const override { return info_; }
  int64_t max_model_len() const override { return max_model_len_; }
  std::string PolicyState(const Policy& policy) const override { return policy.name; }
  absl::Status CheckPolicy(const Policy& policy) const override;
  absl::StatusOr<int64_t> CountTokens(const std::string& text) override {
    return static_cast<int64_t>(tokens_per_byte_ * static_cast<double>(text.size())) + 1;
  }
  absl::StatusOr<int64_t> CountEnglish() override {
    LH_ASSIGN_OR_RETURN(const Reply reply,
                        Ask(std::string(kEnglish), {"default", "default", {}}, 1));
    return reply.prompt_tokens;
  }
  absl::StatusOr<Reply> Ask(const std::string& prompt, const Policy& policy,
                            int64_t max_tokens) override;

 private:
  load::HttpOutcome Call(load::HttpCall call, const load::BodySink& sink);
  absl::Status ProbeModel(const std::string& model);

  const double timeout_s_;
  const std::unique_ptr<boost::asio::io_context> io_;
  const load::HttpClient client_;
  TargetInfo info_;
  bool longhaul_ = false;
  int64_t max_model_len_ = 0;
  double tokens_per_byte_ = 1;
  uint64_t run_id_ = 0;  // part of every cache salt: another run's prompts are not known
  int64_t n_asked_ = 0;
};

load::HttpOutcome UrlTarget::Call(load::HttpCall call, const load::BodySink& sink) {
  call.give_up = load::Clock::now() + std::chrono::duration_cast<load::Clock::duration>(
                                          std::chrono::duration<double>(timeout_s_));
  load::HttpOutcome outcome;
  auto ask = [&]() -> boost::asio::awaitable<void> { outcome = co_await client_.Call(call, sink); };
  boost::asio::co_spawn(*io_, ask, [](std::exception_ptr) {});
  io_->restart();
  io_->run();
  return outcome;
}

absl::Status UrlTarget::CheckPolicy(const Policy& policy) const {
  if (policy.mode == "default") return absl::OkStatus();
  if (!longhaul_) {
    return absl::InvalidArgumentError(fmt::format(
        "policy '{}': the server at {} is no Longhaul and takes no policy; use --policies default",
        policy.name, info_.target));
  }
  for (const auto& [name, value] : policy.values) {
    if (name == "alpha") continue;
    return absl::InvalidArgumentError(
        fmt::format("policy '{}': a request can set alpha alone; start the server with another {}, "
                    "or run in process with --model",
                    policy.name, name));
  }
  return absl::OkStatus();
}

absl::Status UrlTarget::Probe(const std::string& model) {
  LH_RETURN_IF_ERROR(ProbeModel(model));
  load::PromptText prompts(/*seed=*/1, run_id_);
  const std::string text = prompts.Filler(kProbeWords);
  LH_ASSIGN_OR_RETURN(const Reply reply, Ask(text, {"default", "default", {}}, 1));
  if (reply.prompt_tokens <= 0) {
    return absl::UnavailableError(fmt::format(
        "{} does not say how many tokens a prompt has (usage.prompt_tokens)", info_.target));
  }
  tokens_per_byte_ = static_cast<double>(reply.prompt_tokens) / static_cast<double>(text.size());
  return absl::OkStatus();
}

absl::Status UrlTarget::ProbeModel(const std::string& model) {
  std::string body;
  load::HttpHead head;
  const load::BodySink sink = [&](const load::HttpHead& h, std::string_view bytes) {
    head = h;
    body += bytes.substr(0, kMaxBodyBytes - body.size());
    return body.size() < kMaxBodyBytes;
  };
  load::HttpCall call;
  call.path = "/v1/models";
  const load::HttpOutcome outcome = Call(std::move(call), sink);
  if (!outcome.status.ok()) {
    return absl::UnavailableError(
        fmt::format("{}: {}", info_.target, std::string(outcome.status.message())));
  }
  if (outcome.head.status != 200) {
    return absl::UnavailableError(fmt::format("{}/v1/models answered {}: {}", info_.target,
                                              outcome.head.status, body.substr(0, 300)));
  }
  longhaul_ = head.server == "longhaul";
  info_.model = model;
  const json models = json::parse(body, nullptr, /*allow_exceptions=*/false);
  const bool listed = models.is_object() && models.contains("data") && models["data"].is_array();
  for (const json& entry : listed ? models["data"] : json::array()) {
    if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_string()) continue;
    const std::string id = entry["id"];
    if (info_.model.empty()) info_.model = id;
    const auto length = entry.find("max_model_len");
    if (id == info_.model && length != entry.end() && length->is_number_integer()) {
      max_model_len_ = *length;
    }
  }
  if (info_.model.empty()) {
    return absl::NotFoundError(
        fmt::format("{}/v1/models names no model; give --model", info_.target));
  }
  info_.state = fmt::format("{}\n{}", info_.target, info_.model);
  return absl::OkStatus();
}

absl::StatusOr<Reply> UrlTarget::Ask(const std::string& prompt, const Policy& policy,
                                     int64_t max_tokens) {
  load::CompletionStyle style;
  style.model = info_.model;
  json extra = json::object();
  if (longhaul_) {
    extra["return_progress"] = true;
    extra["cache_salt"] = fmt::format("eval-{:x}-{}", run_id_, n_asked_++);
    if (policy.mode != "default") extra["sparse"] = {{"mode", policy.mode}};
    for (const auto& [name, value] : policy.values) extra["sparse"][name] = value;
  }
  style.extra_body = extra.dump();
  const std::string body =
      load::CompletionBody(style, prompt, max_tokens, /*report_progress=*/false);
  load::AnswerReader reader(load::Clock::now());
  ExtensionReader extension;
  const load::BodySink sink = [&](const load::HttpHead& head, std::string_view bytes) {
    extension.Take(bytes, [this](double share) { Progress(share); });
    return reader.Take(head, bytes);
  };
  load::HttpCall call;
  call.method = "POST";
  call.path = load::CompletionPath(style);
  call.body = body;
  const load::Answer answer = reader.Finish(Call(std::move(call), sink));
  if (!answer.complete) {
    return absl::UnavailableError(fmt::format("{}: {}", answer.failure, answer.detail));
  }
  Reply reply;
  reply.text = answer.text;
  reply.prompt_tokens = answer.prompt_tokens;
  reply.ttft_s = answer.ttft_s;
  reply.density = extension.density();
  reply.recall_mean = extension.recall_mean();
  return reply;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EvalTarget>> OpenUrlTarget(const EvalOptions& options,
                                                          const std::string& model) {
  LH_ASSIGN_OR_RETURN(const load::Url url, load::ParseUrl(options.url));
  auto io = std::make_unique<boost::asio::io_context>(1);
  LH_ASSIGN_OR_RETURN(load::HttpClient client,
                      load::HttpClient::Create(io.get(), url, options.api_key));
  auto target = std::make_unique<UrlTarget>(options, std::move(io), std::move(client));
  LH_RETURN_IF_ERROR(target->Probe(model));
  return std::unique_ptr<EvalTarget>(std::move(target));
}

}  // namespace longhaul::eval
