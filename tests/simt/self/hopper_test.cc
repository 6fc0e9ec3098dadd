// The emulated primitives of Hopper: what tensor copies and wgmma compute, from the definitions of
// the PTX ISA, and kernels broken on purpose, one for each rule that the emulator must enforce.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_map.h"
#include "tests/simt/emulator.h"
#include "tests/simt/kernel_test.h"
#include "tests/testing/compare.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using simt::ForEachSeed;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Matcher;

constexpr int kSeeds = 6;
constexpr int kTileKeys = 128;
constexpr int kTileElements = kTileKeys * 64;
constexpr int kTileBytes = kTileElements * 2;
constexpr int kTiles = 4;
constexpr int kRows = 64;

enum Variant {
  kRight,
  kNoWgmmaWait,
  kNoWgmmaFence,
  kNoProxyFence,
  kWrongParity,
  kNoFullWait,
  kEarlyRelease,
  kNoEmptyWait,
  kTooManyBytes,
  kTooFewBytes,
  kTooManyArrivals,
  kMisalignedTile,
  kWrongDescriptor,
  kNoBarrierFence,
  kBarrierAsData,
  kWeightsOverwritten,
  kGroupDiffers,
  kOutOfScope,
  kStoreUnderProduct,
  kNoBarrier,
  kEndsUnderCopy,
  kArrivalTooMany,
  kNotSwizzled
};

struct Params {
  TensorMap map;           // [kTiles, 1, n_rows of a tile, 64]
  Global<const BF16> q;    // [64, 64]
  Global<float> scores;    // [kTiles, 64, 128]
  Global<float> products;  // [64, 64]: sum over tiles of bf16(scores) times the tile
  int32_t variant = kRight;
};

