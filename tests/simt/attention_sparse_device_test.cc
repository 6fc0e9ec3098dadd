// Attention under a plan on the device against kernels/ref: every kind of head, stripe width,
// copied and gathered stripes, bands, tails and page borders.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/ref/ref_ops.h"
#include "tests/simt/device_plan.h"
#include "tests/simt/device_problem.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using testing::DevicePlan;
using testing::DeviceProblem;
using testing::DeviceTensor;
using testing::IsClose;
using testing::PlanOwner;
using testing::ProblemShape;
using testing::Random;
using testing::View;

// Weights are rounded to bf16 before they meet the values: 2^-9 of a value of a few units.
constexpr double kOutFloor = 1.5e-2;
constexpr double kLseFloor = 2e-5;

struct Case {
  ProblemShape shape;
  LocalPattern local;
  int64_t stripe_width = 1;
  double stripe_share = 0.1;  // of all places
  double band_share = 0;
};

// Sparse heads with random lists; of three and more, the first streams and the last is dense.
void FillPlan(const Case& c, uint64_t seed, PlanOwner& plan) {
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

// On a device of the given size: small ones have room for one tile of keys at a time.
void ExpectMatches(const Case& c, const StripeCopies& copies, const DeviceLimits& limits,
                   int n_seeds) {
  SCOPED_TRACE(::testing::Message()
               << c.shape.Name() << " width " << c.stripe_width << " copies " << copies.n_keys);
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
    const DeviceArray<std::byte> scratch(
        AttendSparseScratchBytes(shape.n_heads, shape.head_dim, copies));
    args.out = device_out.view();
    args.lse = device_lse.view();
    ASSERT_EQ(AttendSparse(args, copies, limits, scratch.data(), nullptr), cudaSuccess);
    EXPECT_TRUE(IsClose(device_out.Floats(), out, DType::kBF16, kOutFloor));
    EXPECT_TRUE(IsClose(device_lse.Floats(), lse, DType::kF32, kLseFloor));
  });
}

constexpr DeviceLimits kHopper{.shared_bytes = 228 * 1024};
constexpr DeviceLimits kAmpere{.shared_bytes = 100 * 1024};
constexpr StripeCopies kGather{};

TEST(AttentionSparseDeviceTest, KindsOfHeads) {
  const Case c{{.n_tokens = 40, .q_begin = 200, .n_heads = 4}, {32, 64}, 1, 0.3};
  ExpectMatches(c, kGather, kHopper, 3);
  ExpectMatches(c, kGather, kAmpere, 2);
}

TEST(AttentionSparseDeviceTest, EveryStripeWidthGatheredAndCopied) {
  for (const int64_t width : {1, 8, 16, 64}) {
    const Case c{{.n_tokens = 33, .q_begin = 230, .n_heads = 2}, {20, 64}, width, 0.35};
    ExpectMatches(c, kGather, kHopper, 1);
    ExpectMatches(c, {.n_keys = 512}, kHopper, 1);
  }
}

TEST(AttentionSparseDeviceTest, Fp8Cache) {
  for (const int32_t head_dim : {64, 80, 128}) {
    for (const int64_t width : {1, 16}) {
      ExpectMatches({{.n_tokens = 35,
                      .q_begin = 203,
                      .n_heads = 4,
                      .head_dim = head_dim,
                      .kv_dtype = DType::kF8E4M3},
                     {20, 64},
                     width,
                     0.3,
                     head_dim == 80 ? 0.5 : 0.0},
                    kGather, kHopper, 2);
    }
  }
}

// Room for the copies of one head of two.
TEST(AttentionSparseDeviceTest, CopiesOfSomeHeads) {
  ExpectMatches({{.n_tokens = 20, .q_begin = 300, .n_heads = 2}, {20, 64}, 1, 0.3}, {.n_keys = 128},
                kHopper, 2);
}

TEST(AttentionSparseDeviceTest, Bands) {
  ExpectMatches({{.n_tokens = 130, .q_begin = 331, .n_heads = 1}, {10, 64}, 1, 0.1, 0.5}, kGather,
                kHopper, 2);
  ExpectMatches({{.n_tokens = 70, .q_begin = 250, .n_heads = 2}, {70, 128}, 8, 0.2, 0.4}, kGather,
                kAmpere, 1);
  // Bands alone, and bands that lie before the first key.
  ExpectMatches({{.n_tokens = 65, .q_begin = 130, .n_heads = 1}, {0, 64}, 1, 0.0, 1.0}, kGather,
                kHopper, 1);
}

TEST(AttentionSparseDeviceTest, HeadSizesAndGroups) {
  for (const int32_t head_dim : {80, 96, 128}) {
    ExpectMatches({{.n_tokens = 35,
                    .q_begin = 190,
                    .n_heads = 4,
                    .n_kv_heads = head_dim == 128 ? 1 : 2,
                    .head_dim = head_dim},
                   {16, 64},
                   1,
                   0.3},
                  {.n_keys = head_dim == 96 ? 256 : 0}, kHopper, 1);
  }
}

TEST(AttentionSparseDeviceTest, FirstEpochOneTokenAndEmptyLists) {
  ExpectMatches({{.n_tokens = 1, .q_begin = 0, .n_heads = 3}, {64, 64}, 1, 0.5}, kGather, kHopper,
                2);
  ExpectMatches({{.n_tokens = 1, .q_begin = 191, .n_heads = 2}, {16, 64}, 1, 0.5, 0.5}, kGather,
                kHopper, 2);
  ExpectMatches({{.n_tokens = 129, .q_begin = 0, .n_heads = 1}, {16, 64}, 1, 0.4, 0.5}, kGather,
                kHopper, 1);
  ExpectMatches({{.n_tokens = 17, .q_begin = 111, .n_heads = 2}, {0, 64}, 1, 0.0}, kGather, kHopper,
                1);
}

// Every kind of head over several chunks, which stripes, bands, sinks and windows cross.
TEST(AttentionSparseDeviceTest, DualChunks) {
  ExpectMatches(
      {{.n_tokens = 150, .q_begin = 333, .n_heads = 4, .chunk_tokens = 64}, {80, 64}, 1, 0.2, 0.4},
      kGather, kHopper, 1);
  ExpectMatches(
      {{.n_tokens = 40, .q_begin = 350, .n_heads = 2, .head_dim = 128, .chunk_tokens = 192},
       {16, 128},
       8,
       0.3},
      {.n_keys = 256}, kAmpere, 1);
  ExpectMatches({{.n_tokens = 30,
                  .q_begin = 300,
                  .n_heads = 3,
                  .kv_dtype = DType::kF8E4M3,
                  .chunk_tokens = 128},
                 {16, 64},
                 1,
                 0.3,
                 0.5},
                kGather, kHopper, 1);
}

// A sharp softmax, whose weights differ by orders of magnitude between tiles.
TEST(AttentionSparseDeviceTest, SharpSoftmax) {
  ExpectMatches({{.n_tokens = 40, .q_begin = 200, .n_heads = 3, .q_gain = 8.0f}, {16, 64}, 1, 0.3},
                kGather, kHopper, 1);
}

}  // namespace
}  // namespace longhaul::cuda
