// Memory of the host backends: zeroed, 64-byte aligned, and backed by the kernel only where
// touched, so that a large KV pool costs RSS as it fills. Any thread.
#pragma once

#include <cstdint>

#include "kernels/base/buffer.h"
#include "kernels/base/status.h"

namespace longhaul {

// ResourceExhausted, with the size and what to lower, when the system refuses.
absl::StatusOr<Buffer> AllocateHost(int64_t n_bytes);

// What Upload and Download are where the backend's memory is the host's.
void CopyHost(const void* from, void* to, int64_t n_bytes);

// /proc/meminfo, lowered to the limit of the control group (a container). What cannot be read
// limits nothing: allocation itself still fails with a status.
MemoryInfo ReadHostMemory();

}  // namespace longhaul
