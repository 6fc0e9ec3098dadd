// Exact prefill attention for Hopper (compute capability 9.0): what AttendDense of
// attention_dense.h computes, by tensor copies and wgmma. Host entry points; asynchronous on the
// stream, allocate nothing, no scratch memory.
//
// head_dim 64 or 128, bf16. It does not split the keys of few rows over multiprocessors: calls that
// do not fill the device, and all other head sizes, are the business of attention_dense.h.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"
#include "kernels/cuda/attention_dense.h"

namespace longhaul::cuda {

// Whether AttendDenseHopper computes this call, and has enough blocks for the device.
bool SuitsHopper(const AttendDenseArgs& args, const DeviceLimits& limits);

// As AttendDense. Any number of rows, but SuitsHopper says when it is the better one.
cudaError_t AttendDenseHopper(const AttendDenseArgs& args, const KeyRange& keys,
                              const DeviceLimits& limits, cudaStream_t stream);

}  // namespace longhaul::cuda
