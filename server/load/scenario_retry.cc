#include <fmt/format.h>

#include "server/console.h"
#include "server/load/scenarios.h"

namespace longhaul::load {
namespace {

constexpr double kBreakOffShare = 0.8;
constexpr double kRetryLimit = 0.30;  // of the cold TTFT
constexpr double kGrownLimit = 0.05;

struct Round {
  double cold_s = 0, retry_s = 0, grown_s = 0;
  int64_t prompt_tokens = 0, retry_cached = -1, grown_cached = -1;
};

// One cold prompt; another one broken off, asked again, and asked with more text. nullopt when one
// of them got no answer.
awaitable<std::optional<Round>> RunRound(LoadRun& run) {
  const int64_t n_tokens = run.options().long_tokens;
  Question cold = run.LongQuestion(n_tokens);
  const Answer cold_answer = co_await run.Ask(std::move(cold));
  if (!cold_answer.complete) co_return std::nullopt;
  Round round;
  round.cold_s = cold_answer.ttft_s;

  const Question question = run.LongQuestion(n_tokens);
  Question broken = question;
  if (run.target().longhaul) {
    broken.stop_at_share = kBreakOffShare;
  } else {
    broken.disconnect_at =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(kBreakOffShare * round.cold_s));
  }
  const Answer left = co_await run.Ask(std::move(broken));
  if (!left.failure.empty()) co_return std::nullopt;

  Question again = question;
  const Answer retry = co_await run.Ask(std::move(again));
  if (!retry.complete) co_return std::nullopt;
  round.prompt_tokens = retry.prompt_tokens;
  round.retry_s = retry.ttft_s;
  round.retry_cached = retry.cached_tokens;

  Question grown = question;
  grown.prompt.text += " ";
  grown.prompt.text += run.prompts().Filler(run.options().new_tokens);
  const Answer grown_answer = co_await run.Ask(std::move(grown));
  if (!grown_answer.complete) co_return std::nullopt;
  round.grown_s = grown_answer.ttft_s;
  round.grown_cached = grown_answer.cached_tokens;
  co_return round;
}

std::string CachedText(int64_t n_tokens) {
  return n_tokens < 0 ? "not said" : fmt::format("{}", n_tokens);
}

}  // namespace

awaitable<void> RunRetry(LoadRun& run, ScenarioReport& report) {
  const LoadOptions& options = run.options();
  report.skipped = run.TooLong(options.long_tokens + options.new_tokens);
  if (!report.skipped.empty()) co_return;
  int64_t n_done = 0;
  run.bar().Begin("retry: break off at 80 % and ask again", [&] {
    return static_cast<double>(n_done) / static_cast<double>(options.retries);
  });
  Samples cold, retry, grown;
  std::optional<Round> last;
  for (; n_done < options.retries; ++n_done) {
    const std::optional<Round> round = co_await RunRound(run);
    if (!round) continue;
    last = round;
    cold.Add(round->cold_s);
    retry.Add(round->retry_s);
    grown.Add(round->grown_s);
  }
  if (!last) {
    report.skipped = "no long prompt got an answer";
    co_return;
  }
  const double cold_s = cold.Quantile(0.5);
  const double retry_share = retry.Quantile(0.5) / cold_s,
               grown_share = grown.Quantile(0.5) / cold_s;
  report.tables.push_back(
      {{"long prompt", "n", "TTFT p50", "of cold", "cached tokens"},
       {"cold", fmt::format("{}", cold.n()), FormatDuration(cold_s), "", ""},
       {"again after leaving at 80 %", fmt::format("{}", retry.n()),
        FormatDuration(retry.Quantile(0.5)), fmt::format("{:.1f} %", 100 * retry_share),
        CachedText(last->retry_cached)},
       {fmt::format("known, and {} new tokens", options.new_tokens), fmt::format("{}", grown.n()),
        FormatDuration(grown.Quantile(0.5)), fmt::format("{:.1f} %", 100 * grown_share),
        CachedText(last->grown_cached)}});
  report.bounds.push_back({"TTFT of the retry, share of cold", retry_share, kRetryLimit});
  report.bounds.push_back({"TTFT with new tokens, share of cold", grown_share, kGrownLimit});
  report.json.update({{"cold_ttft_s", cold.Json()},
                      {"retry_ttft_s", retry.Json()},
                      {"grown_ttft_s", grown.Json()},
                      {"retry_share", retry_share},
                      {"grown_share", grown_share},
                      {"prompt_tokens", last->prompt_tokens},
                      {"retry_cached_tokens", last->retry_cached},
                      {"grown_cached_tokens", last->grown_cached}});
}

}  // namespace longhaul::load
