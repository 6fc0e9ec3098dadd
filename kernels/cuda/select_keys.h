// The budget of SampleAttention on the device: SelectStreaming and SelectKeys with the results of
// kernels/select_keys.cc, which is the specification. The same mass gives the same lists, bit for
// bit, whatever the order of the threads; nothing is read back.
//
// Host entry points: they enqueue kernels on `stream` and return at once. They allocate nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace longhaul::cuda {

[[nodiscard]] cudaError_t SelectStreaming(const SelectStreamingArgs& args, cudaStream_t stream);

// Scratch of a SelectKeys call over n_heads heads and n_keys keys, with any stripe width.
int64_t SelectKeysScratchBytes(int64_t n_heads, int64_t n_keys);

// scratch: device memory, 16-byte aligned, SelectKeysScratchBytes(rows of mass_sum, its columns).
[[nodiscard]] cudaError_t SelectKeys(const SelectKeysArgs& args, std::byte* scratch,
                                     cudaStream_t stream);

}  // namespace longhaul::cuda
