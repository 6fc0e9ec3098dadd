#include "server/cmd_bench_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "server/console.h"
#include "server/load/scenarios.h"

namespace longhaul {
namespace {

using load::LoadRun;
using load::ScenarioReport;
using nlohmann::json;

constexpr std::chrono::milliseconds kRedrawInterval{250};

using Scenario = load::awaitable<void> (*)(LoadRun&, ScenarioReport&);

Scenario ScenarioOf(const std::string& name) {
  if (name == "mixed") return load::RunMixed;
  if (name == "parallel") return load::RunParallel;
  if (name == "cancel") return load::RunCancel;
  if (name == "retry") return load::RunRetry;
  if (name == "health") return load::RunHealthPolls;
  return load::RunStreams;
}

struct LoadResult {
  absl::Status status;  // of the probe
  std::vector<ScenarioReport> reports;
  bool done = false;
};

load::awaitable<void> RunScenarios(LoadRun& run, LoadResult& result) {
  run.bar().Begin("looking at the server", 1);
  result.status = co_await run.Probe();
  if (result.status.ok()) {
    for (const std::string& name : load::ScenarioNames()) {
      const std::vector<std::string>& wanted = run.options().scenarios;
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end())
        continue;
      ScenarioReport report;
      report.name = name;
      run.SetReport(&report);
      co_await ScenarioOf(name)(run, report);
      run.SetReport(nullptr);
      result.reports.push_back(std::move(report));
    }
  }
  run.bar().Clear();
  result.done = true;
}

load::awaitable<void> RedrawBar(LoadRun& run, const LoadResult& result) {
  while (!result.done) {
    run.bar().Redraw();
    co_await load::SleepUntil(run.io(), load::Clock::now() + kRedrawInterval);
  }
}

void PrintReport(const ScenarioReport& report) {
  fmt::print("\n{}\n", report.name);
  if (!report.skipped.empty()) fmt::print("did not run: {}\n", report.skipped);
  for (const auto& table : report.tables) fmt::print("{}\n", FormatTable(table));
  for (const std::string& note : report.notes) fmt::print("{}\n", note);
  for (const load::Bound& bound : report.bounds) {
    fmt::print("{}: {:.3g}, at most {:.3g}: {}\n", bound.text, bound.value, bound.limit,
               bound.held() ? "held" : "MISSED");
  }
  for (const auto& [kind, failures] : report.failures.kinds()) {
    fmt::print("FAILED {} x {}: {}\n", failures.count, kind, failures.first_detail);
  }
  std::fflush(stdout);
}

json ReportJson(const ScenarioReport& report) {
  json object = report.json;
  if (!report.skipped.empty()) object["skipped"] = report.skipped;
  object["bounds"] = json::array();
  for (const load::Bound& bound : report.bounds) {
    object["bounds"].push_back({{"text", bound.text},
                                {"value", bound.value},
                                {"limit", bound.limit},
                                {"held", bound.held()}});
  }
  object["failures"] = json::object();
  for (const auto& [kind, failures] : report.failures.kinds()) {
    object["failures"][kind] = {{"count", failures.count}, {"first", failures.first_detail}};
  }
  return object;
}

json ResultJson(const load::LoadOptions& options, const LoadRun& run, const LoadResult& result) {
  const load::Target& target = run.target();
  json object = {{"target",
                  {{"url", options.url},
                   {"model", target.model},
                   {"longhaul", target.longhaul},
                   {"max_model_len", target.max_model_len},
                   {"tokens_per_piece", target.tokens_per_piece}}},
                 {"settings",
                  {{"short_tokens", options.short_tokens},
                   {"short_output", options.short_output},
                   {"long_tokens", options.long_tokens},
                   {"utilisation", options.utilisation},
                   {"seconds", options.seconds},
                   {"parallel", options.parallel},
                   {"parallel_tokens", options.parallel_tokens},
                   {"slice_ms", options.slice_ms},
                   {"sparse_mode", options.sparse_mode},
                   {"seed", options.seed}}},
                 {"scenarios", json::object()}};
  for (const ScenarioReport& report : result.reports) {
    object["scenarios"][report.name] = ReportJson(report);
  }
  return object;
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("cannot write {}", path));
}

// Now, not after an hour of measuring.
absl::Status CheckWritable(const std::string& path) {
  if (path.empty() || std::ofstream(path, std::ios::app)) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("cannot write {}", path));
}

absl::Status WriteFiles(const load::LoadOptions& options, const LoadRun& run,
                        const LoadResult& result) {
  if (!options.json_path.empty()) {
    LH_RETURN_IF_ERROR(
        WriteFile(options.json_path, ResultJson(options, run, result).dump(1) + "\n"));
  }
  if (options.svg_path.empty()) return absl::OkStatus();
  // A server that could not run the scenario gets an empty plot, which is what there is to see.
  const auto plotted = std::find_if(result.reports.begin(), result.reports.end(),
                                    [](const ScenarioReport& r) { return r.plot.has_value(); });
  load::Plot nothing;
  nothing.title = "nothing was measured";
  return WriteFile(options.svg_path,
                   load::RenderSvg(plotted != result.reports.end() ? *plotted->plot : nothing));
}

int Failed(const absl::Status& status) {
  fmt::print(stderr, "longhaul bench load: {}\n", std::string(status.message()));
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

absl::Status CheckAll(const load::LoadOptions& options) {
  LH_RETURN_IF_ERROR(load::CheckOptions(options));
  LH_RETURN_IF_ERROR(CheckWritable(options.json_path));
  return CheckWritable(options.svg_path);
}

}  // namespace

int RunBenchLoad(const load::LoadOptions& options) {
  if (absl::Status status = CheckAll(options); !status.ok()) return Failed(status);
  boost::asio::io_context io(1);
  absl::StatusOr<load::HttpClient> client =
      load::HttpClient::Create(&io, *load::ParseUrl(options.url), options.api_key);
  if (!client.ok()) return Failed(client.status());
  std::random_device random;
  const uint64_t run_id = (uint64_t{random()} << 32) | random();
  LoadRun run(options, *std::move(client), run_id);
  LoadResult result;
  load::TaskGroup group(&io);
  group.Spawn(RunScenarios(run, result));
  group.Spawn(RedrawBar(run, result));
  io.run();
  if (!result.status.ok()) return Failed(result.status);

  int64_t n_failures = 0;
  for (const ScenarioReport& report : result.reports) {
    PrintReport(report);
    n_failures += report.failures.n();
  }
  if (absl::Status status = WriteFiles(options, run, result); !status.ok()) return Failed(status);
  return n_failures == 0 ? 0 : 1;
}

}  // namespace longhaul
