// Runner: the Executor that owns a model on a backend: weights, KV pool bytes, scratch arena,
// hidden slots. One per rank; used from the engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/config.h"
#include "engine/memory_plan.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "engine/step_plan.h"
#include "kernels/backend.h"

namespace longhaul {

// Loads a Hugging Face folder (config.json, *.safetensors). Reports load progress to the log.
// Errors: NotFound / InvalidArgument naming file, tensor and field; ResourceExhausted when the KV
// pool or the layer store does not fit into memory (with the numbers); Unimplemented for an
// architecture that is not supported. `config` is completed: max_model_len 0 becomes the model's,
// no kv_dtype the checkpoint's, model_digest is filled.
absl::StatusOr<std::unique_ptr<Executor>> LoadRunner(const std::string& model_dir,
                                                     std::unique_ptr<Backend> backend,
                                                     EngineConfig& config, MemoryPlan* plan);

// What a model is loaded from. Needed until LoadRunner returns.
struct ModelSource {
  ModelConfig config;
  Checkpoint checkpoint;
  uint64_t config_hash = 0;  // of config.json as it is
};

// The same of a model that need not be in a folder.
absl::StatusOr<std::unique_ptr<Executor>> LoadRunner(const ModelSource& source,
                                                     std::unique_ptr<Backend> backend,
                                                     EngineConfig& config, MemoryPlan* plan);

}  // namespace longhaul