// A producer thread, one slot, and one consumer group: scores = q tile^T, products += scores tile.
LH_KERNEL(256, 1) PipelineKernel(LH_GRID_CONSTANT const Params p) {
  SharedArena arena;
  Shared<BF16> q = arena.Carve<BF16>(kRows * 64, 1024);
  Shared<BF16> tile = arena.Carve<BF16>(kTileElements + 64, 1024);
  Shared<TransactionBarrier> full = arena.Carve<TransactionBarrier>(1, 8);
  Shared<TransactionBarrier> empty = arena.Carve<TransactionBarrier>(1, 8);
  if (p.variant == kMisalignedTile) tile = tile + 64;
  if (ThreadId() == 0) {
    InitTransactions(full, 1);
    if (p.variant != kNoBarrier) InitTransactions(empty, p.variant == kTooManyArrivals ? 3 : 4);
    if (p.variant != kNoBarrierFence) FenceProxyAsync();
  }
  SyncThreads();
  if (ThreadId() == 0) {
    for (int i = 0; i < kTiles; ++i) {
      if (p.variant != kNoEmptyWait) WaitTransactions(empty, i % 2 ^ 1);
      int n_bytes = kTileBytes;
      if (p.variant == kTooManyBytes) n_bytes += 16;
      if (p.variant == kTooFewBytes) n_bytes -= 16;
      ArriveExpectingBytes(full, n_bytes);
      CopyTensorBox(tile, p.map, {0, 0, 0, i}, full);
    }
    if (p.variant == kEndsUnderCopy) CopyTensorBox(tile, p.map, {0, 0, 0, 0}, full);
  }
  if (p.variant == kArrivalTooMany && WarpId() == 1) ArriveNamed(2, 64);
  if (WarpId() < 4) return;

  for (int i = ThreadId() % 128; i < kRows * 64; i += 128) {
    const BF16 x = p.q[i];
    q[p.variant == kNotSwizzled ? i : SwizzledElement(i / 64, i % 64)] = x;
  }
  if (p.variant != kNoProxyFence) FenceProxyAsync();
  SyncNamed(1, 128);
  WgmmaRegisters<float, 64> scores;
  WgmmaRegisters<uint32_t, 32> weights;
  WgmmaRegisters<float, 32> products;
  for (int i = 0; i < 32; ++i) products[i] = 0.0f;
  const int row = WarpId() % 4 * 16 + LaneId() / 4;
  for (int i = 0; i < kTiles; ++i) {
    if (p.variant != kNoFullWait) {
      WaitTransactions(full, p.variant == kWrongParity ? i % 2 ^ 1 : i % 2);
    }
    if (p.variant != kNoWgmmaFence) WgmmaFence(scores);
    for (int d = 0; d < 64; d += 16) {
      int from = d;
      if (p.variant == kWrongDescriptor) from = d + 64;
      if (p.variant == kGroupDiffers && WarpId() == 6) from = 0;
      WgmmaScores(scores, DescribeKMajor(q + from), DescribeKMajor(tile + d), d > 0);
    }
    WgmmaCommit();
    if (p.variant == kStoreUnderProduct && ThreadId() == 128) tile[5] = BF16{0};
    if (p.variant != kNoWgmmaWait) WgmmaWait<0>(scores);
    for (int e = 0; e < 64; ++e) {
      const int column = e / 4 * 8 + LaneId() % 4 * 2 + e % 2;
      p.scores[(i * kRows + row + e % 4 / 2 * 8) * kTileKeys + column] = scores[e];
    }
    for (int e = 0; e < 32; ++e) weights[e] = PackBf16(scores[2 * e], scores[2 * e + 1]);
    WgmmaFence(weights, products);
    for (int key = 0; key < kTileKeys; key += 16) {
      WgmmaValues(products, weights, key / 4, DescribeNMajor(tile + key * 64, 0));
    }
    WgmmaCommit();
    if (p.variant == kEarlyRelease && LaneId() == 0) ArriveTransactions(empty);
    if (p.variant == kWeightsOverwritten) weights[0] = 0;
    if (p.variant == kOutOfScope && i == kTiles - 1) return;
    WgmmaWait<0>(weights, products);
    if (p.variant == kBarrierAsData) Cast<uint32_t>(full)[0] = 1;
    if (p.variant != kEarlyRelease && LaneId() == 0) ArriveTransactions(empty);
  }
  for (int e = 0; e < 32; ++e) {
    const int column = e / 4 * 8 + LaneId() % 4 * 2 + e % 2;
    p.products[(row + e % 4 / 2 * 8) * 64 + column] = products[e];
  }
}

constexpr int kSharedBytes = CarvedBytes<BF16>(kRows * 64) + CarvedBytes<BF16>(kTileElements + 64) +
                             2 * static_cast<int>(sizeof(TransactionBarrier));

// Small integers: products and their sums are exact, scores are exact in bf16.
std::vector<BF16> SmallIntegers(int64_t n, uint64_t seed) {
  testing::Random random(seed);
  std::vector<BF16> values(static_cast<size_t>(n));
  for (BF16& value : values) value = ToBF16(static_cast<float>(random.Below(3) - 1));
  return values;
}

TensorMap MapOfTiles(const DeviceArray<BF16>& tiles, int64_t n_rows) {
  TensorMap map;
  EXPECT_EQ(MakeTensorMap(tiles.data(),
                          {.sizes = {64, n_rows, 1, kTiles},
                           .stride_bytes = {0, 128, kTileBytes, kTileBytes},
                           .box = {64, kTileKeys, 1, 1}},
                          &map),
            cudaSuccess);
  return map;
}

class Pipeline {
 public:
  // Of each tile, n_rows rows are inside the tensor.
  explicit Pipeline(int n_rows = kTileKeys)
      : n_rows_(n_rows),
        q_(SmallIntegers(kRows * 64, 1)),
        tiles_(SmallIntegers(kTiles * kTileElements, 2)) {}

