#include <fmt/format.h>

#include <cmath>
#include <random>

#include "server/console.h"
#include "server/load/scenarios.h"

namespace longhaul::load {
namespace {

constexpr int64_t kWarmUps = 3;
constexpr int64_t kIdleRuns = 20;
constexpr std::chrono::seconds kSettleTime{10};  // for pages to come back
constexpr std::chrono::milliseconds kMetricInterval{5};
constexpr const char* kRunning = "vllm:num_requests_running";
constexpr const char* kUsage = "vllm:kv_cache_usage_perc";

// Seconds until no request runs and the KV usage is back; nullopt when that does not happen.
awaitable<std::optional<double>> WaitSettled(LoadRun& run, double usage_before) {
  const Clock::time_point begin = Clock::now();
  while (Clock::now() - begin < kSettleTime) {
    const double running = (co_await run.Metric(kRunning)).value_or(0);
    const double usage = (co_await run.Metric(kUsage)).value_or(0);
    if (running == 0 && usage <= usage_before + 1e-9) {
      co_return std::chrono::duration<double>(Clock::now() - begin).count();
    }
    co_await SleepUntil(run.io(), Clock::now() + kMetricInterval);
  }
  co_return std::nullopt;
}

struct Cancelled {
  Samples ttfts;    // of the short request right after
  Samples settled;  // seconds after a disconnect
  int64_t n_finished_first = 0;
  int64_t n_not_settled = 0;
};

// Starts a long prompt and leaves after `after_s`; true when it was still running then.
awaitable<bool> AskAndLeave(LoadRun& run, double after_s) {
  Question question = run.LongQuestion(run.options().long_tokens);
  question.disconnect_at = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                              std::chrono::duration<double>(after_s));
  const Answer answer = co_await run.Ask(std::move(question));
  co_return answer.stopped;
}

awaitable<void> CancelOnce(LoadRun& run, double after_s, double usage_before, Cancelled& result) {
  if (!co_await AskAndLeave(run, after_s)) ++result.n_finished_first;
  Question question = run.ShortQuestion();
  const Answer next = co_await run.Ask(std::move(question));
  if (next.complete) result.ttfts.Add(next.ttft_s);
  if (!run.target().has_metrics) co_return;
  co_await WaitSettled(run, usage_before);
  // A second time without the short request, which would count as running.
  co_await AskAndLeave(run, after_s);
  const std::optional<double> settled_s = co_await WaitSettled(run, usage_before);
  if (settled_s) {
    result.settled.Add(*settled_s);
  } else {
    ++result.n_not_settled;
  }
}

void Summarise(LoadRun& run, ScenarioReport& report, const Samples& idle, const Cancelled& result) {
  std::vector<std::vector<std::string>> table = {{"cancel", "n", "p50", "p90", "p99", "max"}};
  const auto row = [&table](const char* head, const Samples& samples) {
    std::vector<std::string> cells = QuantileCells(samples);
    cells.insert(cells.begin(), head);
    table.push_back(std::move(cells));
  };
  row("TTFT of a short request, idle server", idle);
  row("TTFT of a short request after a cancel", result.ttfts);
  if (run.target().has_metrics) row("disconnect until all pages are back", result.settled);
  report.tables.push_back(std::move(table));
  const double slice_s = run.options().slice_ms * 1e-3;
  if (result.ttfts.n() > 0) {
    report.bounds.push_back({"TTFT after a cancel <= slice + p99 idle [s]", result.ttfts.Max(),
                             slice_s + idle.Quantile(0.99)});
  }
  if (run.target().has_metrics) {
    report.bounds.push_back(
        {"cancels whose pages did not come back", static_cast<double>(result.n_not_settled), 0});
  } else {
    report.notes.push_back("this server has no metrics with vLLM's names: pages are not checked");
  }
  if (result.n_finished_first > 0) {
    report.notes.push_back(
        fmt::format("{} long prompts were through before their cancel", result.n_finished_first));
  }
  report.json.update({{"idle_ttft_s", idle.Json()},
                      {"after_cancel_ttft_s", result.ttfts.Json()},
                      {"settled_s", result.settled.Json()},
                      {"n_not_settled", result.n_not_settled},
                      {"n_finished_first", result.n_finished_first}});
}

}  // namespace

awaitable<void> RunCancel(LoadRun& run, ScenarioReport& report) {
  const LoadOptions& options = run.options();
  report.skipped = run.TooLong(options.long_tokens);
  if (!report.skipped.empty()) co_return;
  run.bar().Begin("cancel: an idle server", 2);
  co_await run.AskInTurn(kWarmUps);
  const std::vector<Answer> idle = co_await run.AskInTurn(kIdleRuns);
  Question question = run.LongQuestion(options.long_tokens);
  const Answer cold = co_await run.Ask(std::move(question));
  if (!cold.complete || idle.empty()) {
    report.skipped = "the prompts got no answer on an idle server";
    co_return;
  }
  const double usage_before = (co_await run.Metric(kUsage)).value_or(0);
  Cancelled result;
  int64_t n_done = 0;
  run.bar().Begin("cancel: long prompts left at random moments", [&] {
    return static_cast<double>(n_done) / static_cast<double>(options.cancels);
  });
  std::mt19937_64 random(options.seed);
  for (; n_done < options.cancels; ++n_done) {
    const double share = 0.05 + 0.9 * static_cast<double>(random() >> 11) * 0x1p-53;
    co_await CancelOnce(run, share * cold.ttft_s, usage_before, result);
  }
  report.json["long_ttft_s"] = cold.ttft_s;
  Summarise(run, report, Ttfts(idle), result);
}

}  // namespace longhaul::load
