// Times the attention of the CUDA backend on shapes of Llama-3-8B, over a KV cache in bf16 and in
// fp8: dense prefill, sparse prefill, decode beside a device copy. One JSON object per line.
//   gpu_bench_attention [MAX_TOKENS]   default 1048576; a multiple of 8192
//   gpu_bench_attention --smoke        small shapes and lengths, to see that it runs
//
// dense: all rows of n tokens. sparse: the last 8192 rows of n tokens under a plan made here, of a
// given density. planted: the same rows by the engine's own pipeline, which has to find what
// PlantedProblem hid, stage by stage; each stage is waited for, total_ms is without the waits.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "engine/model/sparse_attention.h"
#include "kernels/backend.h"
#include "kernels/select_math.h"
#include "server/profiling_backend.h"
#include "tools/gpu/bench_memory.h"
#include "tools/gpu/planted_problem.h"

namespace longhaul {
namespace {

struct Sizes {
  ModelShape shape;
  int64_t epoch_tokens = 0;
  int64_t max_dense_tokens = 0;  // of whole prompts; one takes minutes beyond
  int64_t first_dense_tokens = 0;
  int64_t first_sparse_tokens = 0;
  int64_t first_decode_tokens = 0;
  int64_t max_tokens = 0;
};

constexpr Sizes kLlama8B = {
    .shape = {.n_layers = 1, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128},
    .epoch_tokens = 8192,
    .max_dense_tokens = 131072,
    .first_dense_tokens = 4096,
    .first_sparse_tokens = 32768,
    .first_decode_tokens = 131072,
    .max_tokens = 1048576};
constexpr Sizes kSmoke = {.shape = {.n_layers = 1, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64},
                          .epoch_tokens = 128,
                          .max_dense_tokens = 128,
                          .first_dense_tokens = 128,
                          .first_sparse_tokens = 512,
                          .first_decode_tokens = 512,
                          .max_tokens = 512};

// The median of some runs, after one that does not count.
double Seconds(Backend& backend, const std::function<void()>& op) {
  std::vector<double> runs;
  double total = 0;
  for (int i = 0; i < 12 && (i < 4 || total < 2.0); ++i) {
    backend.Synchronize();
    const auto begin = std::chrono::steady_clock::now();
    op();
    backend.Synchronize();
    const double s =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (i > 0) runs.push_back(s);
    total += s;
  }
  std::nth_element(runs.begin(), runs.begin() + runs.size() / 2, runs.end());
  return runs[runs.size() / 2];
}

Arena MakeArena(Backend& backend, const Sizes& sizes) {
  Arena counting;
  PrefillAttention::CountSlice(sizes.shape, sizes.epoch_tokens, counting);
  PrefillAttention::CountLayer(sizes.shape, sizes.epoch_tokens, sizes.max_tokens, counting);
  return Arena(Must(backend.Allocate(counting.high_water_bytes())));
}

class Bench {
 public:
  // `mma`: the same GPU without the kernels that only Hopper has.
  Bench(const Sizes& sizes, DType kv_dtype, Backend& backend, Backend& mma)
      : sizes_(sizes),
        backend_(backend),
        mma_(mma),
        profiling_(backend),
        kv_name_(DTypeName(kv_dtype)),
        problem_(backend, sizes.shape, kv_dtype, sizes.max_tokens, sizes.epoch_tokens),
        arena_(MakeArena(backend, sizes)) {
    const int64_t n_rows = std::max(sizes.max_dense_tokens, sizes.epoch_tokens);
    const int64_t n_bytes = n_rows * sizes.shape.n_heads * sizes.shape.head_dim * 2;
    q_ = Must(backend.Allocate(n_bytes));
    FillWithNoise(q_, n_bytes);  // a GPU computes zeros with less power, and faster
    out_ = Must(backend.Allocate(n_bytes));
    lse_ = Must(backend.Allocate(sizes.epoch_tokens * sizes.shape.n_heads * 4));
  }

