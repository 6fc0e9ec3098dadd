#include "server/cmd_bench_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/model/sparse_attention.h"
#include "engine/sparse_policy.h"
#include "kernels/base/checked_math.h"
#include "server/planted_attention.h"
#include "server/profiling_backend.h"

namespace longhaul {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double TotalSeconds(const OpProfile& ops) {
  return ops.SelectionSeconds() + ops.AttentionSeconds();
}

// Shapes above this cost minutes: only the last epoch of the context is timed.
constexpr int64_t kMaxWholeTokens = 32768;

struct Row {
  int64_t n_keys = 0;
  int64_t head_dim = 0;
  int64_t epoch_tokens = 0;
  const char* pattern = "";
  bool whole_prompt = false;    // else the last epoch only
  double gemm_gflops = 0;       // matrix products in f32
  double bf16_gemm_gflops = 0;  // and in bf16
  double dense_gflops = 0;
  double dense_seconds = 0;
  double sparse_gflops = 0;    // AttendSparse, of kept pairs
  double decode_gb_per_s = 0;  // keys and values that one decode row reads
  OpProfile sparse = {};
  double density = 0;
  double recall_mean = 0;
  double recall_min = 0;
  int64_t n_repaired = 0;

  double Speedup() const { return dense_seconds / TotalSeconds(sparse); }
};

// Best of a few runs of a square matrix product in the type of the weights, on all threads.
absl::StatusOr<double> GemmGflops(Backend& backend, WeightFormat format) {
  constexpr int64_t kSize = 2048;
  LH_ASSIGN_OR_RETURN(Buffer buffer, backend.Allocate(3 * kSize * kSize * int64_t{sizeof(float)}));
  float* data = static_cast<float*>(buffer.data());
  for (int64_t i = 0; i < 2 * kSize * kSize; ++i) data[i] = static_cast<float>(i % 17) * 0.125f;
  const auto matrix = [&](int64_t i) {
    return TensorView(data + i * kSize * kSize, DType::kF32, {kSize, kSize});
  };
  LH_ASSIGN_OR_RETURN(std::unique_ptr<LinearWeight> weight,
                      backend.PrepareLinear(matrix(0), format));
  double best_seconds = 1e9;
  for (int run = 0; run < 8; ++run) {
    const Clock::time_point start = Clock::now();
    backend.Linear({.x = matrix(1), .weight = weight.get(), .bias = {}, .y = matrix(2)});
    backend.Synchronize();
    best_seconds = std::min(best_seconds, SecondsSince(start));
  }
  return 2.0 * kSize * kSize * kSize / best_seconds * 1e-9;
}

// One (length, head_dim, epoch, pattern).
class Case {
 public:
  Case(const BenchAttentionOptions& options, Backend& backend, Row row, int32_t n_streaming)
      : options_(options), backend_(&backend), row_(row) {
    row_.whole_prompt = row_.n_keys <= kMaxWholeTokens;
    row_.epoch_tokens = std::min(row_.epoch_tokens, row_.n_keys);
    planted_ = {.n_keys = row_.n_keys,
                .n_rows = row_.whole_prompt ? row_.n_keys : row_.epoch_tokens,
                .n_heads = options.n_heads,
                .n_kv_heads = options.n_kv_heads,
                .head_dim = static_cast<int32_t>(row_.head_dim),
                .kv_dtype = options.kv_dtype,
                .density = options.density,
                .n_streaming = n_streaming};
    shape_.n_layers = 1;
    shape_.n_heads = options.n_heads;
    shape_.n_kv_heads = options.n_kv_heads;
    shape_.head_dim = planted_.head_dim;
  }

