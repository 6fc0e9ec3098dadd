#include "server/cmd_bench_shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "kernels/base/checked_math.h"
#include "kernels/machine_peaks.h"
#include "server/console.h"
#include "server/random_model_run.h"

namespace longhaul {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 24;

struct Report {
  std::string backend;
  std::string shape;
  std::string weight_format;
  std::string kv_dtype;
  int64_t n_parameters = 0;
  int64_t weight_bytes = 0;
  std::optional<double> forced_density;
  bool has_peaks = false;  // those of the processors; a device has its own
  MachinePeaks peaks = {};
  double linear_gflops = 0;     // peak of the weight format
  double attention_gflops = 0;  // peak of the type that keys and values multiply in
  std::vector<PrefillTiming> prefills = {};
  std::vector<DecodeTiming> decodes = {};
};

// Seconds that the epochs left will take, if they go on getting longer as they did.
double SecondsLeft(std::span<const double> epoch_seconds, int64_t n_left) {
  const auto n_done = static_cast<double>(epoch_seconds.size());
  const double last = epoch_seconds.back();
  const double growth = n_done > 1 ? (last - epoch_seconds.front()) / (n_done - 1) : 0;
  const auto n = static_cast<double>(n_left);
  return std::max(n * last + growth * n * (n + 1) / 2, 0.0);
}

// A line on stderr every few seconds of a prefill.
class EpochProgress {
 public:
  EpochProgress(int64_t n_tokens, int64_t epoch_tokens)
      : n_tokens_(n_tokens), epoch_tokens_(epoch_tokens) {}

  void operator()(int64_t n_done, std::span<const double> epoch_seconds) {
    constexpr double kIntervalSeconds = 5;
    silent_s_ += epoch_seconds.back();
    if (n_done == n_tokens_ || silent_s_ < kIntervalSeconds) return;
    silent_s_ = 0;
    const double left_s = SecondsLeft(epoch_seconds, CeilDiv(n_tokens_ - n_done, epoch_tokens_));
    fmt::print(stderr, "{} of {} tokens, about {} left\n", n_done, n_tokens_,
               FormatDuration(left_s));
  }

 private:
  const int64_t n_tokens_;
  const int64_t epoch_tokens_;
  double silent_s_ = 0;
};

// Policies take turns, so that a machine that slows down slows all of them.
void RunPrefills(const BenchShapeOptions& options, const std::vector<SparseMode>& modes,
                 int64_t epoch_tokens, RandomModelRun& run, Report& report) {
  for (int64_t n_tokens : options.lengths) {
    // The first call of a shape makes what later calls reuse.
    run.Prefill(std::min(n_tokens, epoch_tokens), modes[0]);
    std::vector<std::vector<PrefillTiming>> timings(modes.size());
    for (int64_t repeat = 0; repeat < options.repeats; ++repeat) {
      for (size_t m = 0; m < modes.size(); ++m) {
        timings[m].push_back(
            run.Prefill(n_tokens, modes[m], EpochProgress(n_tokens, epoch_tokens)));
        fmt::print(stderr, "{} tokens, {}: {}\n", n_tokens, SparseModeName(modes[m]),
                   FormatDuration(timings[m].back().seconds));
      }
    }
    for (std::vector<PrefillTiming>& same : timings) {
      std::sort(same.begin(), same.end(), [](const PrefillTiming& a, const PrefillTiming& b) {
        return a.seconds < b.seconds;
      });
      report.prefills.push_back(same[same.size() / 2]);
    }
  }
}

absl::Status CheckRange(const char* what, const std::vector<int64_t>& values, int64_t least) {
  for (int64_t value : values) {
    if (value >= least && value <= kMaxTokens) continue;
    return absl::InvalidArgumentError(
        fmt::format("{} {} is not in [{}, {}]", what, value, least, kMaxTokens));
  }
  return absl::OkStatus();
}

absl::StatusOr<Report> Measure(const ServerConfig& server, const BenchShapeOptions& options) {
  LH_ASSIGN_OR_RETURN(const RandomModelShape shape, ParseRandomModelShape(options.shape));
  LH_RETURN_IF_ERROR(CheckRange("length", options.lengths, 1));
  LH_RETURN_IF_ERROR(CheckRange("decode depth", options.decode_depths, 0));
  if (options.density && !(*options.density > 0 && *options.density <= 1)) {
    return absl::InvalidArgumentError(
        fmt::format("--density {} is not in (0, 1]", *options.density));
  }
  std::vector<SparseMode> modes;
  for (const std::string& name : options.modes) {
    LH_ASSIGN_OR_RETURN(const SparseMode mode, ParseSparseMode(name));
    modes.push_back(mode);
  }
  if (modes.empty()) return absl::InvalidArgumentError("--modes names no sparse mode");
  int64_t max_tokens = 1;
  for (int64_t n : options.lengths) max_tokens = std::max(max_tokens, n);
  for (int64_t n : options.decode_depths) {
    max_tokens = std::max(max_tokens, n + RandomModelRun::kDecodeSteps);
  }

  ServerConfig settings = server;
  settings.model = "--shape";  // the settings of an engine are not complete without a name
  LH_ASSIGN_OR_RETURN(const EngineConfig config, settings.ToEngineConfig());
  LH_ASSIGN_OR_RETURN(const BackendKind kind, ParseBackendKind(server.backend));
  const auto n_threads = static_cast<int>(server.threads);
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, CreateBackend(kind, n_threads));
  if (options.density && !backend->is_host()) {
    return absl::InvalidArgumentError(
        "--density is forced where the host writes the plan: use --backend cpu");
  }
  LH_ASSIGN_OR_RETURN(
      const std::unique_ptr<RandomModelRun> run,
      RandomModelRun::Create(shape, config, max_tokens, options.density, std::move(backend)));

