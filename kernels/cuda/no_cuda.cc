// The CUDA backend of a build without CUDA.
#include "kernels/backend.h"

namespace longhaul {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(bool /*may_use_hopper*/) {
  return absl::UnavailableError(
      "this build has no CUDA backend. Use --backend cpu, or install the CUDA Toolkit (nvcc) and "
      "build again with `cmake --preset cuda`");
}

}  // namespace longhaul
