// Kernels broken on purpose: the emulator must find each kind of fault, under every order of
// threads where the fault does not depend on it, and must let the right kernel pass under all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/simt/emulator.h"
#include "tests/simt/kernel_test.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Matcher;

constexpr int kSeeds = 8;
constexpr int kThreads = 64;

struct Params {
  Global<const float> in = {};
  Global<float> out = {};
  Global<uint32_t> counter = {};
  int32_t variant = 0;  // 0: right
};

using Kernel = void (*)(Params);

// Which variant a kernel runs, and what the emulator must say about it.
void ExpectFault(Kernel kernel, int variant, const Matcher<std::string>& matcher,
                 int smem_bytes = 4096) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    simt::SetSeed(seed);
    DeviceArray<float> in(std::vector<float>(1024, 1.0f));
    DeviceArray<float> out(1024);
    DeviceArray<uint32_t> counter(std::vector<uint32_t>(1, 0));
    const Params params{
        .in = in.data(), .out = out.data(), .counter = counter.data(), .variant = variant};
    const std::string fault = simt::FaultOf([&] {
      EXPECT_EQ(
          Launch({.name = "broken", .block = kThreads, .smem_bytes = smem_bytes}, kernel, params),
          cudaSuccess);
    });
    EXPECT_THAT(fault, matcher) << "seed " << seed << ", variant " << variant;
  }
}

LH_KERNEL(64, 1) NeighbourKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(kThreads);
  const int i = ThreadId();
  tile[i] = p.in[i];
  if (p.variant != 1) SyncThreads();
  float x = tile[(i + 33) % kThreads];
  if (p.variant != 2) SyncThreads();
  tile[i] = 2.0f * x;
  p.out[i] = tile[i];
}

TEST(Races, BetweenWarps) {
  ExpectFault(NeighbourKernel, 0, IsEmpty());
  // A read too early: of memory that nobody wrote, or that was written with no barrier since.
  ExpectFault(NeighbourKernel, 1,
              AllOf(HasSubstr("kernel broken, block ("), HasSubstr("thread "),
                    ::testing::AnyOf(HasSubstr("nobody wrote"), HasSubstr("race"))));
  ExpectFault(NeighbourKernel, 2, HasSubstr("race in shared memory: "));
}

LH_KERNEL(64, 1) WarpExchangeKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(kThreads);
  const int i = ThreadId();
  tile[i] = p.in[i];
  float x = 0;
  if (p.variant == 0) SyncWarp();
  if (p.variant == 1) x = ShuffleXor(x, 1);  // brings the lanes together, orders no memory
  x += tile[i ^ 1];
  p.out[i] = x;
}

TEST(Races, InsideAWarp) {
  ExpectFault(WarpExchangeKernel, 0, IsEmpty());
  ExpectFault(WarpExchangeKernel, 1, HasSubstr("race in shared memory: reads"));
}

LH_KERNEL(64, 1) HistogramKernel(Params p) {
  SharedArena arena;
  Shared<uint32_t> bins = arena.Carve<uint32_t>(4);
  if (ThreadId() < 4) bins[ThreadId()] = 0;
  if (p.variant != 1) SyncThreads();
  if (p.variant == 2) {
    bins[ThreadId() % 4] += 1;
  } else {
    AtomicAdd(bins + ThreadId() % 4, 1);
  }
  if (p.variant != 3) SyncThreads();
  if (ThreadId() < 4) p.out[ThreadId()] = static_cast<float>(bins[ThreadId()]);
}

TEST(Races, AtomicsAgainstPlainAccesses) {
  ExpectFault(HistogramKernel, 0, IsEmpty());
  ExpectFault(HistogramKernel, 1, ::testing::AnyOf(HasSubstr("race"), HasSubstr("nobody wrote")));
  ExpectFault(HistogramKernel, 2, HasSubstr("race in shared memory"));
  ExpectFault(HistogramKernel, 3, HasSubstr("race in shared memory"));
}

