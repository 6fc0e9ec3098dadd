// Attention under a SparsePlan for Hopper (compute capability 9.0): what AttendSparse of
// attention_sparse.h computes, by wgmma on gathered keys. Host entry points; asynchronous on the
// stream, allocate nothing.
//
// head_dim 64 or 128, a cache in bf16 or fp8, no dual chunk attention. All other calls are the
// business of attention_sparse.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernels/args.h"
#include "kernels/cuda/attention_sparse.h"

namespace longhaul::cuda {

// Whether AttendSparseHopper computes this call.
bool SuitsHopper(const AttendSparseArgs& args);

// As AttendSparse, with its scratch.
[[nodiscard]] cudaError_t AttendSparseHopper(const AttendSparseArgs& args,
                                             const StripeCopies& copies, std::byte* scratch,
                                             cudaStream_t stream);

}  // namespace longhaul::cuda
