// Sampling on the device: DrawTokens with the tokens of kernels/draw_token.cc, which is the
// specification: all weights are integers, so the same logits and random number give the same
// token.
//
// Host entry point: enqueues a kernel on `stream` and returns at once. Allocates nothing.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"

namespace longhaul::cuda {

[[nodiscard]] cudaError_t DrawTokens(const DrawTokensArgs& args, cudaStream_t stream);

}  // namespace longhaul::cuda
