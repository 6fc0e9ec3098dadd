// ModelConfig: the architecture of a checkpoint, from the config.json of its Hugging Face folder.
// Plain values, checked once, const afterwards. Every number is range checked before anything is
// allocated from it. Knows nothing of tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/step_plan.h"
#include "kernels/base/status.h"

namespace longhaul {

enum class RopeKind : uint8_t {
  kDefault,
  kLinear,  // every frequency divided by `factor`
  kLlama3,  // low frequencies divided by `factor`, high ones kept, a ramp between (Llama 3.1)
};

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;           // kLlama3
  double high_freq_factor = 4.0;          // kLlama3
  int64_t original_max_positions = 8192;  // kLlama3
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  ModelShape shape;          // n_parameters is filled by the weights
  int32_t intermediate_size = 0;
  float rms_norm_eps = 1e-5f;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;

  // [head_dim / 2] radians per token, scaling applied.
  std::vector<double> InverseFrequencies() const;
};

// `file_name` only appears in errors. InvalidArgument names the field, its value and what is
// allowed; Unimplemented names an architecture, activation, rope type or quantization that we do
// not run.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json_text,
                                             const std::string& file_name);

// Reads model_dir/config.json (at most 4 MB).
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

}  // namespace longhaul
