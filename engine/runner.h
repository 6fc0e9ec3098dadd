// Runner: the Executor that owns a model on a backend: weights, KV pool bytes, scratch arena,
// hidden slots. One per rank; used from the engine thread only.
#pragma once

#include <memory>
#include <string>

#include "engine/config.h"
#include "engine/memory_plan.h"
#include "engine/step_plan.h"
#include "kernels/backend.h"

namespace longhaul {

// Loads a Hugging Face folder (config.json, *.safetensors). Reports load progress to the log.
// Errors: NotFound / InvalidArgument naming file, tensor and field; ResourceExhausted when the KV
// pool or the layer store does not fit into memory (with the numbers); Unimplemented for an
// architecture that is not supported. `config` is completed: max_model_len 0 becomes the model's,
// model_digest is filled.
absl::StatusOr<std::unique_ptr<Executor>> LoadRunner(const std::string& model_dir,
                                                     std::unique_ptr<Backend> backend,
                                                     EngineConfig& config, MemoryPlan* plan);

}  // namespace longhaul
