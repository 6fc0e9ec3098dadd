// From the head_dim of a call, and the type of its keys and values, to the kernel compiled for
// them. Host code.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/base/fp8.h"
#include "kernels/kv_layout.h"

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

// Calls run.template operator()<T, head_dim>() with T the elements of the KV cache.
template <class Run>
cudaError_t WithKv(const KvView& kv, const Run& run) {
  return WithHeadDim(kv.head_dim, [&]<int kHeadDim>() {
    return kv.dtype == DType::kF8E4M3 ? run.template operator()<F8E4M3, kHeadDim>()
                                      : run.template operator()<BF16, kHeadDim>();
  });
}

// The types that WithKv knows.
inline bool IsKvTypeOfKernels(const KvView& kv) {
  return kv.dtype == DType::kBF16 || kv.dtype == DType::kF8E4M3;
}

}  // namespace longhaul::cuda
