// Whether the kernels of hopper_attention.h and hopper_sparse.h may be used on this device: a small
// random problem of each head size, and one in fp8, computed by them and by those of
// attention_dense.h and attention_sparse.h. Called once, when the backend starts; takes
// milliseconds, waits for the device, and gives back the memory that it takes.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "kernels/cuda/attention_dense.h"

namespace longhaul::cuda {

struct AttentionResult {
  std::vector<float> out;  // [n, head_dim]
  std::vector<float> lse;  // [n]
};

// "", or where `actual` is further from `expected` than roundings to bf16 explain.
std::string CompareAttention(const AttentionResult& actual, const AttentionResult& expected);

// "", or why not. A kernel that stops with an error makes the device unusable for this process.
std::string WhyNotDenseHopper(const DeviceLimits& limits, cudaStream_t stream);
std::string WhyNotSparseHopper(const DeviceLimits& limits, cudaStream_t stream);

}  // namespace longhaul::cuda
