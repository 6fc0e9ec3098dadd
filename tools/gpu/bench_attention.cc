// Times the attention of the CUDA backend on shapes of Llama-3-8B: dense prefill, each stage of
// SampleAttention, decode beside a device copy. One JSON object per line on stdout.
//   gpu_bench_attention [MAX_TOKENS]        default 1048576
// Values are random: times depend on sizes and on the plans, which are made here, not on content.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/checked_math.h"
#include "kernels/select_keys.h"

namespace longhaul {
namespace {

constexpr int64_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kEpoch = 8192;
constexpr int64_t kVoting = 48, kRows = 64;
constexpr int64_t kMaxDenseTokens = 131072;

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    fmt::print(stderr, "{}\n", value.status().ToString());
    std::exit(1);
  }
  return *std::move(value);
}

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

class Bench {
 public:
  Bench(Backend& backend, int64_t max_tokens) : backend_(backend), n_pages_(max_tokens / 64) {
    pool_ = Random(n_pages_ * layout_.PageBytes());
    std::vector<int32_t> pages(n_pages_);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(7));  // as after hours of service
    pages_ = Upload(pages);
    const int64_t n_rows = std::min(std::max(max_tokens, kEpoch), kMaxDenseTokens);
    q_ = Random(n_rows * kHeads * kHeadDim * 2);
    out_ = Must(backend.Allocate(n_rows * kHeads * kHeadDim * 2));
    lse_ = Must(backend.Allocate(kEpoch * kHeads * int64_t{sizeof(float)}));
  }

  // On the kernel that this GPU gets, and on that of `mma`, which every GPU has.
  void Dense(int64_t n, Backend& mma) {
    const auto seconds = [&](Backend& backend) {
      return Seconds(backend, [&] {
        backend.AttendDense({.q = Rows(q_, n), .kv = Kv(n), .scale = kScale, .out = Rows(out_, n)});
      });
    };
    const double s = seconds(backend_);
    const double tflop = Tflop(kHeads * CausalPairs({0, n}));
    fmt::print(
        R"({{"bench": "dense", "tokens": {}, "ms": {:.3f}, "tflops": {:.1f}, "mma_tflops": {:.1f}}})"
        "\n",
        n, s * 1e3, tflop / s, tflop / seconds(mma));
  }

  // The last epoch of n tokens against a plan that keeps `density` of the remote keys as stripes.
  void Sparse(int64_t n, double density) {
    const int64_t begin = n - kEpoch;
    const LocalPattern local;
    const SparsePlan plan = MakePlan(n, density, local);
    const EpochRows rows{begin, n};
    int64_t kept = LocalPairs(rows, local);
    for (int32_t key : stripe_keys_) kept += StripePairs(rows, local, key, 1);
    const TensorView q = Rows(q_, kEpoch);
    const double attend = Seconds(backend_, [&] {
      backend_.AttendSparse({.q = q,
                             .q_begin = begin,
                             .kv = Kv(n),
                             .scale = kScale,
                             .plan = plan,
                             .out = Rows(out_, kEpoch),
                             .lse = Lse()});
    });
    const double dense = Seconds(backend_, [&] {
      backend_.AttendDense(
          {.q = q, .q_begin = begin, .kv = Kv(n), .scale = kScale, .out = Rows(out_, kEpoch)});
    });
    const double choose = Choose(n, plan);
    const double dense_rate = Tflop(kHeads * CausalPairs(rows)) / dense;
    const double rate = Tflop(kHeads * kept) / (attend + choose);
    fmt::print(R"({{"bench": "sparse", "tokens": {}, "density": {}, "choose_ms": {:.3f}, )"
               R"("attend_ms": {:.3f}, "dense_ms": {:.3f}, "kept_tflops": {:.1f}, )"
               R"("dense_tflops": {:.1f}, "share_of_dense_rate": {:.3f}, "speedup": {:.2f}}})"
               "\n",
               n, density, choose * 1e3, attend * 1e3, dense * 1e3, rate, dense_rate,
               rate / dense_rate, dense / (attend + choose));
  }

  void Decode(int64_t n) {
    const KvView kv = Kv(n);
    const Buffer copy = Upload(std::vector<KvView>{kv});
    const double s = Seconds(backend_, [&] {
      backend_.AttendDecode({.q = Rows(q_, 1),
                             .kvs = &kv,
                             .kvs_copy = static_cast<const KvView*>(copy.data()),
                             .scale = kScale,
                             .out = Rows(out_, 1)});
    });
    const double bytes = static_cast<double>(n * kKvHeads * kHeadDim * 2 * 2);
    const double copy_rate = CopyRate(n);
    fmt::print(R"({{"bench": "decode", "tokens": {}, "us": {:.1f}, "gb_per_s": {:.0f}, )"
               R"("copy_gb_per_s": {:.0f}, "share_of_copy": {:.3f}}})"
               "\n",
               n, s * 1e6, bytes / s * 1e-9, copy_rate, bytes / s * 1e-9 / copy_rate);
  }

 private:
  static constexpr float kScale = 0.088388347f;  // 1 / sqrt(128)

  static double Tflop(int64_t pairs) {
    return 4.0 * static_cast<double>(kHeadDim) * static_cast<double>(pairs) * 1e-12;
  }
  TensorView Rows(const Buffer& buffer, int64_t n) const {
    return TensorView(buffer.data(), DType::kBF16, {n, kHeads, kHeadDim});
  }
  TensorView Lse() const { return TensorView(lse_.data(), DType::kF32, {kEpoch, kHeads}); }
  KvView Kv(int64_t n) const {
    return layout_.View(pool_.data(), static_cast<const int32_t*>(pages_.data()), n, 0);
  }

  // n_bytes of random bf16 numbers: one block of them, again and again.
  Buffer Random(int64_t n_bytes) {
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    std::vector<BF16> block(int64_t{8} << 20);
    for (BF16& x : block) x = ToBF16(normal(rng));
    Buffer buffer = Must(backend_.Allocate(n_bytes));
    const auto block_bytes = static_cast<int64_t>(block.size() * sizeof(BF16));
    for (int64_t at = 0; at < n_bytes; at += block_bytes) {
      backend_.Upload(block.data(), static_cast<std::byte*>(buffer.data()) + at,
                      std::min(block_bytes, n_bytes - at));
    }
    return buffer;
  }
  template <typename T>
  Buffer Upload(const std::vector<T>& values) {
    const auto n_bytes = static_cast<int64_t>(values.size() * sizeof(T));
    Buffer buffer = Must(backend_.Allocate(n_bytes));
    backend_.Upload(values.data(), buffer.data(), n_bytes);
    return buffer;
  }

  SparsePlan MakePlan(int64_t n, double density, const LocalPattern& local) {
    stripe_keys_.clear();
    std::mt19937 rng(11);
    std::bernoulli_distribution keep(density);
    for (int64_t key = local.sink; key < n - kEpoch; ++key) {
      if (keep(rng)) stripe_keys_.push_back(static_cast<int32_t>(key));
    }
    SparsePlan plan;
    plan.local = local;
    plan.max_stripes = CeilDiv(n, 2) + 1;
    plan.max_bands = CeilDiv(n, kBandWidth);
    std::vector<int32_t> lists(kHeads * plan.max_stripes);
    for (int64_t h = 0; h < kHeads; ++h) {
      std::copy(stripe_keys_.begin(), stripe_keys_.end(), lists.begin() + h * plan.max_stripes);
    }
    const auto n_stripes = static_cast<int32_t>(stripe_keys_.size());
    plan_memory_.clear();
    plan.kind = KeepArray(std::vector<int32_t>(kHeads, static_cast<int32_t>(HeadKind::kSparse)));
    plan.n_stripes = KeepArray(std::vector<int32_t>(kHeads, n_stripes));
    plan.stripes = KeepArray(lists);
    plan.n_bands = KeepArray(std::vector<int32_t>(kHeads, 0));
    plan.bands = KeepArray(std::vector<int32_t>(kHeads * plan.max_bands, 0));
    plan.kept_pairs = KeepArray(std::vector<int64_t>(kHeads, 0));
    return plan;
  }
  template <typename T>
  T* KeepArray(const std::vector<T>& values) {
    plan_memory_.push_back(Upload(values));
    return static_cast<T*>(plan_memory_.back().data());
  }

  // Both passes over the sampled rows, and the budget: all that precedes the attention. The plan it
  // writes is another one, so that the one that is timed stays.
  double Choose(int64_t n, const SparsePlan& timed) {
    const int64_t begin = n - kEpoch;
    SparsePlan plan = timed;
    const std::vector<int32_t> zeros(kHeads * timed.max_stripes);
    plan.kind = KeepArray(std::vector<int32_t>(kHeads));
    plan.n_stripes = KeepArray(std::vector<int32_t>(kHeads));
    plan.stripes = KeepArray(zeros);
    plan.n_bands = KeepArray(std::vector<int32_t>(kHeads));
    plan.bands = KeepArray(std::vector<int32_t>(kHeads * plan.max_bands));
    plan.kept_pairs = KeepArray(std::vector<int64_t>(kHeads));
    std::vector<int32_t> rows(kRows);
    for (int64_t r = 0; r < kRows; ++r)
      rows[r] = static_cast<int32_t>((r + 1) * kEpoch / kRows - 1);
    const int32_t* device_rows = KeepArray(rows);
    const float* alpha = KeepArray(std::vector<float>(kHeads, 0.95f));
    uint8_t* skip = KeepArray(std::vector<uint8_t>(kHeads));
    const auto matrix = [&](int64_t a, int64_t b) {
      return TensorView(KeepArray(std::vector<float>(a * b)), DType::kF32, {a, b});
    };
    const TensorView lse_full = matrix(kHeads, kRows), lse_local = matrix(kHeads, kRows);
    const int64_t group = kHeads / kKvHeads;
    const TensorView sum = matrix(group, n), max = matrix(group, n);
    const TensorView bands = matrix(group, CeilDiv(n, kBandWidth));
    const TensorView q = Rows(q_, kEpoch);
    return Seconds(backend_, [&] {
      backend_.SampleLse({.q = q,
                          .q_begin = begin,
                          .kv = Kv(n),
                          .scale = kScale,
                          .local = plan.local,
                          .rows = device_rows,
                          .n_rows = kRows,
                          .lse_full = lse_full,
                          .lse_local = lse_local});
      backend_.SelectStreaming({.q_begin = begin,
                                .n_q = kEpoch,
                                .n_voting = kVoting,
                                .lse_full = lse_full,
                                .lse_local = lse_local,
                                .alpha = alpha,
                                .skip = skip,
                                .plan = plan});
      for (int64_t kv_head = 0; kv_head < kKvHeads; ++kv_head) {
        backend_.SampleMass({.q = q,
                             .q_begin = begin,
                             .kv = Kv(n),
                             .scale = kScale,
                             .local = plan.local,
                             .rows = device_rows,
                             .n_voting = kVoting,
                             .kv_head_begin = kv_head,
                             .kv_head_end = kv_head + 1,
                             .skip = skip,
                             .lse_full = lse_full,
                             .mass_sum = sum,
                             .mass_max = max,
                             .band_mass = bands});
        backend_.SelectKeys({.q_begin = begin,
                             .n_q = kEpoch,
                             .n_voting = kVoting,
                             .head_begin = kv_head * group,
                             .lse_full = lse_full,
                             .lse_local = lse_local,
                             .mass_sum = sum,
                             .mass_max = max,
                             .band_mass = bands,
                             .alpha = alpha,
                             .skip = skip,
                             .keep_max = 0.25f,
                             .plan = plan});
      }
    });
  }

  // Bytes read and written by a copy of as many bytes as the decode step reads.
  double CopyRate(int64_t n) {
    const int64_t half = n / 64 * layout_.PageBytes() / 2;
    const int32_t src = 0, dst = 1;
    const double s = Seconds(backend_, [&] {
      backend_.CopyPages({.pool = static_cast<std::byte*>(pool_.data()),
                          .page_bytes = half,
                          .src = &src,
                          .dst = &dst,
                          .n = 1});
    });
    return 2.0 * static_cast<double>(half) / s * 1e-9;
  }

  Backend& backend_;
  const KvLayout layout_{
      .n_layers = 1, .n_kv_heads = kKvHeads, .head_dim = kHeadDim, .dtype = DType::kBF16};
  const int64_t n_pages_;
  Buffer pool_, pages_, q_, out_, lse_;
  std::vector<int32_t> stripe_keys_;
  std::vector<Buffer> plan_memory_;
};

void Run(int64_t max_tokens) {
  const std::unique_ptr<Backend> backend = Must(CreateCudaBackend());
  fmt::print(stderr, "{}\n", backend->Description());
  Bench bench(*backend, max_tokens);
  const std::unique_ptr<Backend> mma = Must(CreateCudaBackend(/*may_use_hopper=*/false));
  for (int64_t n = 4096; n <= std::min(max_tokens, kMaxDenseTokens); n *= 2) bench.Dense(n, *mma);
  for (int64_t n = 32768; n <= max_tokens; n *= 2) {
    for (double density : {0.02, 0.05, 0.1}) bench.Sparse(n, density);
  }
  for (int64_t n = 131072; n <= max_tokens; n *= 2) bench.Decode(n);
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  const int64_t max_tokens = argc > 1 ? std::atoll(argv[1]) : 1048576;
  if (argc > 2 || max_tokens < 8192 || max_tokens % 64 != 0) {
    fmt::print(stderr, "usage: {} [MAX_TOKENS, a multiple of 64 from 8192 on]\n", argv[0]);
    return 2;
  }
  longhaul::Run(max_tokens);
  return 0;
}
