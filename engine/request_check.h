// What can be said about a request before any work is done for it. Pure functions; any thread.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/request.h"
#include "engine/step_plan.h"
#include "kernels/base/status.h"

namespace longhaul {

// The tightest of what the configuration, the model and the page pool allow.
struct RequestLimits {
  int64_t max_model_len = 0;  // tokens, prompt + output
  int64_t n_pages = 0;
  int64_t max_choices = 0;
  int32_t vocab_size = 0;
  int32_t n_layers = 0;
  int32_t n_heads = 0;  // query heads
};

// InvalidArgument for a value outside its range, OutOfRange for a request that is too long for
// max_model_len or that no state of the page pool could hold. Cheapest checks first.
absl::Status CheckRequest(const Request& request, const RequestLimits& limits);

}  // namespace longhaul
