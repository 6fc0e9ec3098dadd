#include "server/cmd_bench_linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/backend.h"
#include "kernels/machine_peaks.h"

namespace longhaul {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxExtent = 65536;
constexpr int64_t kMaxRows = 65536;
constexpr int64_t kMaxElements = int64_t{1} << 30;
// Few rows read weights from memory: as many matrices take turns as no cache holds.
constexpr int64_t kStreamedBytes = int64_t{256} << 20;
// From here on the products are the limit, not the memory.
constexpr int64_t kFewRows = 16;

struct Shape {
  int64_t n_out = 0;
  int64_t n_in = 0;
};

absl::StatusOr<Shape> ParseShape(const std::string& text) {
  Shape shape;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, shape.n_out);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == 'x') {
    const auto second = std::from_chars(first.ptr + 1, end, shape.n_in);
    if (second.ec == std::errc() && second.ptr == end && shape.n_out >= 1 && shape.n_in >= 1 &&
        shape.n_out <= kMaxExtent && shape.n_in <= kMaxExtent &&
        shape.n_out * shape.n_in <= kMaxElements) {
      return shape;
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("shape '{}' is not OUTPUTSxINPUTS, for example 2048x8192, each in [1, {}]", text,
                  kMaxExtent));
}

// Deterministic values in [-0.5, 0.5).
std::vector<float> Values(int64_t n) {
  std::vector<float> values(n);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
  return values;
}

struct Result {
  double seconds = 0;  // of one product, the best of a few
  int64_t weight_bytes = 0;
};

absl::StatusOr<Result> Measure(Backend& backend, const Shape& shape, WeightFormat format,
                               int64_t n_rows) {
  std::vector<float> matrix = Values(shape.n_out * shape.n_in);
  std::vector<std::unique_ptr<LinearWeight>> weights;
  int64_t n_bytes = 0;
  do {
    LH_ASSIGN_OR_RETURN(
        std::unique_ptr<LinearWeight> weight,
        backend.PrepareLinear(TensorView(matrix.data(), DType::kF32, {shape.n_out, shape.n_in}),
                              format));
    n_bytes += weight->n_bytes;
    weights.push_back(std::move(weight));
  } while (n_rows <= kFewRows && n_bytes < kStreamedBytes);

  std::vector<float> x = Values(n_rows * shape.n_in);
  std::vector<float> y(n_rows * shape.n_out);
  Result result{.seconds = 1e9, .weight_bytes = weights[0]->n_bytes};
  for (int round = 0; round < 6; ++round) {
    const Clock::time_point start = Clock::now();
    for (const auto& weight : weights) {
      backend.Linear({.x = TensorView(x.data(), DType::kF32, {n_rows, shape.n_in}),
                      .weight = weight.get(),
                      .bias = {},
                      .y = TensorView(y.data(), DType::kF32, {n_rows, shape.n_out})});
    }
    backend.Synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    result.seconds = std::min(result.seconds, seconds / static_cast<double>(weights.size()));
  }
  return result;
}

struct Row {
  Shape shape;
  WeightFormat format = WeightFormat::kF32;
  int64_t n_rows = 0;
  Result result;

  double Gops() const {
    return 2e-9 * static_cast<double>(n_rows * shape.n_out * shape.n_in) / result.seconds;
  }
  double WeightGbPerS() const {
    return 1e-9 * static_cast<double>(result.weight_bytes) / result.seconds;
  }
};

void PrintTable(const std::string& backend, const MachinePeaks& peaks,
                const std::vector<Row>& rows) {
  fmt::print(
      "{}; peaks: f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s, memory {:.1f} "
      "GB/s\n\n| weight | format | rows | GOP/s | of peak | weight GB/s | of memory |\n"
      "|---|---|---|---|---|---|---|\n",
      backend, peaks.f32_gflops, peaks.bf16_gflops, peaks.int8_gops, peaks.read_gb_per_s);
  for (const Row& row : rows) {
    fmt::print("| {}x{} | {} | {} | {:.0f} | {:.0f} % | {:.1f} | {:.0f} % |\n", row.shape.n_out,
               row.shape.n_in, WeightFormatName(row.format), row.n_rows, row.Gops(),
               100 * row.Gops() / peaks.OfFormat(row.format), row.WeightGbPerS(),
               100 * row.WeightGbPerS() / peaks.read_gb_per_s);
  }
}

void PrintJson(const std::string& backend, const MachinePeaks& peaks,
               const std::vector<Row>& rows) {
  nlohmann::json entries = nlohmann::json::array();
  for (const Row& row : rows) {
    entries.push_back({{"n_out", row.shape.n_out},
                       {"n_in", row.shape.n_in},
                       {"format", std::string(WeightFormatName(row.format))},
                       {"rows", row.n_rows},
                       {"gops", row.Gops()},
                       {"weight_gb_per_s", row.WeightGbPerS()}});
  }
  const nlohmann::json report = {{"backend", backend},
                                 {"peak_f32_gflops", peaks.f32_gflops},
                                 {"peak_bf16_gflops", peaks.bf16_gflops},
                                 {"peak_int8_gops", peaks.int8_gops},
                                 {"memory_read_gb_per_s", peaks.read_gb_per_s},
                                 {"rows", entries}};
  fmt::print("{}\n", report.dump());
}

absl::Status Run(const BenchLinearOptions& options) {
  std::vector<Shape> shapes;
  for (const std::string& text : options.shapes) {
    LH_ASSIGN_OR_RETURN(const Shape shape, ParseShape(text));
    shapes.push_back(shape);
  }
  for (int64_t rows : options.rows) {
    if (rows >= 1 && rows <= kMaxRows) continue;
    return absl::InvalidArgumentError(fmt::format("{} rows are not in [1, {}]", rows, kMaxRows));
  }
  const std::unique_ptr<Backend> backend = CreateCpuBackend(options.n_threads);
  MachinePeaks peaks;
  std::vector<Row> rows;
  for (const Shape& shape : shapes) {
    LH_ASSIGN_OR_RETURN(const MachinePeaks now, MeasureMachinePeaks(options.n_threads));
    peaks.Merge(now);
    for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
      for (int64_t n_rows : options.rows) {
        LH_ASSIGN_OR_RETURN(const Result result, Measure(*backend, shape, format, n_rows));
        rows.push_back({shape, format, n_rows, result});
      }
    }
  }
  if (options.json) {
    PrintJson(backend->Description(), peaks, rows);
  } else {
    PrintTable(backend->Description(), peaks, rows);
  }
  return absl::OkStatus();
}

}  // namespace

int RunBenchLinear(const BenchLinearOptions& options) {
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  fmt::print(stderr, "longhaul bench linear: {}\n", std::string(status.message()));
  return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
}

}  // namespace longhaul
