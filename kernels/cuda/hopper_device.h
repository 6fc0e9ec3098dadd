// The device primitives of Hopper (sm_90a): transaction barriers in shared memory, tensor copies
// (TMA) and products of whole warp groups (wgmma), beside those of device.h. As there, one source
// compiles with nvcc and for the emulator in tests/simt, which checks every rule named here.
//
// Two proxies reach shared memory: ordinary loads and stores (generic), and tensor copies and wgmma
// (async). What a thread has written with the first is seen by the second only after its
// FenceProxyAsync() and a barrier.
//
// A matrix in shared memory is made of pieces of 8 rows of 128 bytes (64 bf16), 1024-byte aligned,
// in which the 16-byte column c of row r lies at c ^ r: the 128-byte swizzle that tensor copies
// write, wgmma reads and SwizzledElement() computes.
//
// The operands of wgmma that lie in registers are WgmmaRegisters. From the product's issue to the
// WgmmaWait that names them they belong to the tensor cores: not even a read. A WgmmaFence that
// names them stands between any access to them and the next product.
#pragma once

#include "kernels/cuda/device.h"

namespace longhaul::cuda {

inline constexpr int kWarpGroupThreads = 128;
inline constexpr int kSwizzleElements = 64;           // bf16 in a row of 128 bytes
inline constexpr int kSwizzlePieceElements = 8 * 64;  // 1024 bytes

// A barrier that waits for arrivals and for bytes of tensor copies. Phases 0, 1, 2, ... in turn.
struct alignas(8) TransactionBarrier {
  uint64_t opaque;
};

// Where a tensor lies in global memory and what a copy takes of it; made by tensor_map.h. A kernel
// parameter: LH_GRID_CONSTANT const, never a copy in local memory.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

}  // namespace longhaul::cuda

#if defined(__CUDACC__)
#include "kernels/cuda/hopper_device_nvcc.h"
#else
#include <simt/hopper_device.h>
#endif

namespace longhaul::cuda {

// Where element `column` of row `row` of a swizzled matrix of 64 columns lies.
LH_DEVICE int SwizzledElement(int row, int column) {
  return row * kSwizzleElements + (column ^ (row % 8 * 8));
}

// What wgmma is told about a swizzled matrix. PTX ISA, "matrix descriptor": address, leading and
// stride byte offsets in units of 16 bytes at bits 0, 16 and 32, the swizzle mode at bit 62.
namespace internal {
template <class T>
LH_DEVICE uint64_t DescribeMatrix(Shared<T> start, int leading_bytes, int stride_bytes) {
  constexpr uint64_t kSwizzle128 = 1;
  return static_cast<uint64_t>((SharedByteAddress(start) & 0x3ffff) / 16) |
         static_cast<uint64_t>(leading_bytes / 16) << 16 |
         static_cast<uint64_t>(stride_bytes / 16) << 32 | kSwizzle128 << 62;
}
}  // namespace internal

// Rows of the matrix are rows (or columns) of the product, its columns are summed over: 16 of them
// per product, from `start` on, which may be column 0, 16, 32 or 48.
template <class T>
LH_DEVICE uint64_t DescribeKMajor(Shared<T> start) {
  return internal::DescribeMatrix(start, /*leading_bytes=*/16, /*stride_bytes=*/1024);
}
// Rows are summed over, 16 per product; columns are columns of the product, those from 64 on
// `leading_bytes` further.
template <class T>
LH_DEVICE uint64_t DescribeNMajor(Shared<T> start, int leading_bytes) {
  return internal::DescribeMatrix(start, leading_bytes, /*stride_bytes=*/1024);
}

}  // namespace longhaul::cuda
