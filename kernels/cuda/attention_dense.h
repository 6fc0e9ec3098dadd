// Exact prefill attention on the GPU: AttendDense of args.h by tensor cores (mma, sm_80 and later).
// Host entry points; asynchronous on the stream, allocate nothing. The caller (the CUDA backend)
// checks the returned error and owns the scratch memory, which one call at a time may use.
//
// bf16 queries and outputs, keys and values in bf16 or fp8 (which becomes bf16 in shared memory);
// f32 scores, softmax and sums; head_dim 64, 80, 96 or 128.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/args.h"

namespace longhaul::cuda {

// What the launchers size their grids by; read off the device once.
struct DeviceLimits {
  int n_multiprocessors = 108;
  int shared_bytes = 164 * 1024;  // of one multiprocessor
  int64_t l2_bytes = 40 << 20;
};

inline constexpr int kReservedSharedBytes = 1024;  // that the system takes of each block's share

// The keys that a call attends to, for results that are merged later: [begin, end) of the sequence,
// on top of causality and window. Rows that see no key of the range get output 0 and lse -infinity.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = std::numeric_limits<int32_t>::max();
};

// Bytes of scratch (16-byte aligned device memory) that any call with up to max_rows rows needs.
int64_t AttendDenseScratchBytes(const DeviceLimits& limits, int64_t head_dim);

// args.q and args.out are bf16; args.kv.pages and args.head_mask device memory.
cudaError_t AttendDense(const AttendDenseArgs& args, const KeyRange& keys,
                        const DeviceLimits& limits, std::byte* scratch, cudaStream_t stream);

}  // namespace longhaul::cuda
