#include "kernels/cuda/hopper_check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "kernels/base/checked_math.h"
#include "kernels/cuda/hopper_attention.h"

namespace longhaul::cuda {
namespace {

// Groups of four heads, keys of several tiles, a last page that is not full, pages out of order.
constexpr int64_t kTokens = 70;
constexpr int64_t kBegin = 333;
constexpr int32_t kHeads = 8;
constexpr int32_t kKvHeads = 2;

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

// Device memory for one check.
class Memory {
 public:
  ~Memory() {
    if (data_ != nullptr) cudaFree(data_);
  }
  cudaError_t Allocate(int64_t n_bytes) {
    return cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<size_t>(n_bytes));
  }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

template <class T>
cudaError_t Upload(const Memory& to, const std::vector<T>& values) {
  return cudaMemcpy(to.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
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

class Check {
 public:
  Check(int32_t head_dim, const DeviceLimits& limits, cudaStream_t stream)
      : limits_(limits),
        stream_(stream),
        layout_{.n_layers = 1, .n_kv_heads = kKvHeads, .head_dim = head_dim, .dtype = DType::kBF16},
        n_out_(kTokens * kHeads * head_dim) {}

  cudaError_t Prepare() {
    constexpr int64_t kPages = CeilDiv(kBegin + kTokens, kPageTokens);
    std::vector<int32_t> pages(kPages);
    for (int64_t i = 0; i < kPages; ++i) pages[i] = static_cast<int32_t>(kPages - 1 - i);
    Sequence calls;
    calls.Then([&] { return UploadNormals(q_, n_out_); });
    calls.Then([&] { return UploadNormals(pool_, kPages * layout_.PageBytes() / 2); });
    calls.Then([&] { return pages_.Allocate(kPages * int64_t{sizeof(int32_t)}); });
    calls.Then([&] { return Upload(pages_, pages); });
    calls.Then([&] { return out_.Allocate(n_out_ * int64_t{sizeof(BF16)}); });
    calls.Then([&] { return lse_.Allocate(kTokens * kHeads * int64_t{sizeof(float)}); });
    calls.Then(
        [&] { return scratch_.Allocate(AttendDenseScratchBytes(limits_, layout_.head_dim)); });
    return calls.error();
  }

  cudaError_t Run(bool by_hopper, AttentionResult* result) {
    const DType kAct = DType::kBF16;
    AttendDenseArgs args;
    args.q = TensorView(q_.data(), kAct, {kTokens, kHeads, layout_.head_dim});
    args.q_begin = kBegin;
    args.kv = layout_.View(pool_.data(), reinterpret_cast<const int32_t*>(pages_.data()),
                           kBegin + kTokens, /*layer=*/0);
    args.scale = 1.0f / std::sqrt(static_cast<float>(layout_.head_dim));
    args.out = TensorView(out_.data(), kAct, {kTokens, kHeads, layout_.head_dim});
    args.lse = TensorView(lse_.data(), DType::kF32, {kTokens, kHeads});
    Sequence calls;
    calls.Then([&] {
      return by_hopper ? AttendDenseHopper(args, {}, limits_, stream_)
                       : AttendDense(args, {}, limits_, scratch_.data(), stream_);
    });
    calls.Then([&] { return cudaStreamSynchronize(stream_); });
    std::vector<BF16> out(static_cast<size_t>(n_out_));
    result->lse.resize(kTokens * kHeads);
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
  cudaError_t UploadNormals(Memory& to, int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<BF16> values(static_cast<size_t>(n));
    for (BF16& value : values) value = ToBF16(normal(random_));
    const cudaError_t error = to.Allocate(n * int64_t{sizeof(BF16)});
    return error != cudaSuccess ? error : Upload(to, values);
  }

  const DeviceLimits limits_;
  const cudaStream_t stream_;
  const KvLayout layout_;
  const int64_t n_out_;
  std::mt19937 random_{2026};
  Memory q_, pool_, pages_, out_, lse_, scratch_;
};

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

std::string WhyNotHopper(const DeviceLimits& limits, cudaStream_t stream) {
  for (const int32_t head_dim : {64, 128}) {
    Check check(head_dim, limits, stream);
    AttentionResult expected;
    AttentionResult actual;
    Sequence calls;
    calls.Then([&] { return check.Prepare(); });
    calls.Then([&] { return check.Run(/*by_hopper=*/false, &expected); });
    calls.Then([&] { return check.Run(/*by_hopper=*/true, &actual); });
    const std::string which = "at head_dim " + std::to_string(head_dim) + ": ";
    if (calls.error() != cudaSuccess) return which + cudaGetErrorString(calls.error());
    const std::string difference = CompareAttention(actual, expected);
    if (!difference.empty()) return which + difference;
  }
  return "";
}

}  // namespace longhaul::cuda
