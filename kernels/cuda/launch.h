// The only way to launch a kernel. Host code; asynchronous, in the order of the stream.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#include "kernels/cuda/device.h"

#if !defined(__CUDACC__)
#include <simt/launch.h>  // LaunchEmulated
#endif

namespace longhaul::cuda {

struct LaunchConfig {
  const char* name = "";  // of the op, for messages; a string literal
  dim3 grid = dim3(1);
  int block = 0;       // threads, a multiple of 32
  int smem_bytes = 0;  // dynamic shared memory
  cudaStream_t stream = nullptr;
};

// Shared memory that a kernel gets without asking.
inline constexpr int kDefaultSharedBytes = 48 * 1024;

template <class... Params>
[[nodiscard]] cudaError_t Launch(const LaunchConfig& config, void (*kernel)(Params...),
                                 const std::type_identity_t<Params>&... params) {
  static_assert((std::is_trivially_copyable_v<Params> && ...));
#if defined(__CUDACC__)
  if (config.smem_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, config.smem_bytes);
    if (error != cudaSuccess) return error;
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&params))...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), config.grid,
                          dim3(static_cast<unsigned>(config.block)), pointers,
                          static_cast<size_t>(config.smem_bytes), config.stream);
#else
  return simt::LaunchEmulated(
      {.name = config.name,
       .grid = {static_cast<int>(config.grid.x), static_cast<int>(config.grid.y),
                static_cast<int>(config.grid.z)},
       .n_threads = config.block,
       .smem_bytes = config.smem_bytes},
      config.stream, [=] { kernel(params...); });
#endif
}

}  // namespace longhaul::cuda
