// The device primitives: every kernel in kernels/cuda/ is written against this header and against
// nothing else of the device language, so that one source compiles with nvcc (sm_80 and later) and,
// as plain C++, for the emulator in tests/simt, which runs it without a GPU and checks every
// access.
//
// How a kernel is written:
//   struct ScaleParams { Global<const float> in; Global<float> out; int32_t n = 0; };
//   LH_KERNEL(128, 1) ScaleKernel(ScaleParams p) {
//     SharedArena arena;
//     Shared<float> tile = arena.Carve<float>(128);
//     const int i = BlockX() * 128 + ThreadId();
//     tile[ThreadId()] = i < p.n ? p.in[i] : 0.0f;
//     SyncThreads();
//     if (i < p.n) p.out[i] = 2.0f * tile[ThreadId() ^ 1];
//   }
//   Launch({.name = "scale", .grid = {n_blocks}, .block = 128, .smem_bytes =
//   CarvedBytes<float>(128),
//           .stream = stream}, ScaleKernel, params);                    // launch.h
//
// Rules:
// - Global memory only through Global<T>, shared memory only through Shared<T>: index them, or use
//   LoadVec/StoreVec. Both are plain pointers under nvcc. `auto x = tile[i]` does not compile in
//   the emulator: name the type. Elements are scalars or small structs, read and written as a
//   whole.
// - Blocks have one dimension and whole warps. Everything that says "warp" is called by all 32
//   lanes, by all from the same line. A warp's lanes see each other's shared memory only after
//   SyncWarp(): shuffles, ldmatrix and mma do not order memory.
// - No static shared memory, no inline PTX, no threadIdx, no <<<>>> in kernels; no waiting for
//   another block (LastBlockDone instead).
// - Parameters are one trivially copyable struct, or a few; up to 4096 bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/base/dtype.h"

namespace longhaul::cuda {

inline constexpr int kWarpLanes = 32;

// What 4, 8 and 16-byte accesses carry.
struct alignas(8) U32x2 {
  uint32_t v[2];
};
struct alignas(16) U32x4 {
  uint32_t v[4];
};
struct alignas(8) F32x2 {
  float v[2];
};
struct alignas(16) F32x4 {
  float v[4];
};

// Bytes that SharedArena::Carve takes for n elements: the host adds these up for Launch.
template <class T>
constexpr int CarvedBytes(int n, int align_bytes = 16) {
  return (n * static_cast<int>(sizeof(T)) + align_bytes - 1) / align_bytes * align_bytes;
}

}  // namespace longhaul::cuda

#if defined(__CUDACC__)
#include "kernels/cuda/device_nvcc.h"
#else
#include <simt/device.h>  // tests/simt/include: the same names for the emulator
#endif

// What follows is written once, on the primitives of either.
namespace longhaul::cuda {

template <class To, class From>
LH_DEVICE To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>);
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

LH_DEVICE float WarpSum(float x) {  // the same bits in all lanes
  LH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x += ShuffleXor(x, mask);
  return x;
}

LH_DEVICE float WarpMax(float x) {
  LH_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, ShuffleXor(x, mask));
  return x;
}

// bf16 in a register: two per u32, the lower index in the lower half.
LH_DEVICE float Bf16Low(uint32_t pair) { return BitCast<float>(pair << 16); }
LH_DEVICE float Bf16High(uint32_t pair) { return BitCast<float>(pair & 0xffff0000u); }
LH_DEVICE float ToFloat(BF16 x) { return BitCast<float>(static_cast<uint32_t>(x.bits) << 16); }
LH_DEVICE BF16 ToBf16(float x) { return BF16{static_cast<uint16_t>(PackBf16(x, 0.0f) & 0xffffu)}; }

// Eight e4m3 numbers of a row with this scale (kernels/base/fp8.h), lowest byte first, as bf16;
// exact. Their exponent and mantissa bits, moved into a bf16, are the numbers times 2^-120.
LH_DEVICE U32x4 WidenFp8x8(const U32x2& bytes, uint8_t scale) {
  // A scale that nobody wrote may be anything: 0 * infinity must not reach a sum.
  const uint32_t exponent = scale < 255 ? scale : 254;
  const uint32_t factors = exponent << 23 | exponent << 7;
  U32x4 wide;
  LH_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t two = bytes.v[i / 2] >> (i % 2 * 16);
    const uint32_t spread = (two & 0xff00u) << 16 | (two & 0xffu) << 8;
    wide.v[i] = MulBf16x2((spread & 0x80008000u) | (spread >> 4 & 0x07f007f0u), factors);
  }
  return wide;
}

// Unsigned integers in the order of the floats (NaN excepted), for AtomicMax.
LH_DEVICE uint32_t OrderedFromFloat(float x) {
  const uint32_t u = BitCast<uint32_t>(x);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
LH_DEVICE float FloatFromOrdered(uint32_t x) {
  return BitCast<float>((x & 0x80000000u) != 0 ? x & 0x7fffffffu : ~x);
}

// Called by all threads of n_blocks blocks after their last global store: true, in all threads, for
// the block that comes last, which then sees the stores of all others. `counter` starts at zero and
// is zero again afterwards.
LH_DEVICE bool LastBlockDone(Global<uint32_t> counter, uint32_t n_blocks) {
  ThreadFence();
  SyncThreads();
  bool is_last = false;
  if (ThreadId() == 0) {
    is_last = AtomicAdd(counter, 1u) == n_blocks - 1;
    if (is_last) AtomicExch(counter, 0u);
  }
  is_last = SyncThreadsOr(is_last);
  ThreadFence();
  return is_last;
}

}  // namespace longhaul::cuda
