#include "kernels/cuda/hopper_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <random>

#include "kernels/base/checked_math.h"
#include "kernels/cuda/hopper_attention.h"
#include "kernels/cuda/hopper_sparse.h"

namespace longhaul::cuda {
namespace {

// Groups of two heads, keys of several tiles, a last page that is not full, pages out of order.
constexpr int64_t kTokens = 70;
constexpr int64_t kBegin = 333;
constexpr int32_t kHeads = 4;
constexpr int32_t kKvHeads = 2;

// Under a plan: one head streams, one is dense, the others have about these shares of all stripes
// and bands, some nine tiles of 128 keys.
constexpr LocalPattern kLocal = {.sink = 20, .window = kBandWidth};
constexpr int64_t kKeys = kBegin + kTokens;
constexpr int64_t kBands = CeilDiv(kKeys, kBandWidth);
constexpr double kStripeShare = 0.6;
constexpr double kBandShare = 0.5;

// Both kernels round the weights (relative to another running maximum) and the output to bf16:
// 2^-8 of a row's largest output together at worst, about 2^-9 as a rule.
constexpr float kMaxOutError = 0x1p-6f;
constexpr float kMaxLseError = 1e-3f;

std::string Text(const char* format, int64_t index, float actual, float expected) {
  char text[160];
  std::snprintf(text, sizeof(text), format, static_cast<long long>(index),
                static_cast<double>(actual), static_cast<double>(expected));
  return text;
}

// Device memory, allocated once.
class Memory {
 public:
  ~Memory() {
    if (data_ != nullptr) cudaFree(data_);
  }
  cudaError_t Allocate(int64_t n_bytes) {
    return cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<size_t>(n_bytes));
  }
  std::byte* data() const { return data_; }
  template <class T>
  T* As() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
};

// Into memory that is allocated for it.
template <class T>
cudaError_t Upload(Memory& to, const std::vector<T>& values) {
  const size_t n_bytes = values.size() * sizeof(T);
  const cudaError_t error = to.Allocate(static_cast<int64_t>(n_bytes));
  if (error != cudaSuccess) return error;
  return cudaMemcpy(to.data(), values.data(), n_bytes, cudaMemcpyHostToDevice);
}

// First error of a row of calls: those after it are not made.
class Sequence {
 public:
  template <class Call>
  void Then(const Call& call) {
    if (error_ == cudaSuccess) error_ = call();
  }
  cudaError_t error() const { return error_; }

 private:
  cudaError_t error_ = cudaSuccess;
};

// A plan on the device.
class Plan {
 public:
  cudaError_t Prepare(std::mt19937& random) {
    std::vector<int32_t> kind(kHeads, static_cast<int32_t>(HeadKind::kSparse));
    kind.front() = static_cast<int32_t>(HeadKind::kStreaming);
    kind.back() = static_cast<int32_t>(HeadKind::kDense);
    std::vector<int32_t> n_stripes, stripes, n_bands, bands;
    std::vector<int64_t> kept_pairs;  // only an order to work in
    for (int32_t head = 0; head < kHeads; ++head) {
      n_stripes.push_back(Draw(random, 0, kKeys, kStripeShare, stripes));
      n_bands.push_back(Draw(random, kLocal.window / kBandWidth, kBands, kBandShare, bands));
      kept_pairs.push_back(head);
    }
    Sequence calls;
    calls.Then([&] { return Upload(kind_, kind); });
    calls.Then([&] { return Upload(n_stripes_, n_stripes); });
    calls.Then([&] { return Upload(stripes_, stripes); });
    calls.Then([&] { return Upload(n_bands_, n_bands); });
    calls.Then([&] { return Upload(bands_, bands); });
    calls.Then([&] { return Upload(kept_pairs_, kept_pairs); });
    return calls.error();
  }
  SparsePlan plan() const {
    return {.local = kLocal,
            .stripe_width = 1,
            .max_stripes = kKeys,
            .max_bands = kBands,
            .kind = kind_.As<int32_t>(),
            .n_stripes = n_stripes_.As<int32_t>(),
            .stripes = stripes_.As<int32_t>(),
            .n_bands = n_bands_.As<int32_t>(),
            .bands = bands_.As<int32_t>(),
            .kept_pairs = kept_pairs_.As<int64_t>()};
  }