  absl::StatusOr<Row> Run() {
    LH_ASSIGN_OR_RETURN(const PlantedAttention problem,
                        PlantedAttention::Make(planted_, *backend_));
    Arena counter;
    PrefillAttention::CountSlice(shape_, row_.epoch_tokens, counter);
    PrefillAttention::CountLayer(shape_, row_.epoch_tokens, row_.n_keys, counter);
    LH_ASSIGN_OR_RETURN(Buffer scratch, backend_->Allocate(counter.high_water_bytes()));
    std::memset(scratch.data(), 0, scratch.n_bytes());  // a server's scratch is in memory already
    Arena arena(std::move(scratch));
    LH_ASSIGN_OR_RETURN(Buffer out, backend_->Allocate(row_.epoch_tokens * shape_.n_heads *
                                                       shape_.head_dim * int64_t{sizeof(float)}));
    // Alternating halves the effect of a machine whose speed drifts.
    SparseOptions dense;
    dense.mode = SparseMode::kDense;
    SparseOptions sample;
    sample.mode = SparseMode::kSample;
    sample.alpha = options_.alpha;
    OpProfile dense_seconds, sparse_seconds;
    SparseReport dense_report, sparse_report;
    const int64_t first = row_.n_keys - planted_.n_rows;
    // As in the middle of a prompt: the audit of an earlier epoch has steered alpha.
    std::vector<float> alpha(shape_.n_heads, options_.alpha);
    const int64_t first_end = std::min(first + row_.epoch_tokens, row_.n_keys);
    RunEpoch(problem, sample, first, first_end, alpha, arena, out, sparse_seconds, sparse_report);
    sparse_seconds = {};
    sparse_report = {};
    for (int64_t begin = first; begin < row_.n_keys; begin += row_.epoch_tokens) {
      const int64_t end = std::min(begin + row_.epoch_tokens, row_.n_keys);
      RunEpoch(problem, dense, begin, end, alpha, arena, out, dense_seconds, dense_report);
      RunEpoch(problem, sample, begin, end, alpha, arena, out, sparse_seconds, sparse_report);
    }
    LH_ASSIGN_OR_RETURN(row_.decode_gb_per_s, DecodeGbPerSecond(problem, out));
    const double flops_per_pair = 4.0 * static_cast<double>(row_.head_dim);
    const auto pairs = [&](int64_t n) { return static_cast<double>(n) * flops_per_pair * 1e-9; };
    row_.dense_seconds = TotalSeconds(dense_seconds);
    row_.dense_gflops = pairs(dense_report.causal_pairs) / row_.dense_seconds;
    row_.sparse = sparse_seconds;
    row_.sparse_gflops = pairs(sparse_seconds.sparse_pairs) / sparse_seconds.sparse_s;
    row_.density = sparse_report.Density();
    row_.recall_mean = sparse_report.RecallMean();
    row_.recall_min = sparse_report.recall_min;
    row_.n_repaired = sparse_report.n_repaired;
    return row_;
  }

 private:
  // Best of a few steps of one sequence at full length. Tens of MiB and less come from the cache.
  absl::StatusOr<double> DecodeGbPerSecond(const PlantedAttention& problem, const Buffer& out) {
    const KvView kv = problem.Kv(row_.n_keys);
    LH_ASSIGN_OR_RETURN(Buffer kv_copy, backend_->Allocate(sizeof(kv)));
    backend_->Upload(&kv, kv_copy.data(), sizeof(kv));
    double best_seconds = 1e9;
    for (int run = 0; run < 12; ++run) {
      const Clock::time_point start = Clock::now();
      backend_->AttendDecode(
          {.q = problem.Queries(row_.n_keys - 1, row_.n_keys),
           .kvs = &kv,
           .kvs_copy = static_cast<const KvView*>(kv_copy.data()),
           .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
           .out = TensorView(out.data(), DType::kF32, {1, shape_.n_heads, shape_.head_dim})});
      backend_->Synchronize();
      best_seconds = std::min(best_seconds, SecondsSince(start));
    }
    const int64_t n_elements = 2 * row_.n_keys * options_.n_kv_heads * shape_.head_dim;
    const int64_t n_bytes = n_elements * static_cast<int64_t>(DTypeBytes(options_.kv_dtype));
    return static_cast<double>(n_bytes) / best_seconds * 1e-9;
  }

  void RunEpoch(const PlantedAttention& problem, const SparseOptions& options, int64_t begin,
                int64_t end, std::vector<float>& alpha, Arena& arena, Buffer& out,
                OpProfile& seconds, SparseReport& report) {
    // A prompt that goes on: without the exact rows at its end.
    const EpochAttention epoch =
        PlanEpochAttention(options, begin, end, /*prompt_tokens=*/2 * row_.n_keys);
    ArenaScope scope(arena);
    ProfilingBackend timed(*backend_);
    PrefillAttention attention({.q_begin = begin,
                                .n_q = end - begin,
                                .layer_begin = 0,
                                .layer_end = 1,
                                .epoch = &epoch,
                                .alpha = alpha.data()},
                               shape_, timed, arena);
    attention.Run({.layer = 0,
                   .q = problem.Queries(begin, end),
                   .kv = problem.Kv(end),
                   .out = TensorView(out.data(), DType::kF32,
                                     {end - begin, shape_.n_heads, shape_.head_dim})});
    attention.Finish(report);
    seconds.Add(timed.TakeProfile());
  }

