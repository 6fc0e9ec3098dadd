// Attention under a plan by wgmma against kernels/ref: every kind of head, stripe width, copied and
// gathered stripes, bands, tails and page borders.
#include "kernels/cuda/hopper_sparse.h"

#include <gtest/gtest.h>

#include "tests/simt/dense_problem.h"
#include "tests/simt/hopper_fixture.h"
#include "tests/simt/sparse_problem.h"

namespace longhaul::cuda {
namespace {

using Case = testing::SparseCase;

constexpr StripeCopies kGather{};

class HopperSparse : public testing::OnHopper {
 protected:
  static void ExpectMatches(const Case& c, int n_seeds = 1, const StripeCopies& copies = kGather) {
    testing::ExpectSparseMatches(c, copies, n_seeds,
                                 [&](const AttendSparseArgs& args, std::byte* scratch) {
                                   return AttendSparseHopper(args, copies, scratch, nullptr);
                                 });
  }
};

TEST_F(HopperSparse, KindsOfHeads) {
  ExpectMatches({{.n_tokens = 40, .q_begin = 200, .n_heads = 4}, {32, 64}, 1, 0.3}, 3);
}

TEST_F(HopperSparse, EveryStripeWidthGatheredAndCopied) {
  for (const int64_t width : {1, 8, 16, 64}) {
    const Case c{{.n_tokens = 33, .q_begin = 230, .n_heads = 2}, {20, 64}, width, 0.35};
    ExpectMatches(c);
    ExpectMatches(c, 1, {.n_keys = 512});
  }
}

TEST_F(HopperSparse, Fp8Cache) {
  for (const int32_t head_dim : {64, 128}) {
    for (const int64_t width : {1, 16}) {
      ExpectMatches({{.n_tokens = 70,
                      .q_begin = 403,
                      .n_heads = 3,
                      .head_dim = head_dim,
                      .kv_dtype = DType::kF8E4M3},
                     {20, 64},
                     width,
                     0.4,
                     width == 1 ? 0.5 : 0.0},
                    width == 1 ? 2 : 1);
    }
  }
}

// Twelve tiles and more: every slot of the rings and of the queue of tiles is used again.
TEST_F(HopperSparse, AnyOrderOfThreads) {
  for (const int32_t head_dim : {64, 128}) {
    ExpectMatches(
        {{.n_tokens = 70, .q_begin = 1700, .n_heads = 1, .head_dim = head_dim}, {64, 64}, 1, 0.8},
        3);
  }
}

// Bands on and off page borders; rows of a single consumer.
TEST_F(HopperSparse, Bands) {
  ExpectMatches({{.n_tokens = 130, .q_begin = 331, .n_heads = 1}, {10, 64}, 1, 0.1, 0.5}, 2);
  ExpectMatches({{.n_tokens = 128, .q_begin = 1200, .n_heads = 2}, {0, 64}, 1, 0.01, 0.3}, 2);
  ExpectMatches({{.n_tokens = 128, .q_begin = 1216, .n_heads = 2}, {0, 64}, 1, 0.0, 0.15}, 2);
  ExpectMatches({{.n_tokens = 60, .q_begin = 700, .n_heads = 2}, {0, 64}, 1, 0.0, 0.4});
  ExpectMatches({{.n_tokens = 70, .q_begin = 250, .n_heads = 2}, {70, 128}, 8, 0.2, 0.4});
  // Bands alone, and bands that lie before the first key.
  ExpectMatches({{.n_tokens = 65, .q_begin = 130, .n_heads = 1}, {0, 64}, 1, 0.0, 1.0});
}

TEST_F(HopperSparse, GroupsOfHeads) {
  ExpectMatches({{.n_tokens = 35, .q_begin = 190, .n_heads = 4, .n_kv_heads = 2, .head_dim = 128},
                 {16, 64},
                 1,
                 0.3});
}

TEST_F(HopperSparse, FirstEpochOneTokenAndEmptyLists) {
  ExpectMatches({{.n_tokens = 1, .q_begin = 0, .n_heads = 3}, {64, 64}, 1, 0.5}, 2);
  ExpectMatches({{.n_tokens = 1, .q_begin = 191, .n_heads = 2}, {16, 64}, 1, 0.5, 0.5}, 2);
  ExpectMatches({{.n_tokens = 129, .q_begin = 0, .n_heads = 1}, {16, 64}, 1, 0.4, 0.5});
  ExpectMatches({{.n_tokens = 17, .q_begin = 111, .n_heads = 2}, {0, 64}, 1, 0.0});
}

// A sharp softmax, whose weights differ by orders of magnitude between tiles.
TEST_F(HopperSparse, SharpSoftmax) {
  ExpectMatches({{.n_tokens = 40, .q_begin = 200, .n_heads = 3, .q_gain = 8.0f}, {16, 64}, 1, 0.3});
}

TEST_F(HopperSparse, LeavesOtherCallsToTheOtherKernel) {
  testing::DeviceProblem problem({.n_tokens = 4}, /*seed=*/1);
  AttendSparseArgs args;
  args.q = problem.device_q();
  args.kv = problem.device_kv();
  EXPECT_TRUE(SuitsHopper(args));
  args.kv.head_dim = 96;
  EXPECT_FALSE(SuitsHopper(args));
  EXPECT_EQ(AttendSparseHopper(args, kGather, nullptr, nullptr), cudaErrorInvalidValue);
  args.kv.head_dim = 128;
  args.kv.dtype = DType::kF8E4M3;
  EXPECT_TRUE(SuitsHopper(args));
  args.kv.dtype = DType::kF32;
  EXPECT_FALSE(SuitsHopper(args));
  args.kv.dtype = DType::kBF16;
  args.dual.chunk_tokens = 64;
  EXPECT_FALSE(SuitsHopper(args));
  args.dual.chunk_tokens = 0;
  args.plan.max_bands = 1;
  args.q_begin = int64_t{1} << 20;
  EXPECT_TRUE(SuitsHopper(args));
  args.q_begin = int64_t{1} << 30;  // the set of its bands does not fit shared memory
  EXPECT_FALSE(SuitsHopper(args));
}

// Dense calls over an fp8 cache.
class DenseByPlan : public testing::DenseProblem {
 public:
  explicit DenseByPlan(testing::ProblemShape shape, int64_t window)
      : DenseProblem(shape, /*seed=*/31) {
    this->window = window;
  }
  void Check() {
    CheckRuns(/*n_seeds=*/1, [&] {
      return RunOnDevice([&](const AttendDenseArgs& args) {
        EXPECT_TRUE(SuitsPlan(args, {.n_multiprocessors = 1}));
        const simt::DeviceArray<std::byte> scratch(AttendDenseByPlanScratchBytes(args));
        const cudaError_t error = AttendDenseByPlan(args, scratch.data(), nullptr);
        cudaDeviceSynchronize();  // before the scratch is freed
        return error;
      });
    });
  }
};

TEST_F(HopperSparse, DenseCallsOverAnFp8Cache) {
  for (const int64_t window : {0, 1, 100}) {
    SCOPED_TRACE(::testing::Message() << "window " << window);
    DenseByPlan({.n_tokens = 140,
                 .q_begin = 93,
                 .n_heads = 4,
                 .n_kv_heads = 2,
                 .head_dim = 128,
                 .kv_dtype = DType::kF8E4M3},
                window)
        .Check();
  }
}

TEST_F(HopperSparse, DenseCallsThatFillTheDevice) {
  testing::DeviceProblem problem(
      {.n_tokens = 130, .n_heads = 4, .n_kv_heads = 2, .kv_dtype = DType::kF8E4M3}, /*seed=*/1);
  AttendDenseArgs args;
  args.q = problem.device_q();
  args.kv = problem.device_kv();
  EXPECT_TRUE(SuitsPlan(args, {.n_multiprocessors = 8}));
  EXPECT_FALSE(SuitsPlan(args, {.n_multiprocessors = 9}));  // the other kernel splits the keys
  const uint8_t mask[4] = {};
  args.head_mask = mask;
  EXPECT_FALSE(SuitsPlan(args, {.n_multiprocessors = 8}));
  args.head_mask = nullptr;
  args.kv.dtype = DType::kBF16;  // has a kernel of its own
  EXPECT_FALSE(SuitsPlan(args, {.n_multiprocessors = 8}));
}

}  // namespace
}  // namespace longhaul::cuda
