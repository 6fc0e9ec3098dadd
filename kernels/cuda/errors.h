// What happens when a CUDA call fails. At the start (no GPU, no memory) that is a status for the
// operator; in a step it is the end of the process: after a fault the device's memory, the KV cache
// in it and every later result are lost, so the log says which op it was and a supervisor starts
// again.
#pragma once

#include <cuda_runtime.h>

namespace longhaul::cuda {

// Prints op, error and text to stderr and ends the process unless `error` is cudaSuccess. A fault
// inside a kernel shows at a later call, mostly Synchronize; the text says how to find the op then.
void CheckCuda(cudaError_t error, const char* op);

}  // namespace longhaul::cuda
