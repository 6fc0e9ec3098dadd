#include <fmt/format.h>

#include <map>

#include "server/console.h"
#include "server/load/scenarios.h"

namespace longhaul::load {
namespace {

constexpr std::chrono::milliseconds kPollInterval{10};
constexpr std::chrono::seconds kPollGiveUp{10};
constexpr std::chrono::seconds kIdleTime{2};
constexpr double kLimitSeconds = 0.050;  // the bound on the p99

struct Polls {
  Samples seconds;
  bool stop = false;
};

awaitable<void> PollOnce(LoadRun& run, ScenarioReport& report, Clock::time_point due,
                         Polls& polls) {
  HttpCall call;
  call.path = "/health";
  call.give_up = Clock::now() + kPollGiveUp;
  BodySink sink = [](const HttpHead&, std::string_view) { return true; };
  const HttpOutcome outcome = co_await run.client().Call(call, sink);
  if (outcome.head.status == 200 && outcome.status.ok()) {
    polls.seconds.Add(std::chrono::duration<double>(Clock::now() - due).count());
  } else if (outcome.head.status != 0) {
    report.failures.Add(fmt::format("/health HTTP {}", outcome.head.status), "");
  } else {
    report.failures.Add("/health", std::string(outcome.status.message()));
  }
}

// Each poll on its own connection and in its time, however long earlier ones take.
awaitable<void> Poll(LoadRun& run, ScenarioReport& report, Polls& polls) {
  TaskGroup group(run.io());
  for (Clock::time_point next = Clock::now(); !polls.stop; next += kPollInterval) {
    co_await SleepUntil(run.io(), next);
    group.Spawn(PollOnce(run, report, next, polls));
  }
  co_await group.Wait();
}

struct BodyAnswers {
  Samples seconds;
  std::map<std::string, int64_t> verdicts;  // how many got which
};

// A refusal is an answer, too: such a body is larger than most servers take.
std::string Verdict(const Answer& answer) {
  if (!answer.failure.empty()) return fmt::format("{} ({})", answer.failure, answer.detail);
  return answer.stopped ? "accepted or still arriving when the time was over" : "answered";
}

// Large bodies one after another for `seconds`, one at least.
awaitable<void> SendBodies(LoadRun& run, const std::string& body, double seconds,
                           BodyAnswers& answers) {
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  do {
    const Clock::time_point begin = Clock::now();
    AnswerReader reader(begin);
    BodySink sink = [&reader](const HttpHead& head, std::string_view bytes) {
      return reader.Take(head, bytes);
    };
    HttpCall call;
    call.method = "POST";
    call.path = CompletionPath(run.style());
    call.body = body;
    call.give_up = run.GiveUp();
    call.disconnect_at = end;  // an accepted one would run for minutes
    const HttpOutcome outcome = co_await run.client().Call(call, sink);
    const Answer answer = reader.Finish(outcome);
    answers.seconds.Add(answer.total_s);
    ++answers.verdicts[Verdict(answer)];
  } while (Clock::now() < end);
}

}  // namespace

awaitable<void> RunHealthPolls(LoadRun& run, ScenarioReport& report) {
  const LoadOptions& options = run.options();
  if (!run.target().has_health) {
    report.skipped = "this server has no /health";
    co_return;
  }
  run.bar().Begin("health: an idle server", static_cast<double>(kIdleTime.count()));
  // A word has more than four bytes on average; cut to size, and made before anything is measured.
  std::string text = run.ShortQuestion().prompt.text;
  text += ' ';
  text += run.prompts().Filler(options.body_bytes / 4);
  text.resize(std::min(text.size(), static_cast<size_t>(options.body_bytes)));
  const std::string body = CompletionBody(run.style(), text, 1, /*report_progress=*/false);
  Polls idle, loaded;
  TaskGroup group(run.io());
  group.Spawn(Poll(run, report, idle));
  co_await SleepUntil(run.io(), Clock::now() + kIdleTime);
  idle.stop = true;
  co_await group.Wait();

  run.bar().Begin("health: while large bodies arrive", options.seconds);
  BodyAnswers answers;
  group.Spawn(Poll(run, report, loaded));
  co_await SendBodies(run, body, options.seconds, answers);
  loaded.stop = true;
  co_await group.Wait();

  std::vector<std::vector<std::string>> table = {
      {"GET /health every 10 ms", "n", "p50", "p90", "p99", "max"}};
  const auto row = [&table](std::string head, const Samples& samples) {
    std::vector<std::string> cells = QuantileCells(samples);
    cells.insert(cells.begin(), std::move(head));
    table.push_back(std::move(cells));
  };
  row("idle server", idle.seconds);
  row(fmt::format("while bodies of {:.1f} MB arrive", static_cast<double>(body.size()) * 1e-6),
      loaded.seconds);
  report.tables.push_back(std::move(table));
  report.notes.push_back(fmt::format("{} bodies in turn, {} each", answers.seconds.n(),
                                     FormatDuration(answers.seconds.Mean())));
  for (const auto& [verdict, count] : answers.verdicts) {
    report.notes.push_back(fmt::format("{} x {}", count, verdict));
  }
  report.bounds.push_back({"p99 of /health [s]", loaded.seconds.Quantile(0.99), kLimitSeconds});
  report.json.update({{"idle_s", idle.seconds.Json()},
                      {"loaded_s", loaded.seconds.Json()},
                      {"body_bytes", body.size()},
                      {"n_bodies", answers.seconds.n()},
                      {"body_s", answers.seconds.Json()},
                      {"verdicts", answers.verdicts}});
}

}  // namespace longhaul::load
