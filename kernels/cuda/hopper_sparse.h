// Attention under a SparsePlan for Hopper (compute capability 9.0): what AttendSparse of
// attention_sparse.h computes, by wgmma on gathered keys. Host entry points; asynchronous on the
// stream, allocate nothing.
//
// head_dim 64 or 128, a cache in bf16 or fp8, no dual chunk attention. All other calls are the
// business of attention_sparse.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/attention_sparse.h"

namespace longhaul::cuda {

// Whether AttendSparseHopper computes this call.
bool SuitsHopper(const AttendSparseArgs& args);

// As AttendSparse, with its scratch.
[[nodiscard]] cudaError_t AttendSparseHopper(const AttendSparseArgs& args,
                                             const StripeCopies& copies, std::byte* scratch,
                                             cudaStream_t stream);

// Dense prefill over an fp8 cache, which the kernel of hopper_attention.h does not read: a plan
// under which every head streams, with a window that holds all keys the call attends to.

// Whether AttendDenseByPlan computes this call, and has enough blocks for the device.
bool SuitsPlan(const AttendDenseArgs& args, const DeviceLimits& limits);

int64_t AttendDenseByPlanScratchBytes(const AttendDenseArgs& args);

[[nodiscard]] cudaError_t AttendDenseByPlan(const AttendDenseArgs& args, std::byte* scratch,
                                            cudaStream_t stream);

}  // namespace longhaul::cuda
