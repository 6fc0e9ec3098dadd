#include <fmt/format.h>

#include "kernels/backend.h"

namespace longhaul {

absl::StatusOr<BackendKind> ParseBackendKind(const std::string& name) {
  if (name == "auto") return BackendKind::kAuto;
  if (name == "ref") return BackendKind::kRef;
  if (name == "cpu") return BackendKind::kCpu;
  if (name == "cuda") return BackendKind::kCuda;
  if (name == "cuda-mma") return BackendKind::kCudaMma;
  return absl::InvalidArgumentError(fmt::format(
      "unknown backend '{}'; use auto, ref, cpu or cuda, or cuda-mma for a GPU without the kernels "
      "for Hopper",
      name));
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(BackendKind kind, int n_threads,
                                                       std::string* why_cpu) {
  switch (kind) {
    case BackendKind::kRef:
      return CreateRefBackend();
    case BackendKind::kCpu:
      return CreateCpuBackend(n_threads);
    case BackendKind::kCuda:
      return CreateCudaBackend();
    case BackendKind::kCudaMma:
      return CreateCudaBackend(/*may_use_hopper=*/false);
    case BackendKind::kAuto:
      break;
  }
  absl::StatusOr<std::unique_ptr<Backend>> cuda = CreateCudaBackend();
  // Not built or no GPU: the CPU serves. A GPU that is there but fails is for the operator to see.
  if (cuda.ok() || !absl::IsUnavailable(cuda.status())) return cuda;
  if (why_cpu != nullptr) *why_cpu = std::string(cuda.status().message());
  return CreateCpuBackend(n_threads);
}

}  // namespace longhaul
