// Dense prefill attention on the device against kernels/ref.
#include "kernels/cuda/attention_dense.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/simt/dense_problem.h"

namespace longhaul::cuda {
namespace {

using ::longhaul::testing::IsClose;
using simt::DeviceArray;
using testing::DeviceProblem;
using testing::DeviceTensor;
using testing::ProblemShape;
using Result = testing::DenseResult;

// Few multiprocessors: no keys are split unless a test asks for it.
constexpr DeviceLimits kOneMultiprocessor = {.n_multiprocessors = 1};

#if defined(__CUDACC__)
constexpr int64_t kLongContext = 12000;
#else
constexpr int64_t kLongContext = 600;  // the emulator takes its time
#endif

class Problem : public testing::DenseProblem {
 public:
  explicit Problem(const ProblemShape& shape) : DenseProblem(shape, /*seed=*/11) {}

  Result Run(const DeviceLimits& limits = kOneMultiprocessor, const KeyRange& keys = {}) {
    const DeviceArray<std::byte> scratch(AttendDenseScratchBytes(limits, shape().head_dim));
    return RunOnDevice([&](const AttendDenseArgs& args) {
      return AttendDense(args, keys, limits, scratch.data(), nullptr);
    });
  }

  void Check(const DeviceLimits& limits = kOneMultiprocessor, int n_seeds = 1) {
    CheckRuns(n_seeds, [&] { return Run(limits); });
  }
};

TEST(AttendDense, HeadDimsGroupsAndTails) {
  const ProblemShape shapes[] = {
      {.n_tokens = 1, .q_begin = 0, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 1, .q_begin = 63, .n_heads = 3, .n_kv_heads = 1, .head_dim = 96},
      {.n_tokens = 1, .q_begin = 64, .n_heads = 8, .n_kv_heads = 1, .head_dim = 128},
      {.n_tokens = 3, .q_begin = 62, .n_heads = 4, .n_kv_heads = 4, .head_dim = 80},
      {.n_tokens = 3, .q_begin = 125, .n_heads = 6, .n_kv_heads = 2, .head_dim = 128},
      {.n_tokens = 17, .q_begin = 0, .n_heads = 8, .n_kv_heads = 2, .head_dim = 64},
      {.n_tokens = 17, .q_begin = 191, .n_heads = 3, .n_kv_heads = 1, .head_dim = 80},
      {.n_tokens = 17, .q_begin = 47, .n_heads = 8, .n_kv_heads = 1, .head_dim = 96},
      {.n_tokens = 64, .q_begin = 64, .n_heads = 4, .n_kv_heads = 1, .head_dim = 128},
      {.n_tokens = 113, .q_begin = 0, .n_heads = 2, .n_kv_heads = 2, .head_dim = 128},
      {.n_tokens = 113, .q_begin = 79, .n_heads = 3, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 129, .q_begin = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 96},
  };
  for (const ProblemShape& shape : shapes) {
    SCOPED_TRACE(shape.Name());
    Problem(shape).Check();
  }
}

TEST(AttendDense, Fp8Cache) {
  const ProblemShape shapes[] = {
      {.n_tokens = 1, .q_begin = 0, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64},
      {.n_tokens = 3, .q_begin = 125, .n_heads = 6, .n_kv_heads = 2, .head_dim = 128},
      {.n_tokens = 17, .q_begin = 191, .n_heads = 3, .n_kv_heads = 1, .head_dim = 80},
      {.n_tokens = 129, .q_begin = 80, .n_heads = 1, .n_kv_heads = 1, .head_dim = 96},
  };
  for (ProblemShape shape : shapes) {
    shape.kv_dtype = DType::kF8E4M3;
    SCOPED_TRACE(shape.Name());
    Problem(shape).Check(kOneMultiprocessor, /*n_seeds=*/2);
  }
}

// Rows and splits that begin and end inside chunks, and rows of several chunks in one tile.
TEST(AttendDense, DualChunks) {
  const ProblemShape shapes[] = {
      {.n_tokens = 1, .q_begin = 400, .n_heads = 4, .head_dim = 128, .chunk_tokens = 128},
      {.n_tokens = 150, .q_begin = 83, .n_heads = 4, .n_kv_heads = 2, .chunk_tokens = 64},
      {.n_tokens = 40, .q_begin = 170, .n_heads = 2, .head_dim = 80, .chunk_tokens = 192},
      {.n_tokens = 20,
       .q_begin = 300,
       .n_heads = 4,
       .head_dim = 128,
       .kv_dtype = DType::kF8E4M3,
       .chunk_tokens = 64},
      {.n_tokens = 20, .q_begin = 100, .n_heads = 2, .head_dim = 96, .chunk_tokens = 4096},
  };
  for (const ProblemShape& shape : shapes) {
    SCOPED_TRACE(shape.Name());
    Problem(shape).Check(kOneMultiprocessor, /*n_seeds=*/2);
  }
  Problem split({.n_tokens = 3, .q_begin = 2300, .n_heads = 2, .chunk_tokens = 320});
  split.Check({.n_multiprocessors = 16});
  split.window = 500;
  split.Check({.n_multiprocessors = 16});
}

TEST(AttendDense, WindowsOnAndOffPageBorders) {
  const ProblemShape shape = {
      .n_tokens = 113, .q_begin = 150, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64};
  for (int64_t window : {1, 40, 64, 129, 262, 1000}) {
    SCOPED_TRACE(::testing::Message() << "window " << window);
    Problem problem(shape);
    problem.window = window;
    problem.Check();
  }
}

TEST(AttendDense, AnyOrderOfThreadsWithOneAndTwoTilesAhead) {
  for (int shared_kib : {100, 228}) {
    SCOPED_TRACE(::testing::Message() << shared_kib << " KiB");
    const DeviceLimits limits = {.n_multiprocessors = 1, .shared_bytes = shared_kib << 10};
    Problem({.n_tokens = 35, .q_begin = 290, .n_heads = 4, .n_kv_heads = 1, .head_dim = 128})
        .Check(limits, /*n_seeds=*/4);
  }
}

TEST(AttendDense, SharpSoftmaxAndLargeScores) {
  const ProblemShape shape = {.n_tokens = 17, .q_begin = 250, .n_heads = 2, .q_gain = 30.0f};
  Problem problem(shape);
  const Result expected = problem.Expected();
  const Result actual = problem.Run();
  EXPECT_TRUE(IsClose(actual.out, expected.out, DType::kBF16, 2e-3));
  EXPECT_TRUE(IsClose(actual.lse, expected.lse, DType::kF32, 1e-3));
}

TEST(AttendDense, LeavesOutHeads) {
  Problem problem({.n_tokens = 20, .q_begin = 70, .n_heads = 6, .n_kv_heads = 2});
  problem.head_mask = {0, 1, 0, 0, 7, 1};
  const Result expected = problem.Expected();
  const Result actual = problem.Run();
  int64_t n_written = 0;
  for (size_t i = 0; i < expected.lse.size(); ++i) {
    ASSERT_EQ(std::isnan(actual.lse[i]), std::isnan(expected.lse[i])) << i;
    if (std::isnan(expected.lse[i])) continue;
    ++n_written;
    EXPECT_NEAR(actual.lse[i], expected.lse[i], 1e-4);
    for (size_t d = 64 * i; d < 64 * (i + 1); ++d) {
      ASSERT_NEAR(actual.out[d], expected.out[d], 2e-2) << d;
    }
  }
  EXPECT_EQ(n_written, 3 * 20);

  problem.head_mask = std::vector<uint8_t>(6, 1);
  problem.Check();
}

// The last rows of a long prompt: many multiprocessors share the keys.
TEST(AttendDense, SplitsTheKeysOfFewRows) {
  const DeviceLimits limits = {.n_multiprocessors = 16};
  Problem all({.n_tokens = 3, .q_begin = 2300, .n_heads = 4, .n_kv_heads = 2});
  all.Check(limits, /*n_seeds=*/2);
  all.window = 2100;
  all.Check(limits);
  Problem masked({.n_tokens = 5, .q_begin = 2100, .n_heads = 3, .n_kv_heads = 1, .head_dim = 80});
  masked.head_mask = {1, 1, 1};
  masked.Check(limits);
}

TEST(AttendDense, LongContextOnAWholeDevice) {
  const DeviceLimits limits = {
      .n_multiprocessors = 132, .shared_bytes = 228 << 10, .l2_bytes = 50 << 20};
  Problem({.n_tokens = 130, .q_begin = kLongContext, .n_heads = 4, .head_dim = 128}).Check(limits);
}

// Sections of one kv head each, and of two where three do not divide by it.
TEST(AttendDense, AnyOrderOfWorkCoversAllRows) {
  for (int64_t l2_bytes : {1 << 10, 220 << 10}) {
    SCOPED_TRACE(::testing::Message() << l2_bytes << " bytes of L2");
    Problem({.n_tokens = 150, .q_begin = 60, .n_heads = 6, .n_kv_heads = 3})
        .Check({.n_multiprocessors = 1, .l2_bytes = l2_bytes});
  }
}

// Two calls over parts of the keys, merged by log-sum-exp, are one call over all.
TEST(AttendDense, KeyRangesMerge) {
  const ProblemShape shape = {
      .n_tokens = 40, .q_begin = 100, .n_heads = 2, .n_kv_heads = 1, .head_dim = 96};
  Problem problem(shape);
  const Result expected = problem.Expected();
  for (int64_t border : {0, 50, 64, 120}) {
    SCOPED_TRACE(::testing::Message() << "border " << border);
    const Result below = problem.Run(kOneMultiprocessor, {.begin = 0, .end = border});
    const Result above = problem.Run(kOneMultiprocessor, {.begin = border});
    Result merged = expected;
    for (size_t i = 0; i < merged.lse.size(); ++i) {
      const int64_t position = shape.q_begin + static_cast<int64_t>(i) / shape.n_heads;
      EXPECT_EQ(std::isinf(below.lse[i]), border == 0);
      EXPECT_EQ(std::isinf(above.lse[i]), position < border) << i;
      const double a = std::exp(double{below.lse[i]});
      const double b = std::exp(double{above.lse[i]});
      merged.lse[i] = static_cast<float>(std::log(a + b));
      for (size_t d = 96 * i; d < 96 * (i + 1); ++d) {
        merged.out[d] = static_cast<float>((a * below.out[d] + b * above.out[d]) / (a + b));
      }
    }
    EXPECT_TRUE(IsClose(merged.out, expected.out, DType::kBF16, 4e-3));
    EXPECT_TRUE(IsClose(merged.lse, expected.lse, DType::kF32, 1e-4));
  }
}

TEST(AttendDense, RefusesAHeadDimThatIsNotCompiled) {
  const ProblemShape shape = {.n_tokens = 4, .head_dim = 32};
  DeviceProblem problem(shape, /*seed=*/1);
  const DeviceTensor<BF16> out({4, 1, 32});
  AttendDenseArgs args;
  args.q = problem.device_q();
  args.kv = problem.device_kv();
  args.scale = problem.scale();
  args.out = out.view();
  EXPECT_EQ(AttendDense(args, {}, kOneMultiprocessor, nullptr, nullptr), cudaErrorInvalidValue);
}

#if !defined(__CUDACC__)
TEST(AttendDense, ReadsSharedMemoryWithoutBankConflicts) {
  for (int32_t head_dim : {64, 80, 96, 128}) {
    SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim);
    simt::TakeStatistics();
    Problem({.n_tokens = 20, .q_begin = 100, .n_heads = 2, .n_kv_heads = 1, .head_dim = head_dim})
        .Run();
    const simt::Statistics statistics = simt::TakeStatistics();
    EXPECT_GT(statistics.n_ldmatrix_phases, 0);
    EXPECT_EQ(statistics.n_ldmatrix_conflicts, 0);
  }
}
#endif

}  // namespace
}  // namespace longhaul::cuda
