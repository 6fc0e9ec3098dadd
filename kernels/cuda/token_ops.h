// The ops of single tokens on the GPU: embedding, RMSNorm, SwiGLU, rotation and KV write, and the
// row moves of a mixture of experts. All are bound by memory: f32 inside, bf16 activations outside.
//
// Host entry points: they enqueue a kernel on `stream`, return its error and allocate nothing.
// Shapes were checked by the backend. The addition of residuals is no op here: the GEMM in front of
// it adds (beta = 1), which saves reading and writing a row of hidden states.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"

namespace longhaul::cuda {

[[nodiscard]] cudaError_t Embed(const EmbedArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t RmsNorm(const RmsNormArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t SwiGlu(const SwiGluArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t RouteExperts(const RouteExpertsArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t GatherRows(const GatherRowsArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t ScatterAddRows(const ScatterAddRowsArgs& args, cudaStream_t stream);
// inv_freq: [P] in device memory, in place of the host's in args.
[[nodiscard]] cudaError_t RopeTable(const RopeTableArgs& args, const double* inv_freq,
                                    cudaStream_t stream);
[[nodiscard]] cudaError_t RopeKvWrite(const RopeKvWriteArgs& args, cudaStream_t stream);

// to[i] = bf16(from[i]), i < n.
[[nodiscard]] cudaError_t CastToBf16(const float* from, BF16* to, int64_t n, cudaStream_t stream);

}  // namespace longhaul::cuda
