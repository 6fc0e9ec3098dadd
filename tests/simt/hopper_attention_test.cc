// Dense prefill attention by tensor copies and wgmma against kernels/ref.
#include "kernels/cuda/hopper_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/simt/dense_problem.h"
#include "tests/simt/hopper_fixture.h"

namespace longhaul::cuda {
namespace {

using ::longhaul::testing::IsClose;
using testing::DeviceProblem;
using testing::DeviceTensor;
using testing::ProblemShape;
using Result = testing::DenseResult;

constexpr DeviceLimits kLimits = {.n_multiprocessors = 1};

class HopperAttention : public testing::OnHopper {};

class Problem : public testing::DenseProblem {
 public:
  explicit Problem(const ProblemShape& shape) : DenseProblem(shape, /*seed=*/23) {}

  Result Run(const KeyRange& keys = {}, const DeviceLimits& limits = kLimits) {
    return RunOnDevice([&](const AttendDenseArgs& args) {
      return AttendDenseHopper(args, keys, limits, nullptr);
    });
  }

  void Check(int n_seeds = 1, const DeviceLimits& limits = kLimits) {
    CheckRuns(n_seeds, [&] { return Run({}, limits); });
  }
};

// One to three tiles of 128 keys, whose last page is full, or not, or missing.
TEST_F(HopperAttention, HeadDimsGroupsTailsAndPageBorders) {
  const ProblemShape shapes[] = {
      {.n_tokens = 1, .q_begin = 0, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 1, .q_begin = 63, .n_heads = 8, .n_kv_heads = 1, .head_dim = 128},
      {.n_tokens = 1, .q_begin = 64, .n_heads = 3, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 3, .q_begin = 125, .n_heads = 4, .n_kv_heads = 2, .head_dim = 128},
      {.n_tokens = 17, .q_begin = 240, .n_heads = 8, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 33, .q_begin = 128, .n_heads = 4, .n_kv_heads = 1, .head_dim = 128},
      {.n_tokens = 40, .q_begin = 300, .n_heads = 7, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 129, .q_begin = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 128},
  };
  for (const ProblemShape& shape : shapes) {
    SCOPED_TRACE(shape.Name());
    Problem(shape).Check();
  }
}

// Long enough that every slot of the rings is used again, twice.
TEST_F(HopperAttention, AnyOrderOfThreads) {
  for (const int32_t head_dim : {64, 128}) {
    SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim);
    Problem({.n_tokens = 20, .q_begin = 620, .n_heads = 4, .n_kv_heads = 1, .head_dim = head_dim})
        .Check(/*n_seeds=*/4);
  }
}

TEST_F(HopperAttention, WindowsOnAndOffTileBorders) {
  for (const int64_t window : {1, 64, 129, 200}) {
    SCOPED_TRACE(::testing::Message() << "window " << window);
    Problem problem({.n_tokens = 50, .q_begin = 230, .n_heads = 2, .n_kv_heads = 1});
    problem.window = window;
    problem.Check();
  }
}

TEST_F(HopperAttention, SharpSoftmaxAndLargeScores) {
  Problem problem({.n_tokens = 17, .q_begin = 250, .n_heads = 2, .q_gain = 30.0f});
  const Result expected = problem.Expected();
  const Result actual = problem.Run();
  EXPECT_TRUE(IsClose(actual.out, expected.out, DType::kBF16, 2e-3));
  EXPECT_TRUE(IsClose(actual.lse, expected.lse, DType::kF32, 1e-3));
}

TEST_F(HopperAttention, LeavesOutHeads) {
  Problem problem({.n_tokens = 20, .q_begin = 70, .n_heads = 4, .n_kv_heads = 2});
  problem.head_mask = {0, 1, 7, 0};
  const Result expected = problem.Expected();
  const Result actual = problem.Run();
  for (size_t i = 0; i < expected.lse.size(); ++i) {
    ASSERT_EQ(std::isnan(actual.lse[i]), std::isnan(expected.lse[i])) << i;
    if (std::isnan(expected.lse[i])) continue;
    EXPECT_NEAR(actual.lse[i], expected.lse[i], 1e-4);
    for (size_t d = 64 * i; d < 64 * (i + 1); ++d) {
      ASSERT_NEAR(actual.out[d], expected.out[d], 2e-2) << d;
    }
  }
}

// Sections of one kv head each, and of all three.
TEST_F(HopperAttention, AnyOrderOfWorkCoversAllRows) {
  for (const int64_t l2_bytes : {1 << 10, 50 << 20}) {
    SCOPED_TRACE(::testing::Message() << l2_bytes << " bytes of L2");
    Problem({.n_tokens = 140, .q_begin = 10, .n_heads = 3, .n_kv_heads = 3})
        .Check(1, {.n_multiprocessors = 1, .l2_bytes = l2_bytes});
  }
}

// Two calls over parts of the keys, merged by log-sum-exp, are one call over all.
TEST_F(HopperAttention, KeyRangesMerge) {
  const ProblemShape shape = {
      .n_tokens = 40, .q_begin = 100, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64};
  Problem problem(shape);
  const Result expected = problem.Expected();
  for (const int64_t border : {0, 50, 128}) {
    SCOPED_TRACE(::testing::Message() << "border " << border);
    const Result below = problem.Run({.begin = 0, .end = border});
    const Result above = problem.Run({.begin = border});
    Result merged = expected;
    for (size_t i = 0; i < merged.lse.size(); ++i) {
      const int64_t position = shape.q_begin + static_cast<int64_t>(i) / shape.n_heads;
      EXPECT_EQ(std::isinf(below.lse[i]), border == 0);
      EXPECT_EQ(std::isinf(above.lse[i]), position < border) << i;
      const double a = std::exp(double{below.lse[i]});
      const double b = std::exp(double{above.lse[i]});
      merged.lse[i] = static_cast<float>(std::log(a + b));
      for (size_t d = 64 * i; d < 64 * (i + 1); ++d) {
        merged.out[d] = static_cast<float>((a * below.out[d] + b * above.out[d]) / (a + b));
      }
    }
    EXPECT_TRUE(IsClose(merged.out, expected.out, DType::kBF16, 4e-3));
    EXPECT_TRUE(IsClose(merged.lse, expected.lse, DType::kF32, 1e-4));
  }
}

TEST_F(HopperAttention, TakesWhatFillsTheDevice) {
  const ProblemShape shape = {
      .n_tokens = 64, .q_begin = 200, .n_heads = 8, .n_kv_heads = 2, .head_dim = 128};
  DeviceProblem problem(shape, /*seed=*/1);
  AttendDenseArgs args;
  args.q = problem.device_q();
  args.kv = problem.device_kv();
  EXPECT_TRUE(SuitsHopper(args, {.n_multiprocessors = 4}));   // 2 heads of 256 packed rows
  EXPECT_FALSE(SuitsHopper(args, {.n_multiprocessors = 5}));  // the other kernel splits the keys
  const uint8_t mask[8] = {};
  args.head_mask = mask;
  EXPECT_TRUE(SuitsHopper(args, {.n_multiprocessors = 8}));  // each head by itself
  EXPECT_FALSE(SuitsHopper(args, {.n_multiprocessors = 9}));
  args.head_mask = nullptr;
  args.kv.head_dim = 96;
  EXPECT_FALSE(SuitsHopper(args, kLimits));
  args.kv.head_dim = 128;
  args.kv.dtype = DType::kF32;
  EXPECT_FALSE(SuitsHopper(args, kLimits));
}

TEST_F(HopperAttention, RefusesAHeadDimThatIsNotCompiled) {
  DeviceProblem problem({.n_tokens = 4, .head_dim = 96}, /*seed=*/1);
  const DeviceTensor<BF16> out({4, 1, 96});
  AttendDenseArgs args;
  args.q = problem.device_q();
  args.kv = problem.device_kv();
  args.scale = problem.scale();
  args.out = out.view();
  EXPECT_EQ(AttendDenseHopper(args, {}, kLimits, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longhaul::cuda
