// A call of dense prefill attention: what kernels/ref answers, and what a kernel answers that is
// given the same on the device. For the tests of both kernels.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/ref/ref_ops.h"
#include "tests/simt/device_problem.h"

namespace longhaul::testing {

struct DenseResult {
  std::vector<float> out;  // [T, H, D]
  std::vector<float> lse;  // [T, H]
};

class DenseProblem {
 public:
  DenseProblem(const ProblemShape& shape, uint64_t seed) : shape_(shape), attention_(shape, seed) {}

  int64_t window = 0;
  std::vector<uint8_t> head_mask;

  DenseResult Expected() {
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    const int64_t n_lse = shape_.n_tokens * shape_.n_heads;
    DenseResult result = {.out = std::vector<float>(n_lse * shape_.head_dim, kNan),
                          .lse = std::vector<float>(n_lse, kNan)};
    AttendDenseArgs args = Args();
    args.q = attention_.q();
    args.dual = attention_.dual();
    args.kv = attention_.kv();
    args.head_mask = head_mask.empty() ? nullptr : head_mask.data();
    args.out = View(result.out, {shape_.n_tokens, shape_.n_heads, shape_.head_dim});
    args.lse = View(result.lse, {shape_.n_tokens, shape_.n_heads});
    ref::AttendDense(args);
    return result;
  }

 protected:
  // launch(args): a cudaError_t.
  template <typename Launch>
  DenseResult RunOnDevice(const Launch& launch) {
    const DeviceTensor<BF16> out({shape_.n_tokens, shape_.n_heads, shape_.head_dim});
    const DeviceTensor<float> lse({shape_.n_tokens, shape_.n_heads});
    const simt::DeviceArray<uint8_t> mask(head_mask);
    AttendDenseArgs args = Args();
    args.q = attention_.device_q();
    args.dual = attention_.device_dual();
    args.kv = attention_.device_kv();
    args.head_mask = mask.data();
    args.out = out.view();
    args.lse = lse.view();
    EXPECT_EQ(launch(args), cudaSuccess);
    return {.out = out.Floats(), .lse = lse.Floats()};
  }

  // run(): a DenseResult.
  template <typename Run>
  void CheckRuns(int n_seeds, const Run& run) {
    const DenseResult expected = Expected();
    simt::ForEachSeed(n_seeds, [&] {
      const DenseResult actual = run();
      // The weights are rounded to bf16 before they meet the values.
      EXPECT_TRUE(IsClose(actual.out, expected.out, DType::kBF16, 2e-3));
      EXPECT_TRUE(IsClose(actual.lse, expected.lse, DType::kF32, 1e-4));
    });
  }

  const ProblemShape& shape() const { return shape_; }

 private:
  AttendDenseArgs Args() const {
    AttendDenseArgs args;
    args.q_begin = shape_.q_begin;
    args.scale = attention_.scale();
    args.window = window;
    return args;
  }

  ProblemShape shape_;
  DeviceProblem attention_;
};

}  // namespace longhaul::testing