LH_KERNEL(64, 1) BoundsKernel(Params p) {
  SharedArena arena;
  Shared<float> first = arena.Carve<float>(kThreads);
  Shared<float> second = arena.Carve<float>(kThreads);
  const int i = ThreadId();
  first[i] = 1.0f;
  second[i] = 2.0f;
  SyncThreads();
  switch (p.variant) {
    case 1:
      p.out[i] = first[i + 1];  // inside the block's memory, outside of the array
      break;
    case 2:
      second[i + 1] = 0.0f;
      break;
    case 3:
      p.out[i + 1024 - kThreads + 1] = 1.0f;
      break;
    case 4:
      p.out[i] = p.in[i - 1];
      break;
    case 5:
      p.out[i] = LoadVec<F32x4>(p.in + 4 * (i + 1024 / 4 - kThreads + 1)).v[0];
      break;
    case 6:
      p.out[i] = Global<const float>(nullptr)[i];
      break;
    case 7:
      second[i - 1] = 0.0f;
      break;
    default:
      p.out[i + 1024 - kThreads] = p.in[i] + first[i];
  }
}

TEST(Bounds, SharedAndGlobal) {
  ExpectFault(BoundsKernel, 0, IsEmpty());
  ExpectFault(BoundsKernel, 1,
              HasSubstr("reads shared memory out of bounds: bytes [256, 260) of an array of 256"));
  ExpectFault(BoundsKernel, 2, HasSubstr("writes shared memory out of bounds"));
  ExpectFault(
      BoundsKernel, 3,
      HasSubstr("writes global memory out of bounds: bytes [4096, 4100) of an allocation of "
                "4096 bytes"));
  ExpectFault(BoundsKernel, 4, HasSubstr("4 bytes before the start of an allocation of 4096"));
  ExpectFault(BoundsKernel, 5, HasSubstr("reads global memory out of bounds"));
  ExpectFault(BoundsKernel, 6, AllOf(HasSubstr("out of bounds"), HasSubstr("null pointer")));
  ExpectFault(BoundsKernel, 7, HasSubstr("bytes [-4, 0)"));
}

TEST(Bounds, MoreSharedMemoryCarvedThanLaunchedWith) {
  ExpectFault(BoundsKernel, 0, HasSubstr("carves 512 bytes of shared memory, the launch gave 511"),
              511);
}

TEST(Bounds, FreedMemory) {
  float* gone = nullptr;
  {
    DeviceArray<float> in(std::vector<float>(1024, 1.0f));
    gone = in.data();
  }
  DeviceArray<float> other(1024);
  const std::string fault = simt::FaultOf([&] {
    EXPECT_EQ(Launch({.name = "freed", .block = kThreads, .smem_bytes = 4096}, NeighbourKernel,
                     {.in = gone, .out = other.data()}),
              cudaSuccess);
  });
  EXPECT_THAT(fault, HasSubstr("reads global memory out of bounds"));
}

LH_KERNEL(64, 1) AlignmentKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(512);
  const int i = ThreadId();
  const int shift = p.variant == 0 ? 0 : 1;
  if (p.variant <= 1) {
    StoreVec(tile + 4 * i + shift, F32x4{{1, 2, 3, 4}});
  } else if (p.variant == 2) {
    CopyAsync16(tile + 4 * i, p.in + 4 * i + shift);
  } else if (p.variant == 3) {
    CopyAsync16(tile + 4 * i + shift, p.in + 4 * i);
  } else if (p.variant == 4) {
    StoreVec(p.out + 4 * i + shift, F32x4{{1, 2, 3, 4}});
  } else {
    for (int j = i; j < 512; j += kThreads) tile[j] = 0.0f;
    SyncThreads();
    uint32_t r[4];
    LdMatrixX4(r, tile + 4 * LaneId() + shift);
  }
}

TEST(Alignment, SixteenByteAccesses) {
  ExpectFault(AlignmentKernel, 0, IsEmpty());
  ExpectFault(
      AlignmentKernel, 1,
      AllOf(HasSubstr("writes 16 bytes of shared memory at offset"), HasSubstr("misaligned")));
  ExpectFault(AlignmentKernel, 2, HasSubstr("of global memory"));
  ExpectFault(AlignmentKernel, 3, HasSubstr("misaligned: must be a multiple of 16"));
  ExpectFault(AlignmentKernel, 4, HasSubstr("misaligned: must be a multiple of 16"));
  ExpectFault(AlignmentKernel, 5, AllOf(HasSubstr("ldmatrix"), HasSubstr("misaligned")));
}