  // On the kernel that this GPU gets, and on that of `mma`.
  void Dense(int64_t n) {
    const double s = DenseSeconds(backend_, Rows(q_, n), 0);
    const double tflop = Tflop(sizes_.shape.n_heads * CausalPairs({0, n}));
    fmt::print(R"({{"bench": "dense", "kv": "{}", "tokens": {}, "ms": {:.3f}, "tflops": {:.1f}, )"
               R"("mma_tflops": {:.1f}}})"
               "\n",
               kv_name_, n, s * 1e3, tflop / s, tflop / DenseSeconds(mma_, Rows(q_, n), 0));
  }

  // The last epoch of n tokens, in all ways.
  void Sparse(int64_t n) {
    const Epoch epoch{
        .begin = n - sizes_.epoch_tokens, .end = n, .q = problem_.Queries(n, sizes_.epoch_tokens)};
    const double dense_s = DenseSeconds(backend_, epoch.q, epoch.begin);
    const double choose_s = Planted(epoch, SparseMode::kSample, dense_s);
    Planted(epoch, SparseMode::kVerticalSlash, dense_s);
    for (double density : {0.02, 0.05, 0.1}) AtDensity(epoch, density, choose_s, dense_s);
  }

  void Decode(int64_t n) {
    const KvView kv = problem_.Kv(n);
    const Buffer copy = UploadCopy(backend_, std::vector<KvView>{kv});
    const double s = Seconds(backend_, [&] {
      backend_.AttendDecode({.q = Rows(q_, 1),
                             .kvs = &kv,
                             .kvs_copy = static_cast<const KvView*>(copy.data()),
                             .scale = Scale(),
                             .out = Rows(out_, 1)});
    });
    const auto bytes = static_cast<double>(n / kPageTokens * problem_.layout().PageBytes());
    const double copy_rate = CopyRate(n);
    fmt::print(
        R"({{"bench": "decode", "kv": "{}", "tokens": {}, "us": {:.1f}, "gb_per_s": {:.0f}, )"
        R"("copy_gb_per_s": {:.0f}, "share_of_copy": {:.3f}}})"
        "\n",
        kv_name_, n, s * 1e6, bytes / s * 1e-9, copy_rate, bytes / s * 1e-9 / copy_rate);
  }

 private:
  void FillWithNoise(const Buffer& buffer, int64_t n_bytes) {
    std::mt19937 rng(5);
    std::normal_distribution<float> normal;
    std::vector<BF16> block(int64_t{1} << 22);
    for (BF16& x : block) x = ToBF16(normal(rng));
    const auto block_bytes = static_cast<int64_t>(block.size() * sizeof(BF16));
    for (int64_t at = 0; at < n_bytes; at += block_bytes) {
      backend_.Upload(block.data(), static_cast<std::byte*>(buffer.data()) + at,
                      std::min(block_bytes, n_bytes - at));
    }
  }

  struct Epoch {
    int64_t begin;
    int64_t end;
    TensorView q;
  };

  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(sizes_.shape.head_dim)); }
  double Tflop(int64_t pairs) const {
    return 4.0 * static_cast<double>(sizes_.shape.head_dim) * static_cast<double>(pairs) * 1e-12;
  }
  TensorView Rows(const Buffer& buffer, int64_t n) const {
    return TensorView(buffer.data(), DType::kBF16,
                      {n, sizes_.shape.n_heads, sizes_.shape.head_dim});
  }

  double DenseSeconds(Backend& backend, TensorView q, int64_t begin) {
    const int64_t n_rows = q.dim(0);
    return Seconds(backend, [&] {
      backend.AttendDense({.q = q,
                           .q_begin = begin,
                           .kv = problem_.Kv(begin + n_rows),
                           .scale = Scale(),
                           .out = Rows(out_, n_rows)});
    });
  }

  // What a sparse way of attending the epoch comes to beside the dense one.
  struct Comparison {
    double rate;        // TFLOP/s on kept pairs, choosing included
    double dense_rate;  // TFLOP/s
    double speedup;
  };
  Comparison Compare(const Epoch& epoch, int64_t kept_pairs, double s, double dense_s) const {
    const int64_t pairs = sizes_.shape.n_heads * CausalPairs({epoch.begin, epoch.end});
    return {Tflop(kept_pairs) / s, Tflop(pairs) / dense_s, dense_s / s};
  }

