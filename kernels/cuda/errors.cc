#include "kernels/cuda/errors.h"

#include <cstdio>
#include <cstdlib>

namespace longhaul::cuda {

void CheckCuda(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  std::fprintf(
      stderr,
      "CUDA error in %s: %s (%s). The device's memory is lost, the process ends. An error "
      "of a kernel can show at a later op; CUDA_LAUNCH_BLOCKING=1 in the environment names "
      "the right one.\n",
      op, cudaGetErrorName(error), cudaGetErrorString(error));
  std::abort();
}

}  // namespace longhaul::cuda