 private:
  // Appends a row of `end` places to a list, with some of [begin, end) in it; returns how many.
  static int32_t Draw(std::mt19937& random, int64_t begin, int64_t end, double share,
                      std::vector<int32_t>& lists) {
    std::bernoulli_distribution is_taken(share);
    const size_t row = lists.size();
    for (int64_t i = begin; i < end; ++i) {
      if (is_taken(random)) lists.push_back(static_cast<int32_t>(i));
    }
    const auto n = static_cast<int32_t>(lists.size() - row);
    lists.resize(row + static_cast<size_t>(end));
    return n;
  }

  Memory kind_, n_stripes_, stripes_, n_bands_, bands_, kept_pairs_;
};

struct CacheKind {
  int32_t head_dim;
  DType dtype;
};

// One problem, for both kernels.
class Problem {
 public:
  Problem(const CacheKind& cache, const DeviceLimits& limits, cudaStream_t stream)
      : limits_(limits),
        stream_(stream),
        layout_{.n_layers = 1,
                .n_kv_heads = kKvHeads,
                .head_dim = cache.head_dim,
                .dtype = cache.dtype},
        n_out_(kTokens * kHeads * cache.head_dim) {}

  cudaError_t Prepare() {
    constexpr int64_t kPages = CeilDiv(kKeys, kPageTokens);
    std::vector<int32_t> pages(kPages);
    for (int64_t i = 0; i < kPages; ++i) pages[i] = static_cast<int32_t>(kPages - 1 - i);
    Sequence calls;
    calls.Then([&] { return UploadNormals(q_, n_out_); });
    const int64_t pool_bytes = kPages * layout_.PageBytes();
    calls.Then([&] {
      return layout_.dtype == DType::kBF16 ? UploadNormals(pool_, pool_bytes / 2)
                                           : UploadFp8(pool_, pool_bytes);
    });
    calls.Then([&] { return Upload(pages_, pages); });
    calls.Then([&] { return out_.Allocate(n_out_ * int64_t{sizeof(BF16)}); });
    calls.Then([&] { return lse_.Allocate(kTokens * kHeads * int64_t{sizeof(float)}); });
    calls.Then([&] { return scratch_.Allocate(ScratchBytes()); });
    calls.Then([&] { return plan_.Prepare(random_); });
    return calls.error();
  }

  cudaError_t AttendDense(bool by_hopper) {
    AttendDenseArgs args;
    Fill(args);
    return by_hopper ? AttendDenseHopper(args, {}, limits_, stream_)
                     : cuda::AttendDense(args, {}, limits_, scratch_.data(), stream_);
  }
  cudaError_t AttendSparse(bool by_hopper) {
    AttendSparseArgs args;
    Fill(args);
    args.plan = plan_.plan();
    return by_hopper ? AttendSparseHopper(args, kGathered, scratch_.data(), stream_)
                     : cuda::AttendSparse(args, kGathered, limits_, scratch_.data(), stream_);
  }
  // Waits for the device.
  cudaError_t Read(AttentionResult* result) const {
    std::vector<BF16> out(static_cast<size_t>(n_out_));
    result->lse.resize(kTokens * kHeads);
    Sequence calls;
    calls.Then([&] { return cudaStreamSynchronize(stream_); });
    calls.Then([&] {
      return cudaMemcpy(out.data(), out_.data(), out.size() * sizeof(BF16), cudaMemcpyDeviceToHost);
    });
    calls.Then([&] {
      return cudaMemcpy(result->lse.data(), lse_.data(), result->lse.size() * sizeof(float),
                        cudaMemcpyDeviceToHost);
    });
    result->out.clear();
    for (const BF16 x : out) result->out.push_back(ToF32(x));
    return calls.error();
  }

 private:
  static constexpr StripeCopies kGathered = {};