LH_KERNEL(64, 1) DivergenceKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(4 * kThreads);
  const int i = ThreadId();
  for (int j = i; j < 4 * kThreads; j += kThreads) tile[j] = 0.0f;
  SyncThreads();
  switch (p.variant) {
    case 1:
      if (i >= 40) return;
      SyncThreads();
      break;
    case 2:
      if (i < 32) {
        SyncThreads();
      } else {
        SyncThreads();
      }
      break;
    case 3:
      if (LaneId() < 31) p.out[i] = ShuffleXor(1.0f, 1);
      break;
    case 4:
      if (LaneId() == 5) {
        p.out[i] = ShuffleDown(1.0f, 1);
      } else {
        p.out[i] = ShuffleXor(1.0f, 1);
      }
      break;
    case 5: {
      float d[4] = {};
      const uint32_t a[4] = {};
      if (LaneId() != 0) MmaBf16(d, a, 0, 0);
      break;
    }
    case 6: {
      uint32_t r[4];
      if (LaneId() < 16) LdMatrixX4(r, tile + 4 * LaneId());
      break;
    }
    case 7:
      SyncNamed(1, i < 32 ? 32 : 64);
      break;
    default:
      SyncNamed(1 + WarpId(), 32);
      p.out[i] = Shuffle(1.0f, 0);
  }
}

TEST(Divergence, BarriersAndWarpOperations) {
  ExpectFault(DivergenceKernel, 0, IsEmpty());
  ExpectFault(DivergenceKernel, 1,
              AllOf(HasSubstr("threads [0, 40) wait in SyncThreads at faults_test.cc:"),
                    HasSubstr("threads [40, 64) have ended")));
  ExpectFault(DivergenceKernel, 2, HasSubstr("divergent barriers: this thread is at faults_test"));
  ExpectFault(DivergenceKernel, 3, HasSubstr("wait in Shuffle at"));
  ExpectFault(DivergenceKernel, 4, HasSubstr("lanes of one warp diverge"));
  ExpectFault(DivergenceKernel, 5, HasSubstr("wait in MmaBf16 at"));
  ExpectFault(DivergenceKernel, 6, HasSubstr("wait in LdMatrix at"));
  ExpectFault(
      DivergenceKernel, 7,
      ::testing::AnyOf(HasSubstr("others wait at barrier 1 for"), HasSubstr("wait for ever")));
}

LH_KERNEL(64, 1) AsyncKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(2 * 4 * kThreads);
  const int i = ThreadId();
  for (int stage = 0; stage < 2; ++stage) {
    CopyAsync16(tile + (stage * kThreads + i) * 4, p.in + (stage * kThreads + i) * 4);
    CopyAsyncCommit();
  }
  if (p.variant == 1) {
    CopyAsyncWait<1>();
  } else if (p.variant != 2) {
    CopyAsyncWait<0>();
  }
  if (p.variant != 3) SyncThreads();
  p.out[i] = tile[(kThreads + (i + 40) % kThreads) * 4];
  if (p.variant != 4) SyncThreads();
  CopyAsync16(tile + (kThreads + i) * 4, p.in + 4 * i, i < 7);
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  p.out[i] = tile[(kThreads + i) * 4];
}

TEST(AsyncCopies, WaitAndBarrier) {
  ExpectFault(AsyncKernel, 0, IsEmpty());
  ExpectFault(AsyncKernel, 1, HasSubstr("is under way (not waited for)"));
  ExpectFault(AsyncKernel, 2, HasSubstr("is under way (not waited for)"));
  ExpectFault(
      AsyncKernel, 3,
      ::testing::AnyOf(HasSubstr("race"), HasSubstr("under way"), HasSubstr("nobody wrote")));
  ExpectFault(AsyncKernel, 4, HasSubstr("race in shared memory"));
}

LH_KERNEL(64, 1) ProducerKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(32);
  if (WarpId() == 0) {
    for (int round = 0; round < 3; ++round) {
      if (p.variant != 1 || round == 0) SyncNamed(2, 64);  // the tile is free
      tile[LaneId()] = static_cast<float>(round);
      if (p.variant == 2) SyncWarp();
      ArriveNamed(1, 64);  // the tile is full
      if (p.variant == 2) tile[LaneId()] = 9.0f;
      if (p.variant == 1 && round < 2) continue;
    }
  } else {
    for (int round = 0; round < 3; ++round) {
      if (p.variant != 1 || round == 0) ArriveNamed(2, 64);
      SyncNamed(1, 64);
      p.out[LaneId()] = tile[31 - LaneId()];
    }
  }
}

TEST(NamedBarriers, ProducerAndConsumer) {
  ExpectFault(ProducerKernel, 0, IsEmpty());
  ExpectFault(ProducerKernel, 1, ::testing::Not(IsEmpty()));
  ExpectFault(ProducerKernel, 2, HasSubstr("race in shared memory"));
}

