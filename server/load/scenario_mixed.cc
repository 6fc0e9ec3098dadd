#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "server/console.h"
#include "server/load/arrivals.h"
#include "server/load/scenarios.h"

namespace longhaul::load {
namespace {

constexpr int64_t kWarmUps = 5;
constexpr int64_t kServiceRuns = 40;      // of short requests, to learn their service time
constexpr int64_t kAloneRuns = 3;         // of the long prompt; fewer when it takes long
constexpr double kAloneSeconds = 10;      // ... in all
constexpr int64_t kMaxInFlight = 512;     // arrivals beyond are counted as failures, not sent
constexpr double kShortFactor = 3;        // the bound on the p99 of short requests
constexpr double kSlowDownMargin = 1.10;  // the bound on the slow-down beyond the lost share

// One stretch of time with random arrivals.
struct Window {
  double begin_s = 0, end_s = 0;  // of arrivals, in the time of the run
  std::vector<Answer> shorts;
  std::vector<Answer> longs;  // as far as they ended inside
  int64_t n_longs_ended = 0;
};

awaitable<void> AskShort(LoadRun& run, Clock::time_point due, Window& window) {
  Question question = run.ShortQuestion();
  question.begin = due;  // an arrival that we send late was waiting, too
  Answer answer = co_await run.Ask(std::move(question));
  window.shorts.push_back(std::move(answer));
}

// Long prompts back to back until `end`, or until the first one is through if that is later.
awaitable<void> AskLongs(LoadRun& run, Clock::time_point end, Window& window) {
  while (window.n_longs_ended == 0 || Clock::now() < end) {
    Question question = run.LongQuestion(run.options().long_tokens);
    if (window.n_longs_ended > 0) question.disconnect_at = end;
    Answer answer = co_await run.Ask(std::move(question));
    ++window.n_longs_ended;
    const bool failed = !answer.failure.empty();
    window.longs.push_back(std::move(answer));
    // A server that refuses at once must not be asked thousands of times.
    if (failed) co_await SleepUntil(run.io(), Clock::now() + std::chrono::seconds(1));
  }
}

awaitable<void> RunWindow(LoadRun& run, ScenarioReport& report, double rate_per_s, bool with_long,
                          Window& window) {
  const LoadOptions& options = run.options();
  TaskGroup group(run.io());
  PoissonArrivals arrivals(rate_per_s, options.seed + (with_long ? 1 : 0));
  const Clock::time_point begin = Clock::now();
  const auto seconds = [](double s) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
  };
  const Clock::time_point end = begin + seconds(options.seconds);
  run.bar().Begin(
      with_long ? "mixed: short requests beside a long prompt" : "mixed: short requests alone",
      options.seconds);
  if (with_long) group.Spawn(AskLongs(run, end, window));
  Clock::time_point next = begin + seconds(arrivals.NextGap());
  while (next < end || (with_long && window.n_longs_ended == 0)) {
    co_await SleepUntil(run.io(), next);
    if (group.n_running() < kMaxInFlight) {
      group.Spawn(AskShort(run, next, window));
    } else {
      report.failures.Add("not sent", fmt::format("{} requests are in flight", kMaxInFlight));
    }
    next += seconds(arrivals.NextGap());
  }
  window.begin_s = run.Seconds(begin);
  window.end_s = std::max(run.NowSeconds(), run.Seconds(end));
  co_await group.Wait();
}

awaitable<double> MeasureServiceTime(LoadRun& run) {
  run.bar().Begin("mixed: service time of short requests", 2);
  co_await run.AskInTurn(kWarmUps);
  const std::vector<Answer> answers = co_await run.AskInTurn(kServiceRuns);
  co_return Totals(answers).Mean();
}

awaitable<Samples> MeasureLongAlone(LoadRun& run) {
  Samples ttfts;
  const Clock::time_point stop =
      Clock::now() + std::chrono::seconds(static_cast<int>(kAloneSeconds));
  for (int64_t i = 0; i < kAloneRuns && (i == 0 || Clock::now() < stop); ++i) {
    run.bar().Begin("mixed: the long prompt alone", std::max(ttfts.Mean(), 1.0));
    Question question = run.LongQuestion(run.options().long_tokens);
    const Answer answer = co_await run.Ask(std::move(question));
    if (answer.complete) ttfts.Add(answer.ttft_s);
  }
  co_return ttfts;
}

Plot MakePlot(const LoadRun& run, const Window& without, const Window& with, double limit_s) {
  Plot plot;
  plot.title = "Time to first token of short requests beside a long prompt";
  plot.subtitle =
      fmt::format("short: {} tokens, Poisson, utilisation {:g}; long: {} tokens; model {}",
                  run.options().short_tokens, run.options().utilisation, run.options().long_tokens,
                  run.target().model);
  plot.x_label = "time since the first arrival [s]";
  plot.y_label = "TTFT of short requests (log)";
  plot.y2_label = "long prompt processed";
  plot.span_label = "a long prompt is prefilled";
  const auto dots = [&](const Window& window, const char* label, const char* colour) {
    Plot::Series series{label, colour, {}};
    for (const Answer& answer : window.shorts) {
      if (answer.complete)
        series.points.push_back({answer.begin_s - without.begin_s, answer.ttft_s});
    }
    plot.dots.push_back(std::move(series));
  };
  dots(without, "without", "#7a7a7a");
  dots(with, "with a long prompt", "#1f5fa8");
  Plot::Series progress{"progress of the long prompt", "#c77700", {}};
  for (const Answer& answer : with.longs) {
    const double begin = answer.begin_s - without.begin_s;
    const double end = answer.complete ? answer.ttft_s : answer.total_s;
    plot.spans.push_back({begin, begin + end});
    for (const ProgressPoint& point : answer.progress) {
      if (point.at_s <= end) progress.points.push_back({begin + point.at_s, point.share});
    }
    progress.points.push_back({begin, std::numeric_limits<double>::quiet_NaN()});
  }
  plot.lines.push_back(std::move(progress));
  plot.level = limit_s;
  plot.level_label = fmt::format("bound on the p99: {}", FormatDuration(limit_s));
  return plot;
}

std::vector<std::string> Row(std::string head, std::vector<std::string> cells) {
  cells.insert(cells.begin(), std::move(head));
  return cells;
}

nlohmann::json WindowJson(const Window& window) {
  nlohmann::json longs = nlohmann::json::array();
  for (const Answer& answer : window.longs) {
    longs.push_back(
        {{"complete", answer.complete}, {"begin_s", answer.begin_s}, {"ttft_s", answer.ttft_s}});
  }
  return {{"seconds", window.end_s - window.begin_s},
          {"n_short", window.shorts.size()},
          {"n_right", NumberRight(window.shorts)},
          {"ttft_s", Ttfts(window.shorts).Json()},
          {"itl_s", Gaps(window.shorts).Json()},
          {"total_s", Totals(window.shorts).Json()},
          {"longs", longs}};
}

void Summarise(LoadRun& run, ScenarioReport& report, double service_s, const Samples& alone,
               const Window& without, const Window& with) {
  const Samples before = Ttfts(without.shorts), beside = Ttfts(with.shorts),
                among = Ttfts(with.longs);
  report.tables.push_back({{"short requests", "n", "p50", "p90", "p99", "max"},
                           Row("TTFT without a long prompt", QuantileCells(before)),
                           Row("TTFT with", QuantileCells(beside)),
                           Row("time between tokens without", QuantileCells(Gaps(without.shorts))),
                           Row("time between tokens with", QuantileCells(Gaps(with.shorts)))});
  // What short requests took of the window while the long prompts ran, at their service time.
  const double window_s = with.end_s - with.begin_s;
  const double lost_share = std::min(static_cast<double>(beside.n()) * service_s / window_s, 0.99);
  const double expected = 1 / (1 - lost_share);
  const double slow_down = alone.n() > 0 && among.n() > 0 ? among.Mean() / alone.Mean() : 0;
  const double slice_s = run.options().slice_ms * 1e-3;
  const double limit_s = kShortFactor * before.Quantile(0.99) + slice_s;
  report.tables.push_back(
      {{"long prompt", "n", "TTFT"},
       {"alone", fmt::format("{}", alone.n()), FormatDuration(alone.Mean())},
       {"among short requests", fmt::format("{}", among.n()), FormatDuration(among.Mean())},
       {"slow-down", "", fmt::format("{:.2f}x", slow_down)},
       {"expected from the time short ones take", "", fmt::format("{:.2f}x", expected)}});
  report.notes.push_back(fmt::format(
      "service time of a short request {}; {:.1f} arrivals per second; they took {:.0f} % of the "
      "time",
      FormatDuration(service_s), run.options().utilisation / service_s, 100 * lost_share));
  report.notes.push_back(RightText(with.shorts));
  if (beside.n() > 0 && before.n() > 0) {
    report.bounds.push_back(
        {"p99 TTFT with <= 3 x p99 without + slice [s]", beside.Quantile(0.99), limit_s});
  }
  if (slow_down > 0) {
    report.bounds.push_back(
        {"slow-down of the long prompt <= 1.1 x expected", slow_down, kSlowDownMargin * expected});
  }
  report.json.update(
      {{"service_s", service_s},
       {"rate_per_s", run.options().utilisation / service_s},
       {"without", WindowJson(without)},
       {"with", WindowJson(with)},
       {"ttft_p99_ratio", before.n() > 0 ? beside.Quantile(0.99) / before.Quantile(0.99) : 0},
       {"long_alone_ttft_s", alone.Json()},
       {"long_among_ttft_s", among.Json()},
       {"slow_down", slow_down},
       {"lost_share", lost_share},
       {"expected_slow_down", expected}});
  report.plot = MakePlot(run, without, with, limit_s);
}

}  // namespace

awaitable<void> RunMixed(LoadRun& run, ScenarioReport& report) {
  report.skipped = run.TooLong(run.options().long_tokens);
  if (!report.skipped.empty()) co_return;
  const double service_s = co_await MeasureServiceTime(run);
  if (service_s <= 0) {
    report.skipped = "no short request got an answer";
    co_return;
  }
  const Samples alone = co_await MeasureLongAlone(run);
  const double rate_per_s = run.options().utilisation / service_s;
  Window without, with;
  co_await RunWindow(run, report, rate_per_s, /*with_long=*/false, without);
  co_await RunWindow(run, report, rate_per_s, /*with_long=*/true, with);
  Summarise(run, report, service_s, alone, without, with);
}

}  // namespace longhaul::load
