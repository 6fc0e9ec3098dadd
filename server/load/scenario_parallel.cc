#include <fmt/format.h>

#include <algorithm>

#include "server/console.h"
#include "server/load/scenarios.h"

namespace longhaul::load {
namespace {

constexpr double kTimeMargin = 1.10;  // the bound: at once against in a row

awaitable<void> AskInto(LoadRun& run, Question question, Answer& answer) {
  answer = co_await run.Ask(std::move(question));
}

// The share of a prompt that was done at a time, by the last progress before it.
double ShareAt(const Answer& answer, double at_s) {
  double share = 0;
  for (const ProgressPoint& point : answer.progress) {
    if (answer.begin_s + point.at_s <= at_s) share = point.share;
  }
  return answer.complete && answer.begin_s + answer.ttft_s <= at_s ? 1 : share;
}

nlohmann::json AnswerJson(const Answer& answer, double begin_s) {
  nlohmann::json progress = nlohmann::json::array();
  for (const ProgressPoint& point : answer.progress) {
    progress.push_back({answer.begin_s - begin_s + point.at_s, point.share});
  }
  return {{"ttft_s", answer.ttft_s}, {"complete", answer.complete}, {"progress", progress}};
}

int64_t NumberComplete(const std::vector<Answer>& answers) {
  return std::count_if(answers.begin(), answers.end(), [](const Answer& a) { return a.complete; });
}

}  // namespace

awaitable<void> RunParallel(LoadRun& run, ScenarioReport& report) {
  const LoadOptions& options = run.options();
  report.skipped = run.TooLong(options.parallel_tokens);
  if (!report.skipped.empty()) co_return;
  const auto k = static_cast<size_t>(options.parallel);
  std::vector<Answer> in_row(k), at_once(k);

  size_t n_done = 0;
  run.bar().Begin(fmt::format("parallel: {} long prompts in a row", k),
                  [&n_done, k] { return static_cast<double>(n_done) / static_cast<double>(k); });
  const double row_begin_s = run.NowSeconds();
  for (; n_done < k; ++n_done) {
    Question question = run.LongQuestion(options.parallel_tokens);
    in_row[n_done] = co_await run.Ask(std::move(question));
  }
  const double row_s = run.NowSeconds() - row_begin_s;

  run.bar().Begin(fmt::format("parallel: {} long prompts at once", k), row_s);
  const double begin_s = run.NowSeconds();
  TaskGroup group(run.io());
  for (Answer& answer : at_once) {
    group.Spawn(AskInto(run, run.LongQuestion(options.parallel_tokens), answer));
  }
  co_await group.Wait();
  const double once_s = run.NowSeconds() - begin_s;

  const bool all =
      NumberComplete(in_row) == options.parallel && NumberComplete(at_once) == options.parallel;
  const Samples row_ttfts = Ttfts(in_row), once_ttfts = Ttfts(at_once);
  report.tables.push_back(
      {{"long prompts", "n", "whole time", "TTFT first", "TTFT last"},
       {"in a row", fmt::format("{}", row_ttfts.n()), FormatDuration(row_s),
        FormatDuration(row_ttfts.Quantile(0)), FormatDuration(row_ttfts.Max())},
       {"at once", fmt::format("{}", once_ttfts.n()), FormatDuration(once_s),
        FormatDuration(once_ttfts.Quantile(0)), FormatDuration(once_ttfts.Max())}});
  report.json = {{"row_s", row_s}, {"once_s", once_s}, {"ratio", once_s / row_s}};
  if (all)
    report.bounds.push_back(
        {"time at once <= 1.1 x time in a row [s]", once_s, kTimeMargin * row_s});
  report.json["prompts"] = nlohmann::json::array();
  double least = 1;
  for (const Answer& answer : at_once) {
    report.json["prompts"].push_back(AnswerJson(answer, begin_s));
    least = std::min(least, ShareAt(answer, begin_s + once_s / 2));
  }
  if (run.target().longhaul) {
    report.json["least_share_at_half"] = least;
    report.notes.push_back(
        fmt::format("at half of the time the slowest prompt was {:.0f} % done", 100 * least));
  } else {
    report.notes.push_back("this server reports no progress: each prompt's share is not known");
  }
}

}  // namespace longhaul::load
