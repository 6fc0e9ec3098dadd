// Self-measurement: how fast this executor is, found out before the first request, so that the
// first prediction is already one. A few synthetic steps on pages of the still empty pool: prefill
// slices of one to three lengths, exact and sparse, and decode steps. What they compute means
// nothing and is never looked at; only their times count.
//
// Runs on the thread that creates the engine, once. Takes about kSelfMeasureUs at most: a step that
// is predicted not to fit into what is left of it is left out.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/cost_model.h"
#include "engine/step_plan.h"
#include "kernels/base/status.h"

namespace longhaul {

inline constexpr int64_t kSelfMeasureUs = 1'000'000;

// `config.max_model_len` is known. Feeds `model`, and logs what was found. Whatever the size of the
// pool, one page is enough. A step that fails is a device that does not work: its status.
absl::Status SelfMeasure(const EngineConfig& config, Executor& executor, CostModel& model);

}  // namespace longhaul
