// Attention under a random plan: what kernels/ref answers, against what a kernel answers that is
// given the same on the device. For the tests of all sparse kernels.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/ref/ref_ops.h"
#include "tests/simt/device_plan.h"
#include "tests/simt/device_problem.h"

namespace longhaul::testing {

struct SparseCase {
  ProblemShape shape;
  LocalPattern local;
  int64_t stripe_width = 1;
  double stripe_share = 0.1;  // of all places
  double band_share = 0;
};

// Sparse heads with random lists; of three and more, the first streams and the last is dense.
inline void FillPlan(const SparseCase& c, uint64_t seed, PlanOwner& plan) {
  Random random(seed);
  const int64_t n_keys = c.shape.n_keys();
  for (int64_t h = 0; h < c.shape.n_heads; ++h) {
    std::vector<int32_t> stripes, bands;
    for (int64_t s = 0; s < n_keys; s += c.stripe_width) {
      if (random.Uniform() < c.stripe_share) stripes.push_back(static_cast<int32_t>(s));
    }
    for (int64_t b = c.local.window / kBandWidth; b < CeilDiv(n_keys, kBandWidth); ++b) {
      if (random.Uniform() < c.band_share) bands.push_back(static_cast<int32_t>(b));
    }
    const bool several = c.shape.n_heads >= 3;
    if (several && h == 0) {
      plan.Set(h, HeadKind::kStreaming);
    } else if (several && h == c.shape.n_heads - 1) {
      plan.Set(h, HeadKind::kDense);
    } else {
      plan.Set(h, HeadKind::kSparse, stripes, bands);
    }
  }
}

// launch(args, scratch): a cudaError_t.
template <typename Launch>
void ExpectSparseMatches(const SparseCase& c, const cuda::StripeCopies& copies, int n_seeds,
                         const Launch& launch) {
  SCOPED_TRACE(::testing::Message()
               << c.shape.Name() << " width " << c.stripe_width << " copies " << copies.n_keys);
  // Weights are rounded to bf16 before they meet the values: 2^-9 of a value of a few units.
  constexpr double kOutFloor = 1.5e-2;
  constexpr double kLseFloor = 2e-5;
  const ProblemShape& shape = c.shape;
  DeviceProblem problem(shape, 21);
  const int64_t n_keys = shape.n_keys();
  PlanOwner plan(shape.n_heads, c.local, c.stripe_width, CeilDiv(n_keys, c.stripe_width),
                 c.band_share > 0 ? CeilDiv(n_keys, kBandWidth) : 0);
  FillPlan(c, 22, plan);
  std::vector<float> out(shape.n_tokens * shape.n_heads * shape.head_dim);
  std::vector<float> lse(shape.n_tokens * shape.n_heads);
  AttendSparseArgs args{.q = problem.q(),
                        .dual = problem.dual(),
                        .q_begin = shape.q_begin,
                        .kv = problem.kv(),
                        .scale = problem.scale(),
                        .plan = plan.plan(),
                        .out = View(out, {shape.n_tokens, shape.n_heads, shape.head_dim}),
                        .lse = View(lse, {shape.n_tokens, shape.n_heads})};
  ref::AttendSparse(args);

  const DevicePlan device_plan = DevicePlan::CopyOf(shape.n_heads, plan.plan());
  args.q = problem.device_q();
  args.dual = problem.device_dual();
  args.kv = problem.device_kv();
  args.plan = device_plan.plan();
  simt::ForEachSeed(n_seeds, [&] {
    const DeviceTensor<BF16> device_out({shape.n_tokens, shape.n_heads, shape.head_dim});
    const DeviceTensor<> device_lse({shape.n_tokens, shape.n_heads});
    const simt::DeviceArray<std::byte> scratch(
        cuda::AttendSparseScratchBytes(shape.n_heads, shape.head_dim, copies));
    args.out = device_out.view();
    args.lse = device_lse.view();
    ASSERT_EQ(launch(args, scratch.data()), cudaSuccess);
    EXPECT_TRUE(IsClose(device_out.Floats(), out, DType::kBF16, kOutFloor));
    EXPECT_TRUE(IsClose(device_lse.Floats(), lse, DType::kF32, kLseFloor));
  });
}

}  // namespace longhaul::testing