  cudaError_t Run(int variant) {
    const DeviceArray<BF16> q(q_);
    const DeviceArray<BF16> tiles(tiles_);
    const DeviceArray<float> scores(kTiles * kRows * kTileKeys);
    const DeviceArray<float> products(kRows * 64);
    const Params params = {.map = MapOfTiles(tiles, n_rows_),
                           .q = q.data(),
                           .scores = scores.data(),
                           .products = products.data(),
                           .variant = variant};
    const cudaError_t error = Launch({.name = "pipeline", .block = 256, .smem_bytes = kSharedBytes},
                                     PipelineKernel, params);
    if (cudaDeviceSynchronize() == cudaSuccess) {
      scores_ = scores.Download();
      products_ = products.Download();
    }
    return error;
  }

  bool IsRight() const {
    std::vector<float> products(kRows * 64, 0.0f);
    std::vector<float> scores;
    for (int tile = 0; tile < kTiles; ++tile) {
      for (int row = 0; row < kRows; ++row) {
        for (int key = 0; key < kTileKeys; ++key) {
          float score = 0.0f;
          for (int d = 0; d < 64; ++d) score += ToF32(q_[row * 64 + d]) * Tile(tile, key, d);
          scores.push_back(score);
          for (int d = 0; d < 64; ++d) products[row * 64 + d] += score * Tile(tile, key, d);
        }
      }
    }
    return scores == scores_ && products == products_;
  }

 private:
  float Tile(int tile, int key, int d) const {
    return key < n_rows_ ? ToF32(tiles_[tile * kTileElements + key * 64 + d]) : 0.0f;
  }

  int n_rows_;
  std::vector<BF16> q_;
  std::vector<BF16> tiles_;
  std::vector<float> scores_;
  std::vector<float> products_;
};

TEST(Hopper, TensorCopiesAndProductsAreThePlainProduct) {
  for (const int n_rows : {kTileKeys, 100, 1}) {  // rows outside of the tensor are zeros
    SCOPED_TRACE(::testing::Message() << n_rows << " rows");
    ForEachSeed(kSeeds, [&] {
      Pipeline pipeline(n_rows);
      ASSERT_EQ(pipeline.Run(kRight), cudaSuccess);
      EXPECT_TRUE(pipeline.IsRight());
    });
  }
}

// The layout is what the descriptor says, not what the kernel means: no fault, another result.
TEST(Hopper, AWrongSwizzleShowsInTheResult) {
  Pipeline pipeline;
  ASSERT_EQ(pipeline.Run(kNotSwizzled), cudaSuccess);
  EXPECT_FALSE(pipeline.IsRight());
}

TEST(Hopper, FindsBrokenKernels) {
  const std::pair<Variant, Matcher<std::string>> cases[] = {
      {kRight, IsEmpty()},
      {kNoWgmmaWait, HasSubstr("registers of a wgmma under way are accessed")},
      {kNoWgmmaFence, HasSubstr("accessed with no WgmmaFence since")},
      {kNoProxyFence, HasSubstr("by the async proxy after an ordinary store of thread ")},
      {kWrongParity,
       AnyOf(HasSubstr("is under way"), HasSubstr("nobody wrote"),
             HasSubstr("a tensor copy whose barrier"), HasSubstr("wait in WaitTransactions"))},
      {kNoFullWait, AnyOf(HasSubstr("is under way"), HasSubstr("nobody wrote"),
                          HasSubstr("a tensor copy whose barrier"))},
      {kEarlyRelease, AnyOf(HasSubstr("that a wgmma under way reads"), HasSubstr("race"))},
      {kNoEmptyWait, AnyOf(HasSubstr("that a wgmma under way reads"), HasSubstr("race"),
                           HasSubstr("is under way"), HasSubstr("arrivals in one phase"))},
      {kTooManyBytes, HasSubstr("wait in WaitTransactions")},
      {kTooFewBytes, HasSubstr("wait in WaitTransactions")},
      {kTooManyArrivals, AnyOf(HasSubstr("race"), HasSubstr("that a wgmma under way reads"),
                               HasSubstr("wait in WaitTransactions"), HasSubstr("is under way"))},
      {kMisalignedTile, HasSubstr("misaligned: must be a multiple of 1024")},
      {kWrongDescriptor, HasSubstr("does not start in the first row of a 1024-byte pattern")},
      {kNoBarrierFence, HasSubstr("uses the barrier shared memory")},
      {kBarrierAsData, HasSubstr("writes the transaction barrier")},
      {kWeightsOverwritten, HasSubstr("registers of a wgmma under way are accessed")},
      {kGroupDiffers, HasSubstr("the warps of a group differ in what they multiply")},
      {kOutOfScope, HasSubstr("registers of a wgmma under way go out of scope")},
      {kStoreUnderProduct,
       AnyOf(HasSubstr("that a wgmma under way reads"), HasSubstr("race in shared memory"))},
      {kNoBarrier, HasSubstr("no transaction barrier has been made")},
      {kArrivalTooMany, HasSubstr("ends with 32 arrivals at barrier 2 that nobody waits for")},
      {kEndsUnderCopy, AnyOf(HasSubstr("ends while a tensor copy is under way"), HasSubstr("race"),
                             HasSubstr("is under way"), HasSubstr("that a wgmma under way reads"))},
  };
  for (const auto& [variant, matcher] : cases) {
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      simt::SetSeed(seed);
      Pipeline pipeline;
      const std::string fault = simt::FaultOf([&, v = variant] { (void)pipeline.Run(v); });
      EXPECT_THAT(fault, matcher) << "variant " << variant << ", seed " << seed;
    }
  }
}

