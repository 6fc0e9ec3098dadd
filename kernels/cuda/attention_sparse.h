// Attention under a SparsePlan on the GPU: streaming, sparse and dense heads in one launch, by
// tensor cores (mma, sm_80 and later). bf16 queries and outputs, keys and values in bf16 or fp8;
// f32 scores, softmax and sums; head_dim 64, 80, 96 or 128.
//
// Host entry point: enqueues kernels on `stream` and returns at once. It allocates nothing;
// `scratch` is device memory, 16-byte aligned, which one call at a time may use. The plan stays on
// the device: nothing of it is read back.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/attention_dense.h"

namespace longhaul::cuda {

// How the keys of stripes come into shared memory. Without room for copies they are gathered from
// their pages, once per 128 rows; with it, the stripes of a head are first copied to contiguous
// memory, once per call. Heads take their room in order; one that does not fit is gathered.
struct StripeCopies {
  int64_t n_keys = 0;  // room for so many keys of all heads together; 0 with a cache in fp8
};

int64_t AttendSparseScratchBytes(int64_t n_heads, int64_t head_dim, const StripeCopies& copies);

[[nodiscard]] cudaError_t AttendSparse(const AttendSparseArgs& args, const StripeCopies& copies,
                                       const DeviceLimits& limits, std::byte* scratch,
                                       cudaStream_t stream);

}  // namespace longhaul::cuda