  Report report{.backend = run->backend().Description(),
                .shape = options.shape,
                .weight_format = std::string(WeightFormatName(run->weight_format())),
                .kv_dtype = std::string(DTypeName(run->kv_dtype())),
                .n_parameters = run->n_parameters(),
                .weight_bytes = run->weight_bytes(),
                .forced_density = options.density,
                .has_peaks = run->backend().is_host()};
  // Before and after: others may use the machine during one of them.
  if (report.has_peaks) {
    LH_ASSIGN_OR_RETURN(report.peaks, MeasureMachinePeaks(n_threads));
  }
  RunPrefills(options, modes, config.epoch_tokens, *run, report);
  for (int64_t depth : options.decode_depths) report.decodes.push_back(run->Decode(depth));
  if (report.has_peaks) {
    LH_ASSIGN_OR_RETURN(const MachinePeaks later, MeasureMachinePeaks(n_threads));
    report.peaks.Merge(later);
  }
  report.linear_gflops = report.peaks.OfFormat(run->weight_format());
  report.attention_gflops = report.peaks.OfFormat(
      run->kv_dtype() == DType::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16);
  return report;
}

// "12 %", or "-" where there is nothing to compare.
std::string Percent(double part, double whole) {
  return whole > 0 ? fmt::format("{:.0f} %", 100 * part / whole) : "-";
}