  const BenchAttentionOptions& options_;
  Backend* backend_;
  Row row_;
  PlantedShape planted_;
  ModelShape shape_;
};

double Percent(double part, double whole) { return whole > 0 ? 100 * part / whole : 0; }

void PrintHeader(const BenchAttentionOptions& options, const Backend& backend) {
  fmt::print(
      "{}; {} query heads, {} kv heads, {} KV, planted density {:.1f} %, alpha {}\n"
      "Above {} keys only the last epoch of the context is timed. 'streaming': 3 of 4 heads "
      "attend\n"
      "to sink and window only. rows+mass+select and repair are shares of the sparse time.\n"
      "GEMM: matrix products of this backend in f32 and in bf16.\n"
      "decode: keys and values that one row reads, best of 12.\n\n",
      backend.Description(), options.n_heads, options.n_kv_heads, DTypeName(options.kv_dtype),
      100 * options.density, options.alpha, kMaxWholeTokens);
  fmt::print(
      "{:>7} {:>4} {:>6} {:>10} {:>7} {:>7} {:>7} {:>6} {:>6} {:>7} {:>7} {:>5} {:>5} {:>7} {:>6} "
      "{:>8} {:>7} {:>7} {:>7} {:>7}\n",
      "keys", "D", "epoch", "pattern", "f32", "bf16", "dense", "% of", "% of", "sparse", "% of",
      "rows", "mass", "select", "repair", "speed-up", "density", "recall", "recall", "decode");
  fmt::print(
      "{:>7} {:>4} {:>6} {:>10} {:>7} {:>7} {:>7} {:>6} {:>6} {:>7} {:>7} {:>5} {:>5} {:>7} {:>6} "
      "{:>8} {:>7} {:>7} {:>7} {:>7}\n",
      "", "", "", "", "GEMM", "GEMM", "GF/s", "f32", "bf16", "GF/s", "dense", "%", "%", "%", "%",
      "", "%", "mean", "min", "GB/s");
}

void PrintRow(const Row& row) {
  const double total = TotalSeconds(row.sparse);
  fmt::print(
      "{:>7} {:>4} {:>6} {:>10} {:>7.1f} {:>7.1f} {:>7.1f} {:>6.1f} {:>6.1f} {:>7.1f} {:>7.1f} "
      "{:>5.1f} {:>5.1f} {:>7.1f} {:>6.1f} {:>7.2f}x {:>7.2f} {:>7.4f} {:>7.4f} {:>7.1f}\n",
      row.n_keys, row.head_dim, row.epoch_tokens, row.pattern, row.gemm_gflops,
      row.bf16_gemm_gflops, row.dense_gflops, Percent(row.dense_gflops, row.gemm_gflops),
      Percent(row.dense_gflops, row.bf16_gemm_gflops), row.sparse_gflops,
      Percent(row.sparse_gflops, row.dense_gflops), Percent(row.sparse.rows_s, total),
      Percent(row.sparse.mass_s, total), Percent(row.sparse.select_s, total),
      Percent(row.sparse.dense_s, total), row.Speedup(), 100 * row.density, row.recall_mean,
      row.recall_min, row.decode_gb_per_s);
  std::fflush(stdout);
}

nlohmann::json ToJson(const Row& row) {
  return {{"keys", row.n_keys},
          {"head_dim", row.head_dim},
          {"epoch_tokens", row.epoch_tokens},
          {"pattern", row.pattern},
          {"timed", row.whole_prompt ? "whole prompt" : "last epoch"},
          {"gemm_gflops", row.gemm_gflops},
          {"bf16_gemm_gflops", row.bf16_gemm_gflops},
          {"dense_gflops", row.dense_gflops},
          {"dense_share_of_gemm", row.dense_gflops / row.gemm_gflops},
          {"dense_share_of_bf16_gemm", row.dense_gflops / row.bf16_gemm_gflops},
          {"dense_s", row.dense_seconds},
          {"sparse_gflops_on_kept_work", row.sparse_gflops},
          {"sparse_share_of_dense", row.sparse_gflops / row.dense_gflops},
          {"decode_gb_per_s", row.decode_gb_per_s},
          {"sparse_s", TotalSeconds(row.sparse)},
          {"rows_s", row.sparse.rows_s},
          {"mass_s", row.sparse.mass_s},
          {"select_s", row.sparse.select_s},
          {"attend_s", row.sparse.sparse_s},
          {"repair_s", row.sparse.dense_s},
          {"choosing_share", row.sparse.SelectionSeconds() / TotalSeconds(row.sparse)},
          {"speedup", row.Speedup()},
          {"density", row.density},
          {"recall_mean", row.recall_mean},
          {"recall_min", row.recall_min},
          {"repaired_heads", row.n_repaired}};
}

absl::Status Validate(const BenchAttentionOptions& options) {
  for (int64_t length : options.lengths) {
    if (length >= 1024 && length <= (int64_t{1} << 24)) continue;
    return absl::InvalidArgumentError(
        fmt::format("length {} is not in [1024, 16777216] tokens", length));
  }
  for (int64_t dim : options.head_dims) {
    if (dim >= 32 && dim <= 512 && dim % 2 == 0) continue;
    return absl::InvalidArgumentError(
        fmt::format("head_dim {} is not an even number in [32, 512]", dim));
  }
  for (int64_t epoch : options.epochs) {
    if (epoch >= 256 && epoch <= 65536) continue;
    return absl::InvalidArgumentError(fmt::format("epoch {} is not in [256, 65536] tokens", epoch));
  }
  const int32_t kv_heads = options.n_kv_heads;
  if (kv_heads < 1 || options.n_heads > 256 || options.n_heads % kv_heads != 0 ||
      options.n_heads / kv_heads > 16) {
    return absl::InvalidArgumentError(
        fmt::format("{} query heads over {} kv heads: at most 256 query heads, 1 to 16 of them per "
                    "kv head",
                    options.n_heads, kv_heads));
  }
  if (!(options.density > 0 && options.density < 1)) {
    return absl::InvalidArgumentError(
        fmt::format("density {} is not between 0 and 1", options.density));
  }
  if (options.kv_dtype != DType::kF32 && options.kv_dtype != DType::kBF16 &&
      options.kv_dtype != DType::kF8E4M3) {
    return absl::InvalidArgumentError("the KV cache holds f32, bf16 or fp8_e4m3");
  }
  SparseOptions sparse;
  sparse.alpha = options.alpha;
  return sparse.Validate();
}

absl::Status Run(const BenchAttentionOptions& options) {
  LH_RETURN_IF_ERROR(Validate(options));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                      CreateBackend(options.backend, options.n_threads));
  if (!options.json) PrintHeader(options, *backend);
  nlohmann::json rows = nlohmann::json::array();
  const int32_t group = options.n_heads / options.n_kv_heads;
  for (int64_t head_dim : options.head_dims) {
    for (int64_t length : options.lengths) {
      for (int64_t epoch : options.epochs) {
        for (const auto& [pattern, n_streaming] :
             {std::pair{"stripes", 0}, std::pair{"streaming", group * 3 / 4}}) {
          Row row{
              .n_keys = length, .head_dim = head_dim, .epoch_tokens = epoch, .pattern = pattern};
          LH_ASSIGN_OR_RETURN(row.gemm_gflops, GemmGflops(*backend, WeightFormat::kF32));
          LH_ASSIGN_OR_RETURN(row.bf16_gemm_gflops, GemmGflops(*backend, WeightFormat::kBF16));
          LH_ASSIGN_OR_RETURN(row, Case(options, *backend, row, n_streaming).Run());
          if (!options.json) PrintRow(row);
          rows.push_back(ToJson(row));
        }
      }
    }
  }
  if (options.json) {
    const nlohmann::json report = {{"backend", backend->Description()},
                                   {"n_heads", options.n_heads},
                                   {"n_kv_heads", options.n_kv_heads},
                                   {"kv_dtype", std::string(DTypeName(options.kv_dtype))},
                                   {"alpha", options.alpha},
                                   {"rows", rows}};
    fmt::print("{}\n", report.dump());
  }
  return absl::OkStatus();
}

}  // namespace

int RunBenchAttention(const BenchAttentionOptions& options) {
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  fmt::print(stderr, "longhaul bench attention: {}\n", std::string(status.message()));
  return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
}

}  // namespace longhaul
