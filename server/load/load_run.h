// LoadRun: what the scenarios share: the server, the prompts, one way to ask and to count failures,
// and the form of a report. Made by RunLoad, which runs the scenarios one after another as
// coroutines of one thread.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "server/load/completion.h"
#include "server/load/http_client.h"
#include "server/load/options.h"
#include "server/load/progress_bar.h"
#include "server/load/prompt_text.h"
#include "server/load/samples.h"
#include "server/load/svg_plot.h"
#include "server/load/task_group.h"

namespace longhaul::load {

using boost::asio::awaitable;

// What Probe found out about the server.
struct Target {
  std::string model;
  bool longhaul = false;        // it is ours: extensions may be used
  int64_t max_model_len = 0;    // 0 = it does not say
  double tokens_per_piece = 1;  // of our prompts: words and full stops
  bool has_health = false;
  bool has_metrics = false;  // with vLLM's names
};

struct Question {
  Prompt prompt;
  int64_t max_tokens = 1;
  bool report_progress = false;
  std::optional<Clock::time_point> begin;  // when it was due; default: now
  std::optional<Clock::time_point> disconnect_at;
  double stop_at_share = 2;  // of its progress; disconnects then
};

// A stated limit and what was measured.
struct Bound {
  std::string text;
  double value = 0;
  double limit = 0;
  bool held() const { return value <= limit; }
};

struct ScenarioReport {
  std::string name;
  std::string skipped;                                        // why it could not run; "" = it ran
  std::vector<std::vector<std::vector<std::string>>> tables;  // of FormatTable
  std::vector<std::string> notes;
  std::vector<Bound> bounds;
  nlohmann::json json = nlohmann::json::object();
  Failures failures;
  std::optional<Plot> plot;
};

class LoadRun {
 public:
  LoadRun(const LoadOptions& options, HttpClient client, uint64_t run_id);

  // Finds out about the server; the other members need it. InvalidArgument, Unavailable or what the
  // server answered.
  awaitable<absl::Status> Probe();

  // One request; failures are counted in the report of the running scenario.
  awaitable<Answer> Ask(Question question);
  Question ShortQuestion();
  Question LongQuestion(int64_t n_tokens);

  // `n` short requests one after another on an otherwise idle server; only complete ones.
  awaitable<std::vector<Answer>> AskInTurn(int64_t n);

  // GET; the body up to 4 MiB. Not counted as a failure.
  awaitable<absl::StatusOr<std::string>> Get(const std::string& path);
  // Sum of the samples of a metric; nullopt when the server has no such metric.
  awaitable<std::optional<double>> Metric(const std::string& name);

  // Why prompts of n_tokens cannot be asked for, or "".
  std::string TooLong(int64_t n_tokens) const;

  double NowSeconds() const { return Seconds(Clock::now()); }
  double Seconds(Clock::time_point time) const {
    return std::chrono::duration<double>(time - zero_).count();
  }
  boost::asio::io_context* io() const { return &client_.io(); }
  const LoadOptions& options() const { return options_; }
  const Target& target() const { return target_; }
  const HttpClient& client() const { return client_; }
  PromptText& prompts() { return prompts_; }
  ProgressBar& bar() { return bar_; }
  const CompletionStyle& style() const { return style_; }
  Clock::time_point GiveUp() const;
  void SetReport(ScenarioReport* report) { report_ = report; }

 private:
  awaitable<absl::Status> ProbeModel();
  awaitable<absl::Status> ProbeTokens();

  const LoadOptions options_;
  const HttpClient client_;
  const Clock::time_point zero_ = Clock::now();
  Target target_;
  CompletionStyle style_;
  PromptText prompts_;
  ProgressBar bar_{stderr};
  ScenarioReport* report_ = nullptr;  // of the scenario that runs
};

// The quantity of all complete answers.
Samples Ttfts(const std::vector<Answer>& answers);
Samples Totals(const std::vector<Answer>& answers);
Samples Gaps(const std::vector<Answer>& answers);
int64_t NumberRight(const std::vector<Answer>& answers);
// "7 of 8 answers begin with the code that was asked for"
std::string RightText(const std::vector<Answer>& answers);
// n, p50, p90, p99 and maximum, as cells of a table.
std::vector<std::string> QuantileCells(const Samples& seconds);

}  // namespace longhaul::load