  // The engine's pipeline. Returns the seconds that choosing takes.
  double Planted(const Epoch& epoch, SparseMode mode, double dense_s) {
    const SparseOptions options{.mode = mode};
    const EpochAttention attention =
        PlanEpochAttention(options, epoch.begin, epoch.end, /*prompt_tokens=*/2 * epoch.end);
    SparseReport report;
    const auto run = [&](Backend& backend) {
      report = {};
      std::vector<float> alpha(sizes_.shape.n_heads, options.alpha);
      ArenaScope scope(arena_);
      PrefillAttention prefill({.q_begin = epoch.begin,
                                .n_q = sizes_.epoch_tokens,
                                .layer_begin = 0,
                                .layer_end = 1,
                                .epoch = &attention,
                                .alpha = alpha.data()},
                               sizes_.shape, backend, arena_);
      prefill.Run({.layer = 0,
                   .q = epoch.q,
                   .kv = problem_.Kv(epoch.end),
                   .out = Rows(out_, sizes_.epoch_tokens)});
      prefill.Finish(report);
    };
    const double total_s = Seconds(backend_, [&] { run(backend_); });
    profiling_.TakeProfile();
    run(profiling_);
    const OpProfile stages = profiling_.TakeProfile();
    const Comparison c = Compare(epoch, report.kept_pairs, total_s, dense_s);
    fmt::print(
        R"({{"bench": "planted", "kv": "{}", "tokens": {}, "mode": "{}", "density": {:.4f}, )"
        R"("recall": {:.3f}, "rows_ms": {:.3f}, "mass_ms": {:.3f}, "select_ms": {:.3f}, )"
        R"("attend_ms": {:.3f}, "repair_ms": {:.3f}, "total_ms": {:.3f}, "dense_ms": {:.3f}, )"
        R"("kept_tflops": {:.1f}, "dense_tflops": {:.1f}, "share_of_dense_rate": {:.3f}, )"
        R"("speedup": {:.2f}}})"
        "\n",
        kv_name_, epoch.end, SparseModeName(mode), report.Density(), report.RecallMean(),
        stages.rows_s * 1e3, stages.mass_s * 1e3, stages.select_s * 1e3, stages.sparse_s * 1e3,
        stages.dense_s * 1e3, total_s * 1e3, dense_s * 1e3, c.rate, c.dense_rate,
        c.rate / c.dense_rate, c.speedup);
    return stages.SelectionSeconds();
  }

  // A plan that keeps `density` of the remote keys as stripes, the same in every head.
  void AtDensity(const Epoch& epoch, double density, double choose_s, double dense_s) {
    const LocalPattern local{.window = SparseOptions().window};
    const EpochRows rows{epoch.begin, epoch.end};
    std::vector<int32_t> keys;
    int64_t kept = LocalPairs(rows, local);
    std::mt19937 rng(11);
    std::bernoulli_distribution keep(density);
    for (int64_t key = local.sink; key < epoch.begin; ++key) {
      if (!keep(rng)) continue;
      keys.push_back(static_cast<int32_t>(key));
      kept += StripePairs(rows, local, key, 1);
    }
    std::vector<Buffer> memory;
    const SparsePlan plan = MakePlan(keys, local, memory);
    const auto seconds = [&](Backend& backend) {
      return Seconds(backend, [&] {
        backend.AttendSparse({.q = epoch.q,
                              .q_begin = epoch.begin,
                              .kv = problem_.Kv(epoch.end),
                              .scale = Scale(),
                              .plan = plan,
                              .out = Rows(out_, sizes_.epoch_tokens),
                              .lse = TensorView(lse_.data(), DType::kF32,
                                                {sizes_.epoch_tokens, sizes_.shape.n_heads})});
      });
    };
    const double attend_s = seconds(backend_);
    const Comparison c = Compare(epoch, sizes_.shape.n_heads * kept, attend_s + choose_s, dense_s);
    fmt::print(
        R"({{"bench": "sparse", "kv": "{}", "tokens": {}, "density": {}, "choose_ms": {:.3f}, )"
        R"("attend_ms": {:.3f}, "mma_attend_ms": {:.3f}, "dense_ms": {:.3f}, "kept_tflops": {:.1f}, )"
        R"("dense_tflops": {:.1f}, "share_of_dense_rate": {:.3f}, "speedup": {:.2f}}})"
        "\n",
        kv_name_, epoch.end, density, choose_s * 1e3, attend_s * 1e3, seconds(mma_) * 1e3,
        dense_s * 1e3, c.rate, c.dense_rate, c.rate / c.dense_rate, c.speedup);
  }

