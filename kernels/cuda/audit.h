// The audit of SampleAttention on the device: recall of the audit rows, repair flags and the next
// alpha of every head, see AuditArgs. The results stay there; the engine reads them when it likes.
//
// Host entry point: enqueues a kernel on `stream` and returns at once.
#pragma once

#include <cuda_runtime.h>

#include "kernels/args.h"

namespace longhaul::cuda {

[[nodiscard]] cudaError_t Audit(const AuditArgs& args, cudaStream_t stream);

}  // namespace longhaul::cuda
