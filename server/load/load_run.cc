#include "server/load/load_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "server/console.h"

namespace longhaul::load {
namespace {

using nlohmann::json;

constexpr size_t kMaxBodyBytes = 4 << 20;
constexpr int64_t kProbePieces = 2048;  // of the text whose tokens are counted

absl::Status Refused(const std::string& path, const HttpHead& head, const std::string& body) {
  const std::string text =
      fmt::format("{} answered {}: {}", path, head.status, body.substr(0, 300));
  return head.status == 404 ? absl::NotFoundError(text) : absl::UnavailableError(text);
}

// A short answer may hold a part of the code, a long one goes on after it.
bool IsCode(std::string_view text, std::string_view code) {
  text.remove_prefix(std::min(text.find_first_not_of(" \n#"), text.size()));
  return !text.empty() && text.substr(0, code.size()) == code.substr(0, text.size());
}

}  // namespace

LoadRun::LoadRun(const LoadOptions& options, HttpClient client, uint64_t run_id)
    : options_(options), client_(std::move(client)), prompts_(options.seed, run_id) {}

Clock::time_point LoadRun::GiveUp() const {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(options_.timeout_s));
}

awaitable<absl::StatusOr<std::string>> LoadRun::Get(const std::string& path) {
  std::string body;
  BodySink sink = [&body](const HttpHead&, std::string_view bytes) {
    body += bytes.substr(0, kMaxBodyBytes - body.size());
    return body.size() < kMaxBodyBytes;
  };
  HttpCall call;
  call.path = path;
  call.give_up = GiveUp();
  const HttpOutcome outcome = co_await client_.Call(call, sink);
  if (!outcome.status.ok()) co_return outcome.status;
  if (outcome.head.status != 200) co_return Refused(path, outcome.head, body);
  co_return body;
}

awaitable<std::optional<double>> LoadRun::Metric(const std::string& name) {
  const absl::StatusOr<std::string> text = co_await Get("/metrics");
  if (!text.ok()) co_return std::nullopt;
  std::optional<double> sum;
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    const std::string_view line = std::string_view(*text).substr(at, end - at);
    at = end + 1;
    // name{labels} value
    if (!line.starts_with(name) || line.size() == name.size()) continue;
    const char next = line[name.size()];
    const size_t space = line.rfind(' ');
    if ((next != '{' && next != ' ') || space == std::string_view::npos) continue;
    sum = sum.value_or(0) + std::strtod(std::string(line.substr(space + 1)).c_str(), nullptr);
  }
  co_return sum;
}

awaitable<absl::Status> LoadRun::Probe() {
  absl::Status status = co_await ProbeModel();
  if (!status.ok()) co_return status;
  if (!options_.sparse_mode.empty() && !target_.longhaul) {
    co_return absl::InvalidArgumentError(
        "--sparse-mode is an extension of Longhaul, and this is another server; leave it out");
  }
  style_ = {target_.model, options_.chat, target_.longhaul, options_.sparse_mode,
            options_.extra_body};
  const absl::StatusOr<std::string> health = co_await Get("/health");
  target_.has_health = health.ok();
  const std::optional<double> running = co_await Metric("vllm:num_requests_running");
  target_.has_metrics = running.has_value();
  status = co_await ProbeTokens();
  co_return status;
}

awaitable<absl::Status> LoadRun::ProbeModel() {
  std::string body;
  HttpHead head;
  BodySink sink = [&](const HttpHead& h, std::string_view bytes) {
    head = h;
    body += bytes;
    return body.size() < kMaxBodyBytes;
  };
  HttpCall call;
  call.path = "/v1/models";
  call.give_up = GiveUp();
  const HttpOutcome outcome = co_await client_.Call(call, sink);
  if (!outcome.status.ok()) {
    co_return absl::UnavailableError(
        fmt::format("{}: {}", options_.url, std::string(outcome.status.message())));
  }
  if (outcome.head.status != 200) co_return Refused(options_.url + call.path, outcome.head, body);
  target_.longhaul = head.server == "longhaul";
  const json models = json::parse(body, nullptr, /*allow_exceptions=*/false);
  const bool listed = models.is_object() && models.contains("data") && models["data"].is_array() &&
                      !models["data"].empty();
  target_.model = options_.model;
  for (const json& model : listed ? models["data"] : json::array()) {
    if (!model.is_object() || !model.contains("id") || !model["id"].is_string()) continue;
    const std::string id = model["id"];
    if (target_.model.empty()) target_.model = id;
    const auto length = model.find("max_model_len");
    if (id == target_.model && length != model.end() && length->is_number_integer()) {
      target_.max_model_len = *length;
    }
  }
  if (target_.model.empty()) {
    co_return absl::NotFoundError(options_.url + "/v1/models names no model; give --model");
  }
  co_return absl::OkStatus();
}

