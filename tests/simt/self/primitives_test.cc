// The emulated primitives against their definitions: fragment layouts, shuffles, conversions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/simt/emulator.h"
#include "tests/simt/kernel_test.h"
#include "tests/testing/compare.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using simt::ForEachSeed;
using testing::Random;

constexpr int kSeeds = 4;

// Small integers: products and their sums are exact.
std::vector<BF16> SmallIntegers(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<BF16> values(static_cast<size_t>(n));
  for (BF16& value : values) value = ToBF16(static_cast<float>(random.Below(17) - 8));
  return values;
}

// c[i, j] = sum over k of a[i, k] b[k, j]
std::vector<float> PlainProduct(const std::vector<BF16>& a, const std::vector<BF16>& b, int m,
                                int n_k, int n) {
  std::vector<float> c(static_cast<size_t>(m * n));
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int k = 0; k < n_k; ++k) {
        sum +=
            ToF32(a[static_cast<size_t>(i * n_k + k)]) * ToF32(b[static_cast<size_t>(k * n + j)]);
      }
      c[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return c;
}

struct ProductParams {
  Global<const BF16> a;  // [16, 64]
  Global<const BF16> b;  // [64, 8]
  Global<float> c;       // [16, 8]
};

// Fragments straight from the PTX tables, no ldmatrix.
LH_KERNEL(32, 1) MmaKernel(ProductParams p) {
  const int g = LaneId() / 4;
  const int t = LaneId() % 4;
  float d[4] = {};
  for (int k = 0; k < 64; k += 16) {
    uint32_t a[4];
    for (int i = 0; i < 4; ++i) {
      const int row = g + (i % 2) * 8;
      const int col = k + 2 * t + (i / 2) * 8;
      a[i] = PackBf16(ToFloat(p.a[row * 64 + col]), ToFloat(p.a[row * 64 + col + 1]));
    }
    uint32_t b[2];
    for (int i = 0; i < 2; ++i) {
      const int row = k + 2 * t + i * 8;
      b[i] = PackBf16(ToFloat(p.b[row * 8 + g]), ToFloat(p.b[(row + 1) * 8 + g]));
    }
    MmaBf16(d, a, b[0], b[1]);
  }
  p.c[g * 8 + 2 * t] = d[0];
  p.c[g * 8 + 2 * t + 1] = d[1];
  p.c[(g + 8) * 8 + 2 * t] = d[2];
  p.c[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// The way of the attention kernels: asynchronous copies, ldmatrix of a, transposed ldmatrix of b.
LH_KERNEL(32, 1) TileProductKernel(ProductParams p) {
  SharedArena arena;
  Shared<BF16> a_tile = arena.Carve<BF16>(16 * 64);
  Shared<BF16> b_tile = arena.Carve<BF16>(64 * 8);
  for (int i = LaneId(); i < 128; i += 32) CopyAsync16(a_tile + 8 * i, p.a + 8 * i);
  CopyAsyncCommit();
  for (int i = LaneId(); i < 64; i += 32) CopyAsync16(b_tile + 8 * i, p.b + 8 * i);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  SyncWarp();
  float d[4] = {};
  for (int k = 0; k < 64; k += 16) {
    uint32_t a[4];
    uint32_t b[2];
    LdMatrixX4(a, a_tile + LaneId() % 16 * 64 + k + LaneId() / 16 * 8);
    LdMatrixX2Trans(b, b_tile + (k + LaneId() % 16) * 8);
    MmaBf16(d, a, b[0], b[1]);
  }
  for (int i = 0; i < 4; ++i) {
    p.c[(LaneId() / 4 + i / 2 * 8) * 8 + LaneId() % 4 * 2 + i % 2] = d[i];
  }
}

TEST(TensorCores, ProductsAreThePlainProduct) {
  const std::vector<BF16> a = SmallIntegers(16 * 64, 1);
  const std::vector<BF16> b = SmallIntegers(64 * 8, 2);
  const std::vector<float> expected = PlainProduct(a, b, 16, 64, 8);
  ForEachSeed(kSeeds, [&] {
    const DeviceArray<BF16> a_device(a);
    const DeviceArray<BF16> b_device(b);
    for (auto* kernel : {&MmaKernel, &TileProductKernel}) {
      const DeviceArray<float> c(16 * 8);
      const ProductParams params{.a = a_device.data(), .b = b_device.data(), .c = c.data()};
      ASSERT_EQ(Launch({.name = "product", .block = 32, .smem_bytes = 3072}, kernel, params),
                cudaSuccess);
      EXPECT_EQ(c.Download(), expected);
    }
  });
}

struct LdMatrixParams {
  Global<uint32_t> out;  // [4, 32 lanes, 4 registers]: x4, x4 trans, x2, x2 trans
  int32_t row_stride = 0;
};

// Element (row, col) of matrix m holds m * 64 + row * 8 + col.
LH_KERNEL(32, 1) LdMatrixKernel(LdMatrixParams p) {
  SharedArena arena;
  Shared<BF16> tile = arena.Carve<BF16>(32 * p.row_stride);
  for (int i = 0; i < 8; ++i) {
    tile[LaneId() * p.row_stride + i] = BF16{static_cast<uint16_t>(LaneId() * 8 + i)};
  }
  SyncWarp();
  const Shared<BF16> row = tile + LaneId() * p.row_stride;
  uint32_t r[4] = {};
  uint32_t r2[2] = {};
  LdMatrixX4(r, row);
  for (int i = 0; i < 4; ++i) p.out[LaneId() * 4 + i] = r[i];
  LdMatrixX4Trans(r, row);
  for (int i = 0; i < 4; ++i) p.out[128 + LaneId() * 4 + i] = r[i];
  LdMatrixX2(r2, row);
  for (int i = 0; i < 2; ++i) p.out[256 + LaneId() * 4 + i] = r2[i];
  LdMatrixX2Trans(r2, row);
  for (int i = 0; i < 2; ++i) p.out[384 + LaneId() * 4 + i] = r2[i];
}

TEST(TensorCores, LdMatrixRegisters) {
  ForEachSeed(kSeeds, [] {
    const DeviceArray<uint32_t> out(512, 0);
    ASSERT_EQ(Launch({.name = "ldmatrix", .block = 32, .smem_bytes = 512}, LdMatrixKernel,
                     {.out = out.data(), .row_stride = 8}),
              cudaSuccess);
    const std::vector<uint32_t> r = out.Download();
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t g = lane / 4;
      const uint32_t c = lane % 4 * 2;
      for (uint32_t m = 0; m < 4; ++m) {
        const uint32_t plain = (m * 64 + g * 8 + c) | (m * 64 + g * 8 + c + 1) << 16;
        const uint32_t trans = (m * 64 + c * 8 + g) | (m * 64 + (c + 1) * 8 + g) << 16;
        EXPECT_EQ(r[lane * 4 + m], plain);
        EXPECT_EQ(r[128 + lane * 4 + m], trans);
        EXPECT_EQ(r[256 + lane * 4 + m], m < 2 ? plain : 0);
        EXPECT_EQ(r[384 + lane * 4 + m], m < 2 ? trans : 0);
      }
    }
  });
}

TEST(TensorCores, BankConflictsOfLdMatrixAreCounted) {
  const auto ways = [](int row_stride) {
    const DeviceArray<uint32_t> out(512, 0);
    simt::TakeStatistics();
    EXPECT_EQ(Launch({.name = "ldmatrix", .block = 32, .smem_bytes = 32 * 2 * row_stride},
                     LdMatrixKernel, {.out = out.data(), .row_stride = row_stride}),
              cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const simt::Statistics statistics = simt::TakeStatistics();
    EXPECT_EQ(statistics.n_ldmatrix_phases, 12);
    return statistics.max_ldmatrix_ways;
  };
  EXPECT_EQ(ways(8), 1);   // 8 rows in a row
  EXPECT_EQ(ways(64), 8);  // all rows in the same banks
  EXPECT_EQ(ways(72), 1);  // padded
  EXPECT_EQ(ways(16), 2);
}

struct WarpParams {
  Global<int32_t> out;  // [8, 32]
};

LH_KERNEL(32, 1) WarpKernel(WarpParams p) {
  const int lane = LaneId();
  p.out[lane] = Shuffle(lane * 3, (lane + 5) % 32);
  p.out[32 + lane] = ShuffleXor(lane, 9);
  p.out[64 + lane] = ShuffleDown(lane, 4);
  p.out[96 + lane] = ShuffleUp(lane, 4);
  p.out[128 + lane] = static_cast<int32_t>(Ballot(lane % 3 == 0));
  p.out[160 + lane] = (WarpAny(lane == 7) ? 1 : 0) + (WarpAll(lane < 31) ? 2 : 0);
  p.out[192 + lane] = static_cast<int32_t>(WarpSum(static_cast<float>(lane)));
  p.out[224 + lane] = (SyncThreadsOr(lane == 11) ? 1 : 0) + (SyncThreadsOr(false) ? 2 : 0);
}

TEST(Warp, ShufflesAndVotes) {
  ForEachSeed(kSeeds, [] {
    const DeviceArray<int32_t> out(256);
    ASSERT_EQ(Launch({.name = "warp", .block = 32}, WarpKernel, {.out = out.data()}), cudaSuccess);
    const std::vector<int32_t> r = out.Download();
    for (int lane = 0; lane < 32; ++lane) {
      const size_t i = static_cast<size_t>(lane);
      EXPECT_EQ(r[i], (lane + 5) % 32 * 3);
      EXPECT_EQ(r[32 + i], lane ^ 9);
      EXPECT_EQ(r[64 + i], lane < 28 ? lane + 4 : lane);
      EXPECT_EQ(r[96 + i], lane >= 4 ? lane - 4 : lane);
      EXPECT_EQ(static_cast<uint32_t>(r[128 + i]), 0x49249249u);
      EXPECT_EQ(r[160 + i], 1);
      EXPECT_EQ(r[192 + i], 31 * 16);
      EXPECT_EQ(r[224 + i], 1);
    }
  });
}

// Reads of global memory that the copy lands late or early, zero fill where it is not valid.
struct CopyParams {
  Global<const float> in;
  Global<float> out;
  int32_t n_valid = 0;
};
LH_KERNEL(32, 1) ZeroFillKernel(CopyParams p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(128);
  CopyAsync16(tile + 4 * LaneId(), p.in + 4 * LaneId(), LaneId() < p.n_valid);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  StoreVec(p.out + 4 * LaneId(), LoadVec<F32x4>(tile + 4 * LaneId()));
}

TEST(AsyncCopies, ZeroWhereNotValid) {
  for (const int n_valid : {0, 1, 17, 32}) {
    ForEachSeed(kSeeds, [n_valid] {
      // Nothing behind the valid part may be read.
      const DeviceArray<float> in(std::vector<float>(static_cast<size_t>(4 * n_valid), 3.0f));
      const DeviceArray<float> out(128);
      ASSERT_EQ(Launch({.name = "zero_fill", .block = 32, .smem_bytes = 512}, ZeroFillKernel,
                       {.in = in.data(), .out = out.data(), .n_valid = n_valid}),
                cudaSuccess);
      const std::vector<float> values = out.Download();
      for (int i = 0; i < 128; ++i) {
        EXPECT_EQ(values[static_cast<size_t>(i)], i < 4 * n_valid ? 3.0f : 0.0f);
      }
    });
  }
}

TEST(Conversions, Fp8) {
  for (const int scale : {130, 200, 247, 254}) {
    for (uint32_t bits = 0; bits < 256; ++bits) {
      const U32x2 bytes{{bits | 0x38u << 8 | bits << 24, 0x01u << 16 | bits << 24}};
      const U32x4 wide = WidenFp8x8(bytes, static_cast<uint8_t>(scale));
      const float factor = RowFactorF8(static_cast<uint8_t>(scale));
      const float x = ToF32(F8E4M3{static_cast<uint8_t>(bits)}) * factor;
      const float expected[] = {x, factor, 0, x, 0, 0, 0x1p-9f * factor, x};
      for (size_t i = 0; i < 8; ++i) {
        const uint32_t pair = wide.v[i / 2];
        EXPECT_EQ(i % 2 == 0 ? Bf16Low(pair) : Bf16High(pair), expected[i]) << bits << ' ' << i;
      }
    }
  }
  const U32x4 unwritten = WidenFp8x8(U32x2{{0, 0x80u}}, 255);
  EXPECT_EQ(Bf16Low(unwritten.v[0]), 0.0f);
  EXPECT_EQ(Bf16Low(unwritten.v[2]), 0.0f);
}

TEST(Conversions, OrderedFloats) {
  const float values[] = {
      -std::numeric_limits<float>::infinity(), -3.5f, -1e-30f, 0.0f, 1e-40f, 2.0f, 1e30f,
      std::numeric_limits<float>::infinity()};
  uint32_t previous = 0;
  for (const float value : values) {
    EXPECT_LT(previous, OrderedFromFloat(value));
    EXPECT_EQ(FloatFromOrdered(OrderedFromFloat(value)), value);
    previous = OrderedFromFloat(value);
  }
}

}  // namespace
}  // namespace longhaul::cuda
