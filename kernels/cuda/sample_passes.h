// The two passes over the sampled rows on the device: SampleLse and SampleMass of args.h, by tensor
// cores. bf16 queries, keys in bf16 or fp8, f32 scores and sums; head_dim 64, 80, 96 or 128. The same call
// gives the same bits, whatever the order of the blocks: no floating-point atomics.
//
// Host entry points: they enqueue kernels on `stream` and return at once. They allocate nothing;
// `scratch` is device memory, 16-byte aligned, which one call at a time may use.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"

namespace longhaul::cuda {

int64_t SampleLseScratchBytes(int64_t n_heads, int64_t n_rows, int64_t n_keys);
[[nodiscard]] cudaError_t SampleLse(const SampleLseArgs& args, std::byte* scratch,
                                    cudaStream_t stream);

// For a call over n_heads query heads (the rows of mass_sum) of which `group` share a kv head.
// Nothing without bands.
int64_t SampleMassScratchBytes(int64_t n_heads, int64_t group, int64_t n_voting, int64_t n_keys,
                               bool bands);
[[nodiscard]] cudaError_t SampleMass(const SampleMassArgs& args, std::byte* scratch,
                                     cudaStream_t stream);

}  // namespace longhaul::cuda