struct RegisterParams {
  int32_t variant = 0;
};

LH_KERNEL(384, 1) RegistersKernel(RegisterParams p) {
  if (WarpId() < 4) {
    if (p.variant != 1) GiveUpRegisters<24>();
    if (p.variant == 2) TakeRegisters<16>();
  } else if (p.variant == 3) {
    GiveUpRegisters<240>();
  } else {
    TakeRegisters<240>();
  }
}

TEST(Hopper, RegistersAreHandedOverAndNotMadeUp) {
  const std::pair<int, Matcher<std::string>> cases[] = {
      {0, IsEmpty()},
      {1, HasSubstr("the warps take 82944 registers, the block has 64512")},
      {2, HasSubstr("16 registers: must be a multiple of 8 from 24 to 256")},
      {3, HasSubstr("decreases to 240 registers, of 168")},
  };
  for (const auto& [variant, matcher] : cases) {
    const std::string fault = simt::FaultOf([v = variant] {
      EXPECT_EQ(Launch({.name = "registers", .block = 384}, RegistersKernel, {.variant = v}),
                cudaSuccess);
    });
    EXPECT_THAT(fault, matcher) << "variant " << variant;
  }
}

TEST(Hopper, RefusesTensorsThatTheDriverWouldRefuse) {
  const DeviceArray<BF16> data(4096);
  TensorMap map;
  const TensorShape right = {
      .sizes = {64, 8, 2, 4}, .stride_bytes = {0, 128, 1024, 2048}, .box = {64, 8, 1, 1}};
  EXPECT_EQ(MakeTensorMap(data.data(), right, &map), cudaSuccess);
  EXPECT_EQ(MakeTensorMap(data.data() + 1, right, &map), cudaErrorInvalidValue);
  TensorShape wrong = right;
  wrong.stride_bytes[1] = 120;
  EXPECT_EQ(MakeTensorMap(data.data(), wrong, &map), cudaErrorInvalidValue);
  wrong = right;
  wrong.box[0] = 128;
  EXPECT_EQ(MakeTensorMap(data.data(), wrong, &map), cudaErrorInvalidValue);
  wrong = right;
  wrong.sizes[2] = 0;
  EXPECT_EQ(MakeTensorMap(data.data(), wrong, &map), cudaErrorInvalidValue);
  wrong = right;
  wrong.box[1] = 257;
  EXPECT_EQ(MakeTensorMap(data.data(), wrong, &map), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longhaul::cuda