// From usage of a first request, which every server has; it also wakes the server up.
awaitable<absl::Status> LoadRun::ProbeTokens() {
  // A token is a byte at worst, and words have about six.
  const int64_t n_fitting = target_.max_model_len > 0 ? target_.max_model_len / 8 : kProbePieces;
  const int64_t n_pieces = std::clamp(n_fitting, PromptText::MinTokens(1), kProbePieces);
  Question question;
  question.prompt = prompts_.Make(n_pieces, 1);
  ScenarioReport report;
  SetReport(&report);
  const Answer answer = co_await Ask(std::move(question));
  SetReport(nullptr);
  if (!answer.failure.empty()) {
    co_return absl::UnavailableError(
        fmt::format("a first request failed: {}: {}", answer.failure, answer.detail));
  }
  if (answer.prompt_tokens > 0) {
    target_.tokens_per_piece =
        static_cast<double>(answer.prompt_tokens) / static_cast<double>(n_pieces);
    prompts_.SetTokensPerPiece(target_.tokens_per_piece);
  }
  co_return absl::OkStatus();
}

awaitable<Answer> LoadRun::Ask(Question question) {
  const std::string body =
      CompletionBody(style_, question.prompt.text, question.max_tokens, question.report_progress);
  const Clock::time_point begin = question.begin.value_or(Clock::now());
  AnswerReader reader(begin, question.stop_at_share);
  BodySink sink = [&reader](const HttpHead& head, std::string_view bytes) {
    return reader.Take(head, bytes);
  };
  HttpCall call;
  call.method = "POST";
  call.path = CompletionPath(style_);
  call.body = body;
  call.give_up = GiveUp();
  call.disconnect_at = question.disconnect_at;
  const HttpOutcome outcome = co_await client_.Call(call, sink);
  Answer answer = reader.Finish(outcome);
  answer.begin_s = Seconds(begin);
  answer.right = answer.complete && IsCode(answer.text, question.prompt.code);
  report_->failures.Add(answer);
  co_return answer;
}

Question LoadRun::ShortQuestion() {
  Question question;
  question.prompt = prompts_.Make(options_.short_tokens, options_.short_output);
  question.max_tokens = options_.short_output;
  return question;
}

Question LoadRun::LongQuestion(int64_t n_tokens) {
  Question question;
  question.prompt = prompts_.Make(n_tokens, 1);
  question.report_progress = true;
  return question;
}

awaitable<std::vector<Answer>> LoadRun::AskInTurn(int64_t n) {
  std::vector<Answer> answers;
  for (int64_t i = 0; i < n; ++i) {
    Answer answer = co_await Ask(ShortQuestion());
    if (answer.complete) answers.push_back(std::move(answer));
  }
  co_return answers;
}

std::string LoadRun::TooLong(int64_t n_tokens) const {
  if (target_.max_model_len == 0 || n_tokens < target_.max_model_len) return "";
  return fmt::format("a prompt of {} tokens does not fit: the server takes {} with the answer",
                     n_tokens, target_.max_model_len);
}

Samples Ttfts(const std::vector<Answer>& answers) {
  Samples samples;
  for (const Answer& answer : answers) {
    if (answer.complete) samples.Add(answer.ttft_s);
  }
  return samples;
}

Samples Totals(const std::vector<Answer>& answers) {
  Samples samples;
  for (const Answer& answer : answers) {
    if (answer.complete) samples.Add(answer.total_s);
  }
  return samples;
}

Samples Gaps(const std::vector<Answer>& answers) {
  Samples samples;
  for (const Answer& answer : answers) samples.Add(answer.gaps_s);
  return samples;
}

int64_t NumberRight(const std::vector<Answer>& answers) {
  return std::count_if(answers.begin(), answers.end(), [](const Answer& a) { return a.right; });
}

std::string RightText(const std::vector<Answer>& answers) {
  return fmt::format("{} of {} answers begin with the code that was asked for",
                     NumberRight(answers), answers.size());
}

std::vector<std::string> QuantileCells(const Samples& seconds) {
  if (seconds.n() == 0) return {"0", "-", "-", "-", "-"};
  return {fmt::format("{}", seconds.n()), FormatDuration(seconds.Quantile(0.5)),
          FormatDuration(seconds.Quantile(0.9)), FormatDuration(seconds.Quantile(0.99)),
          FormatDuration(seconds.Max())};
}

}  // namespace longhaul::load
