// When prompts that share the engine will be done: the scheduler's rules (slots, priorities, turns
// of short and long prompts) played forward with time as a fluid instead of in slices. A pure
// function. It knows nothing of arrivals to come, of pages, or of how long answers keep them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace longhaul {

struct ForecastJob {
  double left_us = 0;  // of its own prefill
  int32_t priority = 0;
  bool is_long = false;
  int64_t leader = -1;  // job that it waits for, because it takes over what that one computes
};

struct ForecastTime {
  double admitted_us = 0;  // from now
  double done_us = 0;
};

struct ForecastRules {
  int64_t max_prefills = 1;  // slots; one is kept for short prompts
  double short_share = 0.5;  // of the time, for short prompts, while there are long ones, too
};

// Jobs [0, n_admitted) hold a slot, the others wait in this order. Result: parallel to jobs.
std::vector<ForecastTime> ForecastPrefills(std::span<const ForecastJob> jobs, int64_t n_admitted,
                                           const ForecastRules& rules);

}  // namespace longhaul
