// Attention under a plan on the device against kernels/ref: every kind of head, stripe width,
// copied and gathered stripes, bands, tails and page borders.
#include <gtest/gtest.h>

#include "kernels/cuda/attention_sparse.h"
#include "tests/simt/sparse_problem.h"

namespace longhaul::cuda {
namespace {

using Case = testing::SparseCase;

// On a device of the given size: small ones have room for one tile of keys at a time.
void ExpectMatches(const Case& c, const StripeCopies& copies, const DeviceLimits& limits,
                   int n_seeds) {
  testing::ExpectSparseMatches(c, copies, n_seeds,
                               [&](const AttendSparseArgs& args, std::byte* scratch) {
                                 return AttendSparse(args, copies, limits, scratch, nullptr);
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
