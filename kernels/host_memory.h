// Memory of the host backends: zeroed, 64-byte aligned, and backed by the kernel only where
// touched, so that a large KV pool costs RSS as it fills. Any thread.
#pragma once

#include <cstdint>

#include "kernels/base/buffer.h"
#include "kernels/base/status.h"

namespace longhaul {

// ResourceExhausted, with the size and what to lower, when the system refuses.
absl::StatusOr<Buffer> AllocateHost(int64_t n_bytes);

}  // namespace longhaul