double PerSecond(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

// Billions of operations per second.
double Giga(double amount, double seconds) { return PerSecond(amount, seconds) * 1e-9; }

// Tokens/s per TFLOP/s of the machine's f32 peak: nearly the same on a faster machine of the kind.
double TokensPerTflop(const Report& report, const PrefillTiming& run) {
  return PerSecond(static_cast<double>(run.n_tokens), run.seconds) /
         (report.peaks.f32_gflops * 1e-3);
}

double OtherSeconds(double seconds, const OpProfile& ops) {
  return std::max(seconds - ops.linear_s - ops.AttentionSeconds() - ops.SelectionSeconds(), 0.0);
}

void PrintPrefills(const Report& report) {
  std::vector<std::vector<std::string>> rows = {
      {"prompt tokens", "policy", "time", "tokens/s", "per TFLOP/s", "density", "linear", "GOP/s",
       "of peak", "attention", "GFLOP/s", "of peak", "selection", "GFLOP/s", "of peak", "other"}};
  for (const PrefillTiming& run : report.prefills) {
    const OpProfile& ops = run.ops;
    const double linear = Giga(ops.linear_flop, ops.linear_s);
    const double attention = Giga(run.attention_flop, ops.AttentionSeconds());
    const double selection = Giga(run.selection_flop, ops.SelectionSeconds());
    const bool forced = report.forced_density.has_value() && ops.sparse_s > 0;
    rows.push_back(
        {fmt::format("{}", run.n_tokens), std::string(SparseModeName(run.mode)),
         FormatDuration(run.seconds),
         fmt::format("{:.1f}", PerSecond(static_cast<double>(run.n_tokens), run.seconds)),
         report.has_peaks ? fmt::format("{:.1f}", TokensPerTflop(report, run)) : "-",
         fmt::format("{:.2f} %{}", 100 * run.density, forced ? " forced" : ""),
         Percent(ops.linear_s, run.seconds), fmt::format("{:.0f}", linear),
         Percent(linear, report.linear_gflops), Percent(ops.AttentionSeconds(), run.seconds),
         fmt::format("{:.0f}", attention), Percent(attention, report.attention_gflops),
         Percent(ops.SelectionSeconds(), run.seconds), fmt::format("{:.0f}", selection),
         Percent(selection, report.attention_gflops),
         Percent(OtherSeconds(run.seconds, ops), run.seconds)});
  }
  fmt::print("{}", FormatTable(rows));
}

void PrintDecodes(const Report& report) {
  std::vector<std::vector<std::string>> rows = {{"decode depth", "tokens/s", "linear", "GB/s",
                                                 "of memory", "attention", "GB/s", "of memory",
                                                 "other"}};
  for (const DecodeTiming& run : report.decodes) {
    const OpProfile& ops = run.ops;
    const double weights = Giga(static_cast<double>(ops.weight_bytes), ops.linear_s);
    const double kv = Giga(static_cast<double>(ops.kv_bytes), ops.decode_s);
    rows.push_back({fmt::format("{}", run.depth), fmt::format("{:.1f}", 1 / run.step_seconds),
                    Percent(ops.linear_s, run.seconds), fmt::format("{:.1f}", weights),
                    Percent(weights, report.peaks.read_gb_per_s),
                    Percent(ops.AttentionSeconds(), run.seconds), fmt::format("{:.1f}", kv),
                    Percent(kv, report.peaks.read_gb_per_s),
                    Percent(OtherSeconds(run.seconds, ops), run.seconds)});
  }
  fmt::print("{}", FormatTable(rows));
}

void PrintTables(const Report& report) {
  const MachinePeaks& peaks = report.peaks;
  if (report.has_peaks) {
    fmt::print(
        "peaks: f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s, memory read {:.1f} "
        "GB/s, copy {:.1f} GB/s\n",
        peaks.f32_gflops, peaks.bf16_gflops, peaks.int8_gops, peaks.read_gb_per_s,
        peaks.copy_gb_per_s);
  }
  fmt::print("{}; shape {}, {:.1f} M random parameters, weights {} ({:.2f} GiB), KV {}\n",
             report.backend, report.shape, static_cast<double>(report.n_parameters) / 1e6,
             report.weight_format,
             static_cast<double>(report.weight_bytes) / static_cast<double>(int64_t{1} << 30),
             report.kv_dtype);
  if (report.forced_density) {
    fmt::print(
        "Sparse epochs keep a forced {:.2f} %, or their local keys where these are more; all heads "
        "are sampled.\n",
        100 * *report.forced_density);
  }
  if (!report.prefills.empty()) {
    fmt::print(
        "Of the last layer: keys and values of all tokens, the rest of the last one alone.\n");
    fmt::print("\n");
    PrintPrefills(report);
  }
  if (!report.decodes.empty()) {
    fmt::print("\n");
    PrintDecodes(report);
  }
}

nlohmann::json PhasesJson(double seconds, const OpProfile& ops) {
  return {{"linear_s", ops.linear_s},
          {"attention_s", ops.AttentionSeconds()},
          {"selection_s", ops.SelectionSeconds()},
          {"other_s", OtherSeconds(seconds, ops)}};
}

void PrintJson(const Report& report) {
  nlohmann::json prefills = nlohmann::json::array();
  for (const PrefillTiming& run : report.prefills) {
    nlohmann::json entry = PhasesJson(run.seconds, run.ops);
    entry["prompt_tokens"] = run.n_tokens;
    entry["mode"] = std::string(SparseModeName(run.mode));
    entry["seconds"] = run.seconds;
    entry["tokens_per_s"] = PerSecond(static_cast<double>(run.n_tokens), run.seconds);
    if (report.has_peaks) entry["tokens_per_f32_tflop"] = TokensPerTflop(report, run);
    entry["density"] = run.density;
    entry["linear_gops"] = Giga(run.ops.linear_flop, run.ops.linear_s);
    entry["attention_gflops"] = Giga(run.attention_flop, run.ops.AttentionSeconds());
    entry["selection_gflops"] = Giga(run.selection_flop, run.ops.SelectionSeconds());
    prefills.push_back(std::move(entry));
  }
  nlohmann::json decodes = nlohmann::json::array();
  for (const DecodeTiming& run : report.decodes) {
    const auto weight_bytes = static_cast<double>(run.ops.weight_bytes);
    const auto kv_bytes = static_cast<double>(run.ops.kv_bytes);
    nlohmann::json entry = PhasesJson(run.seconds, run.ops);
    entry["depth"] = run.depth;
    entry["steps"] = run.n_steps;
    entry["tokens_per_s"] = 1 / run.step_seconds;
    entry["weight_gb_per_s"] = Giga(weight_bytes, run.ops.linear_s);
    entry["kv_gb_per_s"] = Giga(kv_bytes, run.ops.decode_s);
    decodes.push_back(std::move(entry));
  }
  nlohmann::json result = {{"backend", report.backend},
                           {"shape", report.shape},
                           {"parameters", report.n_parameters},
                           {"weight_format", report.weight_format},
                           {"weight_bytes", report.weight_bytes},
                           {"kv_dtype", report.kv_dtype},
                           {"prefill", prefills},
                           {"decode", decodes}};
  if (report.forced_density) result["forced_density"] = *report.forced_density;
  if (report.has_peaks) {
    result["peak_f32_gflops"] = report.peaks.f32_gflops;
    result["peak_bf16_gflops"] = report.peaks.bf16_gflops;
    result["peak_int8_gops"] = report.peaks.int8_gops;
    result["memory_read_gb_per_s"] = report.peaks.read_gb_per_s;
    result["memory_copy_gb_per_s"] = report.peaks.copy_gb_per_s;
  }
  fmt::print("{}\n", result.dump());
}

}  // namespace

int RunBenchShape(const ServerConfig& config, const BenchShapeOptions& options) {
  const absl::StatusOr<Report> report = Measure(config, options);
  if (!report.ok()) {
    fmt::print(stderr, "longhaul bench ttft: {}\n", std::string(report.status().message()));
    return report.status().code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  if (options.json) {
    PrintJson(*report);
  } else {
    PrintTables(*report);
  }
  return 0;
}

}  // namespace longhaul
