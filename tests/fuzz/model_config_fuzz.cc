// libFuzzer target: any bytes as a config.json. Whatever is accepted must describe a model that can
// be laid out: sizes that fit each other, frequencies that are numbers.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  const auto config =
      longhaul::ParseModelConfig(std::string(reinterpret_cast<const char*>(data), n_bytes), "fuzz");
  if (!config.ok()) return 0;
  const longhaul::ModelShape& shape = config->shape;
  const auto n_layers = static_cast<size_t>(shape.n_layers);
  if (shape.n_heads % shape.n_kv_heads != 0 || 2 * config->rope.n_pairs > shape.head_dim ||
      config->default_context_tokens > shape.max_positions || config->windows.size() != n_layers ||
      config->experts.layers.size() != n_layers ||
      config->experts.n_chosen > config->experts.max_experts) {
    std::abort();
  }
  longhaul::RopeConfig rope = config->rope;
  for (int64_t tokens : {int64_t{1}, shape.max_positions}) {
    rope.context_tokens = tokens;
    for (double frequency : longhaul::InverseFrequencies(rope)) {
      if (!std::isfinite(frequency) || frequency < 0) std::abort();
    }
  }
  return 0;
}
