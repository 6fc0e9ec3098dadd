// When it makes sense to ask again: travels with a refusal (ResourceExhausted, Unavailable,
// DeadlineExceeded) as a payload of its status, from the scheduler's prediction to the front end's
// Retry-After. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/base/status.h"

namespace longhaul {

absl::Status WithRetryAfter(absl::Status status, int64_t retry_after_us);
// nullopt where none was attached.
std::optional<int64_t> RetryAfterUs(const absl::Status& status);

}  // namespace longhaul