  SparsePlan MakePlan(const std::vector<int32_t>& keys, const LocalPattern& local,
                      std::vector<Buffer>& memory) {
    const int64_t n_heads = sizes_.shape.n_heads;
    const auto keep = [&]<typename T>(const std::vector<T>& values) {
      memory.push_back(UploadCopy(backend_, values));
      return static_cast<T*>(memory.back().data());
    };
    SparsePlan plan{.local = local, .max_stripes = std::max<int64_t>(keys.size(), 1)};
    std::vector<int32_t> lists(n_heads * plan.max_stripes);
    for (int64_t h = 0; h < n_heads; ++h) {
      std::copy(keys.begin(), keys.end(), lists.begin() + h * plan.max_stripes);
    }
    plan.kind = keep(std::vector<int32_t>(n_heads, static_cast<int32_t>(HeadKind::kSparse)));
    plan.n_stripes = keep(std::vector<int32_t>(n_heads, static_cast<int32_t>(keys.size())));
    plan.stripes = keep(lists);
    plan.n_bands = keep(std::vector<int32_t>(n_heads, 0));
    plan.kept_pairs = keep(std::vector<int64_t>(n_heads, 0));
    return plan;
  }

  // Bytes read and written by a copy of as many bytes as the decode step reads.
  double CopyRate(int64_t n) {
    const int64_t half = n / kPageTokens * problem_.layout().PageBytes() / 2;
    const int32_t src = 0, dst = 1;
    const double s = Seconds(backend_, [&] {
      backend_.CopyPages(
          {.pool = problem_.pool(), .page_bytes = half, .src = &src, .dst = &dst, .n = 1});
    });
    return 2.0 * static_cast<double>(half) / s * 1e-9;
  }

  const Sizes sizes_;
  Backend& backend_;
  Backend& mma_;
  ProfilingBackend profiling_;
  const std::string_view kv_name_;
  PlantedProblem problem_;
  Arena arena_;
  Buffer q_, out_, lse_;
};

void Run(const Sizes& sizes) {
  const std::unique_ptr<Backend> backend = Must(CreateCudaBackend());
  const std::unique_ptr<Backend> mma = Must(CreateCudaBackend(/*may_use_hopper=*/false));
  fmt::print(stderr, "{}\n", backend->Description());
  for (const DType kv_dtype : {DType::kBF16, DType::kF8E4M3}) {
    Bench bench(sizes, kv_dtype, *backend, *mma);
    const int64_t max_dense = std::min(sizes.max_tokens, sizes.max_dense_tokens);
    for (int64_t n = sizes.first_dense_tokens; n <= max_dense; n *= 2) bench.Dense(n);
    for (int64_t n = sizes.first_sparse_tokens; n <= sizes.max_tokens; n *= 2) bench.Sparse(n);
    // Last: the copies overwrite the cache.
    for (int64_t n = sizes.first_decode_tokens; n <= sizes.max_tokens; n *= 2) bench.Decode(n);
  }
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  longhaul::Sizes sizes = longhaul::kLlama8B;
  if (argc == 2 && std::string_view(argv[1]) == "--smoke") {
    sizes = longhaul::kSmoke;
  } else if (argc == 2) {
    sizes.max_tokens = std::atoll(argv[1]);
  }
  if (argc > 2 || sizes.max_tokens < sizes.epoch_tokens ||
      sizes.max_tokens % sizes.epoch_tokens != 0) {
    fmt::print(stderr, "usage: {} [--smoke | MAX_TOKENS, a multiple of {}]\n", argv[0],
               sizes.epoch_tokens);
    return 2;
  }
  longhaul::Run(sizes);
  return 0;
}