  int64_t ScratchBytes() const {
    return std::max(AttendDenseScratchBytes(limits_, layout_.head_dim),
                    AttendSparseScratchBytes(kHeads, layout_.head_dim, kGathered));
  }
  template <class Args>
  void Fill(Args& args) const {
    args.q = TensorView(q_.data(), DType::kBF16, {kTokens, kHeads, layout_.head_dim});
    args.q_begin = kBegin;
    args.kv = layout_.View(pool_.data(), pages_.As<int32_t>(), kKeys, /*layer=*/0);
    args.scale = 1.0f / std::sqrt(static_cast<float>(layout_.head_dim));
    args.out = TensorView(out_.data(), DType::kBF16, {kTokens, kHeads, layout_.head_dim});
    args.lse = TensorView(lse_.data(), DType::kF32, {kTokens, kHeads});
  }
  cudaError_t UploadNormals(Memory& to, int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<BF16> values(static_cast<size_t>(n));
    for (BF16& value : values) value = ToBF16(normal(random_));
    return Upload(to, values);
  }
  // Any finite numbers, up to 1.75 in magnitude.
  cudaError_t UploadFp8(Memory& to, int64_t n_bytes) {
    const int64_t elements = kPageTokens * layout_.head_dim;  // then as many scales as tokens
    std::vector<uint8_t> bytes(static_cast<size_t>(n_bytes));
    for (int64_t i = 0; i < n_bytes; ++i) {
      const auto random = static_cast<uint8_t>(random_() & 0xfe);  // 0x7f and 0xff are NaN
      bytes[static_cast<size_t>(i)] = i % (elements + kPageTokens) < elements ? random : 119;
    }
    return Upload(to, bytes);
  }

  const DeviceLimits limits_;
  const cudaStream_t stream_;
  const KvLayout layout_;
  const int64_t n_out_;
  std::mt19937 random_{2026};
  Memory q_, pool_, pages_, out_, lse_, scratch_;
  Plan plan_;
};

// attend(problem, by_hopper): a cudaError_t.
template <class Attend>
std::string FirstDifference(const DeviceLimits& limits, cudaStream_t stream,
                            std::initializer_list<CacheKind> caches, const Attend& attend) {
  for (const CacheKind& cache : caches) {
    Problem problem(cache, limits, stream);
    AttentionResult expected;
    AttentionResult actual;
    Sequence calls;
    calls.Then([&] { return problem.Prepare(); });
    calls.Then([&] { return attend(problem, /*by_hopper=*/false); });
    calls.Then([&] { return problem.Read(&expected); });
    calls.Then([&] { return attend(problem, /*by_hopper=*/true); });
    calls.Then([&] { return problem.Read(&actual); });
    const std::string which = "at head_dim " + std::to_string(cache.head_dim) +
                              (cache.dtype == DType::kBF16 ? ": " : " in fp8: ");
    if (calls.error() != cudaSuccess) return which + cudaGetErrorString(calls.error());
    const std::string difference = CompareAttention(actual, expected);
    if (!difference.empty()) return which + difference;
  }
  return "";
}

}  // namespace

std::string CompareAttention(const AttentionResult& actual, const AttentionResult& expected) {
  const size_t head_dim = expected.out.size() / expected.lse.size();
  for (size_t row = 0; row < expected.lse.size(); ++row) {
    if (!(std::fabs(actual.lse[row] - expected.lse[row]) <= kMaxLseError)) {
      return Text("log-sum-exp of row %lld is %g, not %g", static_cast<int64_t>(row),
                  actual.lse[row], expected.lse[row]);
    }
    float largest = 0.0f;
    for (size_t i = row * head_dim; i < (row + 1) * head_dim; ++i) {
      largest = std::max(largest, std::fabs(expected.out[i]));
    }
    for (size_t i = row * head_dim; i < (row + 1) * head_dim; ++i) {
      if (!(std::fabs(actual.out[i] - expected.out[i]) <= kMaxOutError * largest)) {
        return Text("output %lld is %g, not %g", static_cast<int64_t>(i), actual.out[i],
                    expected.out[i]);
      }
    }
  }
  return "";
}

std::string WhyNotDenseHopper(const DeviceLimits& limits, cudaStream_t stream) {
  return FirstDifference(
      limits, stream, {{64, DType::kBF16}, {128, DType::kBF16}},
      [](Problem& problem, bool by_hopper) { return problem.AttendDense(by_hopper); });
}

std::string WhyNotSparseHopper(const DeviceLimits& limits, cudaStream_t stream) {
  return FirstDifference(
      limits, stream, {{64, DType::kBF16}, {128, DType::kBF16}, {128, DType::kF8E4M3}},
      [](Problem& problem, bool by_hopper) { return problem.AttendSparse(by_hopper); });
}

}  // namespace longhaul::cuda
