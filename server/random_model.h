// A model of a given shape with random weights, made in memory: for speed, where no checkpoint is
// needed or none of that shape exists. Llama's layers; every run makes the same weights. They keep
// activations finite and make attention nearly even over all keys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/runner.h"
#include "kernels/base/dtype.h"
#include "kernels/weight_format.h"

namespace longhaul {

struct RandomModelShape {
  int64_t n_layers = 0;
  int64_t hidden_size = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
};

// "layers,hidden,heads,kv_heads,head_dim,ffn,vocab". InvalidArgument for anything else.
absl::StatusOr<RandomModelShape> ParseRandomModelShape(const std::string& text);

// Serves max_tokens. InvalidArgument names what the engine does not take.
absl::StatusOr<ModelConfig> RandomModelConfig(const RandomModelShape& shape, int64_t max_tokens);

// What loading a RandomModel takes of the machine at its peak, close enough to refuse what cannot
// fit.
// format: none = bf16.
int64_t RandomWeightsBytes(const ModelConfig& config, std::optional<WeightFormat> format);

// The model as LoadRunner takes it, all matrices in bf16.
class RandomModel {
 public:
  explicit RandomModel(ModelConfig config);
  const ModelSource& source() const { return source_; }

 private:
  // All matrices are windows of one array of random numbers: a model's worth of them would take
  // longer to make than to measure.
  std::vector<BF16> numbers_;
  std::vector<BF16> ones_;
  ModelSource source_;
};

}  // namespace longhaul
