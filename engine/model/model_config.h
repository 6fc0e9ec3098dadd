// ModelConfig: the architecture of a checkpoint, from the config.json of its Hugging Face folder.
// Plain values, checked once, const afterwards. Every number is range checked before anything is
// allocated from it. Knows nothing of tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/model/architecture.h"
#include "engine/model/rope.h"
#include "engine/step_plan.h"
#include "kernels/base/status.h"

namespace longhaul {

// Mixture of experts. Layers of pruned checkpoints have fewer experts: the weights say how many.
struct ExpertConfig {
  int32_t max_experts = 0;        // of a layer; 0: no layer has any
  int32_t n_chosen = 0;           // experts that each token uses, where the layer has so many
  int32_t intermediate_size = 0;  // of one expert
  bool renormalize = false;       // weights of the chosen ones sum to 1
  std::vector<bool> layers;       // [n_layers] which are mixtures; the others are dense
};

// Dual chunk attention (Qwen2.5-1M): beyond the first chunk of keys, queries are rotated as if keys
// of earlier chunks were closer than they are.
struct DualChunkConfig {
  int64_t chunk_tokens = 0;        // chunk_size less local_size; 0: plain attention
  int64_t most_distance = 0;       // chunk_size: the largest angle of a query, in positions
  int64_t original_positions = 0;  // rows beyond have larger scores, by the logarithm; 0: none

  // Position in whose place a query at `position` is rotated for keys of its own chunk, of the one
  // before, and of all earlier ones.
  int64_t Own(int64_t position) const { return position % chunk_tokens; }
  int64_t Next(int64_t position) const {
    return std::min(Own(position) + chunk_tokens, most_distance);
  }
  int64_t Far() const { return std::min(2 * chunk_tokens - 1, most_distance); }
  // Factor of its query.
  float Scale(int64_t position) const;
};

struct ModelConfig {
  const Architecture* family = nullptr;  // a row of the table
  ModelShape shape;                      // n_parameters is filled by the weights
  int64_t default_context_tokens = 0;    // context where the user asks for none; at most
                                         // shape.max_positions
  int32_t intermediate_size = 0;
  float rms_norm_eps = 1e-5f;
  ExpertConfig experts;
  RopeConfig rope;
  DualChunkConfig dual_chunk;
  std::vector<int64_t> windows;  // [n_layers] a row sees its last so many keys; 0 = all of them
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;

  // Whether rows are served that see more than one chunk.
  bool UsesDualChunk() const {
    return dual_chunk.chunk_tokens > 0 && rope.context_tokens > dual_chunk.chunk_tokens;
  }
};

// `file_name` only appears in errors. InvalidArgument names the field, its value and what is
// allowed; Unimplemented names an architecture, activation, rope type or quantization that we do
// not run.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json_text,
                                             const std::string& file_name);

// Reads model_dir/config.json (at most 4 MB).
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

}  // namespace longhaul
