// What launch.h of kernels/cuda calls where there is no nvcc: puts a kernel into a stream of the
// stand-in runtime. The kernel runs when somebody waits for the stream.
#pragma once

#include <cuda_runtime.h>

#include <functional>

namespace longhaul::simt {

struct LaunchShape {
  const char* name = "";
  int grid[3] = {1, 1, 1};
  int n_threads = 0;
  int smem_bytes = 0;
};

// `body` is the kernel with its parameters, called once per simulated thread.
cudaError_t LaunchEmulated(const LaunchShape& shape, cudaStream_t stream,
                           std::function<void()> body);

}  // namespace longhaul::simt
