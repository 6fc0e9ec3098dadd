// ModelWeights: the parameters of a model in the backend's memory and formats. Loaded once, const
// afterwards, owned by the runner. LoadWeights brings what the families name and pack differently
// (engine/model/architecture.h) into one form; nothing else knows a tensor's name.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "kernels/backend.h"

namespace longhaul {

struct ExpertWeights {
  std::unique_ptr<LinearWeight> gate_up;  // [2 F, E]: gate, up
  std::unique_ptr<LinearWeight> down;     // [E, F]
};

struct LayerWeights {
  TensorView input_norm;                 // [E] f32
  std::unique_ptr<LinearWeight> qkv;     // [(H + 2 KH) D, E]: q, k, v; rotated pairs as halves
  TensorView qkv_bias;                   // [(H + 2 KH) D] f32, or empty
  TensorView q_norm;                     // [D] f32, or empty
  TensorView k_norm;                     // [D] f32, or empty
  std::unique_ptr<LinearWeight> o;       // [E, H D]
  TensorView o_bias;                     // [E] f32, or empty
  TensorView post_norm;                  // [E] f32
  ExpertWeights feed_forward;            // of a dense layer
  std::unique_ptr<LinearWeight> router;  // [X, E] of a mixture of experts, else null
  std::vector<ExpertWeights> experts;    // [X]
};

struct ModelWeights {
  TensorView embedding;  // [V, E] in the dtype of the checkpoint
  std::vector<LayerWeights> layers;
  TensorView final_norm;                          // [E] f32
  std::unique_ptr<LinearWeight> lm_head;          // [V, E]; of the embedding where they are tied
  std::vector<Buffer> buffers;                    // memory of the views above
  std::shared_ptr<const MappedFile> packed_file;  // of matrices that were packed before; or null
  int64_t n_bytes = 0;                            // all of it, prepared matrices included
  int64_t n_parameters = 0;                       // as stored: tied embeddings count once
};

struct WeightOptions {
  // Of the matrices of linear layers. None: bf16 where the checkpoint has bf16, else f32. Routers
  // of experts stay as exact as the backend computes, embeddings as the checkpoint has them.
  std::optional<WeightFormat> format;
  // Folder where packed matrices are kept for the next start; empty: they are not.
  std::string cache_dir = {};
};

// Checks the name and shape of every tensor before the first is converted. InvalidArgument names
// the tensor, what was expected and what was found; a tensor that the architecture does not know is
// an error too, since ignoring it would change the output silently.
//
// A matrix that is stored as the engine wants it is converted straight from the mapped file; one
// that is fused or reordered passes through a staging buffer of that one matrix. With a cache
// folder, matrices that were packed by an earlier start are mapped instead.
absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const ModelConfig& config,
                                         Backend& backend, const WeightOptions& options = {});

}  // namespace longhaul
