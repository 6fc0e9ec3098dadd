// MemoryPlan: what a runner takes of its backend's memory, worked out before gigabytes of weights
// are read. Pure arithmetic on sizes; allocates nothing.
#pragma once

#include <cstdint>
#include <string>

#include "engine/config.h"
#include "engine/model/model_config.h"
#include "engine/recorded_steps.h"
#include "kernels/backend.h"

namespace longhaul {

struct MemoryPlan {
  int64_t weight_bytes = 0;
  int64_t kv_pool_bytes = 0;
  int64_t workspace_bytes = 0;    // arena at its largest step; linear in max_model_len
  int64_t hidden_bytes = 0;       // paused epochs
  int64_t layer_store_bytes = 0;  // one whole prompt's hidden state, with PrefillOrder::kLayer
  RecordedSteps recorded = {};    // of a device; nobody allocates them, so room is left for them
  int64_t reserve_bytes = 0;      // of a device: what is nobody's of these
};

// What a runner that has loaded nothing yet may hold of the backend's memory. Of a machine that is
// all of it, since a KV pool costs memory as it fills; of a device the configured share, less what
// others hold there.
int64_t UsableBytes(const EngineConfig& config, const Backend& backend);

// Fills kv_pool_bytes, a whole number of pages, from what the other fields leave of usable_bytes,
// and reserve_bytes.
// ResourceExhausted with the numbers when it does not fit, InvalidArgument when the configured pool
// is smaller than a page.
absl::Status PlanKvPool(const EngineConfig& config, const KvLayout& layout, const Backend& backend,
                        int64_t usable_bytes, MemoryPlan& plan);

// The model, the backend and the plan as lines of the log.
void LogMemoryPlan(const ModelConfig& model, const EngineConfig& config, const MemoryPlan& plan,
                   const KvLayout& layout, const std::string& backend);

}  // namespace longhaul
