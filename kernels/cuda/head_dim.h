// From the head_dim of a call to the kernel compiled for it. Host code.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace longhaul::cuda {

// Calls run.template operator()<head_dim>() for one of the sizes that the attention kernels are
// compiled for; cudaErrorInvalidValue for others, which the backend refuses when a model is loaded.
template <class Run>
cudaError_t WithHeadDim(int64_t head_dim, const Run& run) {
  switch (head_dim) {
    case 64:
      return run.template operator()<64>();
    case 80:
      return run.template operator()<80>();
    case 96:
      return run.template operator()<96>();
    case 128:
      return run.template operator()<128>();
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace longhaul::cuda
