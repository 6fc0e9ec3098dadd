#include <fmt/format.h>

#include "server/console.h"
#include "server/load/scenarios.h"

namespace longhaul::load {
namespace {

// One client: asks again as soon as it has its answer.
awaitable<void> KeepAsking(LoadRun& run, Clock::time_point end, std::vector<Answer>& answers) {
  const LoadOptions& options = run.options();
  while (Clock::now() < end) {
    Question question;
    question.prompt = run.prompts().Make(options.short_tokens, options.stream_output);
    question.max_tokens = options.stream_output;
    Answer answer = co_await run.Ask(std::move(question));
    const bool failed = !answer.failure.empty();
    answers.push_back(std::move(answer));
    // What is overloaded gets a pause, as a well-behaved client would give it.
    if (failed) co_await SleepUntil(run.io(), Clock::now() + std::chrono::milliseconds(200));
  }
}

}  // namespace

awaitable<void> RunStreams(LoadRun& run, ScenarioReport& report) {
  const LoadOptions& options = run.options();
  const Clock::time_point begin = Clock::now();
  const Clock::time_point end = begin + std::chrono::duration_cast<Clock::duration>(
                                            std::chrono::duration<double>(options.seconds));
  run.bar().Begin(fmt::format("streams: {} at once", options.streams), options.seconds);
  std::vector<Answer> answers;
  TaskGroup group(run.io());
  for (int64_t i = 0; i < options.streams; ++i) group.Spawn(KeepAsking(run, end, answers));
  co_await group.Wait();
  const double elapsed_s = std::chrono::duration<double>(Clock::now() - begin).count();

  int64_t n_tokens = 0, n_complete = 0;
  for (const Answer& answer : answers) {
    n_complete += answer.complete;
    // A server without usage: one token for each piece of text.
    n_tokens += answer.output_tokens >= 0
                    ? answer.output_tokens
                    : static_cast<int64_t>(answer.gaps_s.size()) + (answer.ttft_s >= 0);
  }
  const double tokens_per_s = static_cast<double>(n_tokens) / elapsed_s;
  std::vector<std::vector<std::string>> table = {
      {fmt::format("{} streams", options.streams), "n", "p50", "p90", "p99", "max"}};
  const auto row = [&table](const char* head, const Samples& samples) {
    std::vector<std::string> cells = QuantileCells(samples);
    cells.insert(cells.begin(), head);
    table.push_back(std::move(cells));
  };
  row("TTFT", Ttfts(answers));
  row("time between tokens", Gaps(answers));
  row("whole answer", Totals(answers));
  report.tables.push_back(std::move(table));
  report.notes.push_back(fmt::format("{} of {} requests complete in {}; {:.0f} tokens per second",
                                     n_complete, answers.size(), FormatDuration(elapsed_s),
                                     tokens_per_s));
  report.notes.push_back(RightText(answers));
  report.json.update({{"streams", options.streams},
                      {"seconds", elapsed_s},
                      {"n_requests", answers.size()},
                      {"n_complete", n_complete},
                      {"n_right", NumberRight(answers)},
                      {"tokens_per_s", tokens_per_s},
                      {"ttft_s", Ttfts(answers).Json()},
                      {"itl_s", Gaps(answers).Json()},
                      {"total_s", Totals(answers).Json()}});
}

}  // namespace longhaul::load