LH_KERNEL(64, 1) GlobalScratchKernel(Params p) {
  const int i = ThreadId();
  const Global<float> scratch = p.out + (p.variant == 3 ? 0 : BlockX() * kThreads);
  scratch[i] = p.in[i];
  if (p.variant != 1) SyncThreads();
  const float x = scratch[(i + 40) % kThreads];
  SyncThreads();
  if (p.variant == 2 && i > 0) p.out[512] = x;  // by many threads
  if (p.variant == 4 && BlockX() == 1) p.out[512] = p.out[0];
}

TEST(Races, InGlobalMemory) {
  ExpectFault(GlobalScratchKernel, 0, IsEmpty());
  ExpectFault(GlobalScratchKernel, 2, HasSubstr("race in global memory: writes what thread"));
  // The next two show where the accesses come in the wrong order.
  int n_found[2] = {0, 0};
  for (const int variant : {1, 3, 4}) {
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      simt::SetSeed(seed);
      const DeviceArray<float> in(std::vector<float>(1024, 1.0f));
      const DeviceArray<float> out(1024, 0);
      const std::string fault = simt::FaultOf([&] {
        EXPECT_EQ(
            Launch({.name = "scratch", .grid = dim3(2), .block = kThreads}, GlobalScratchKernel,
                   {.in = in.data(), .out = out.data(), .variant = variant}),
            cudaSuccess);
      });
      n_found[variant == 1 ? 0 : 1] += fault.find("race in global memory") != std::string::npos;
    }
  }
  EXPECT_GE(n_found[0], kSeeds / 2);
  EXPECT_GE(n_found[1], kSeeds);
}

LH_KERNEL(64, 1) ReadOnlyKernel(Params p) {
  const int i = ThreadId();
  p.out[i] = 1.0f;
  SyncThreads();
  p.out[512 + i] =
      LoadReadOnlyVec<F32x2>(p.variant == 0 ? p.in + 2 * i : Global<const float>(p.out + i / 2 * 2))
          .v[0];
}

TEST(Races, ReadOnlyPath) {
  ExpectFault(ReadOnlyKernel, 0, IsEmpty());
  ExpectFault(ReadOnlyKernel, 1, HasSubstr("reads through the read-only path what thread"));
}

LH_KERNEL(64, 1) UnwrittenKernel(Params p) {
  SharedArena arena;
  Shared<float> tile = arena.Carve<float>(2 * kThreads);
  tile[ThreadId()] = 1.0f;
  SyncThreads();
  p.out[ThreadId()] = tile[2 * ThreadId()];
}

TEST(Unwritten, SharedMemory) {
  ExpectFault(UnwrittenKernel, 0, HasSubstr("reads shared memory that nobody wrote"));
}

LH_KERNEL(64, 1) LastBlockKernel(Params p) {
  if (ThreadId() == 0) p.out[BlockX()] = 1.0f;
  if (!LastBlockDone(p.counter, static_cast<uint32_t>(GridX()))) return;
  float sum = 0;
  for (int i = ThreadId(); i < GridX(); i += kThreads) sum += p.out[i];
  sum = WarpSum(sum);
  if (LaneId() == 0) p.out[512 + WarpId()] = sum;
}

TEST(LastBlock, SeesAllOthers) {
  simt::ForEachSeed(kSeeds, [] {
    DeviceArray<float> out(1024, 0);
    DeviceArray<uint32_t> counter(1, 0);
    for (int round = 0; round < 2; ++round) {
      ASSERT_EQ(Launch({.name = "last_block", .grid = dim3(37), .block = kThreads}, LastBlockKernel,
                       {.out = out.data(), .counter = counter.data()}),
                cudaSuccess);
    }
    const std::vector<float> sums = out.Download();
    EXPECT_EQ(sums[512] + sums[513], 37.0f);
    EXPECT_EQ(counter.Download()[0], 0u);
  });
}

TEST(Launches, RefusedShapes) {
  const auto launch = [](int block, int smem_bytes, dim3 grid) {
    return Launch({.name = "shape", .grid = grid, .block = block, .smem_bytes = smem_bytes},
                  BoundsKernel, {});
  };
  EXPECT_EQ(launch(33, 0, dim3(1)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(2048, 0, dim3(1)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(64, 0, dim3(0)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(64, 0, dim3(1, 70000)), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(64, 300 * 1024, dim3(1)), cudaErrorInvalidValue);
  simt::Reset();
}

}  // namespace
}  // namespace longhaul::cuda
