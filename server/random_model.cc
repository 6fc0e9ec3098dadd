#include "server/random_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "engine/model/safetensors.h"
#include "kernels/base/dtype.h"

namespace longhaul {
namespace {

// Each matrix has a start of its own in the first kStarts random numbers.
constexpr int64_t kStarts = int64_t{1} << 20;
constexpr int64_t kStep = 7919 * 32;

int64_t LargestMatrix(const ModelConfig& config) {
  const ModelShape& shape = config.shape;
  const int64_t n_rows = std::max({int64_t{shape.vocab_size}, int64_t{config.intermediate_size},
                                   int64_t{shape.n_heads} * shape.head_dim});
  return n_rows * shape.hidden_size;
}

// Uniform, of variance 1 / n_in for the layers that read the residual stream.
std::vector<BF16> RandomNumbers(int64_t n, int64_t hidden_size) {
  const float width = 2.0f * std::sqrt(3.0f / static_cast<float>(hidden_size));
  std::vector<BF16> numbers(n);
  uint32_t state = 1;
  for (BF16& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = ToBF16((static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * width);
  }
  return numbers;
}

// Hands out the tensors of a checkpoint. Borrows their data.
class TensorMaker {
 public:
  TensorMaker(std::span<const BF16> numbers, std::span<const BF16> ones)
      : numbers_(numbers), ones_(ones) {}

  void Matrix(const std::string& name, int64_t n_rows, int64_t n_columns) {
    const auto n = static_cast<size_t>(n_rows * n_columns);
    Add(name, {n_rows, n_columns}, numbers_.subspan(static_cast<size_t>(start_), n));
    start_ = (start_ + kStep) % kStarts;
  }
  void Norm(const std::string& name) { Add(name, {static_cast<int64_t>(ones_.size())}, ones_); }
  TensorMap Take() { return std::move(tensors_); }

 private:
  void Add(const std::string& name, std::vector<int64_t> shape, std::span<const BF16> data) {
    tensors_[name] = {.dtype = "BF16", .shape = std::move(shape), .data = std::as_bytes(data)};
  }

  const std::span<const BF16> numbers_;
  const std::span<const BF16> ones_;
  TensorMap tensors_;
  int64_t start_ = 0;
};

void AddLayer(const ModelConfig& config, int32_t layer, TensorMaker& maker) {
  const ModelShape& shape = config.shape;
  const TensorNames& names = *config.family->tensor_names;
  const auto name = [&](std::string_view tensor, std::string_view suffix = "") {
    return fmt::format("{}{}.{}{}", names.layer_prefix, layer, tensor, suffix);
  };
  const int64_t e = shape.hidden_size;
  const int64_t q_rows = int64_t{shape.n_heads} * shape.head_dim;
  const int64_t kv_rows = int64_t{shape.n_kv_heads} * shape.head_dim;
  maker.Norm(name(names.input_norm));
  maker.Matrix(name(names.q, ".weight"), q_rows, e);
  maker.Matrix(name(names.k, ".weight"), kv_rows, e);
  maker.Matrix(name(names.v, ".weight"), kv_rows, e);
  maker.Matrix(name(names.o, ".weight"), e, q_rows);
  maker.Norm(name(names.post_norm));
  maker.Matrix(name(names.gate), config.intermediate_size, e);
  maker.Matrix(name(names.up), config.intermediate_size, e);
  maker.Matrix(name(names.down), e, config.intermediate_size);
}

}  // namespace

absl::StatusOr<RandomModelShape> ParseRandomModelShape(const std::string& text) {
  RandomModelShape shape;
  const std::array<int64_t*, 7> numbers = {
      &shape.n_layers, &shape.hidden_size,       &shape.n_heads,   &shape.n_kv_heads,
      &shape.head_dim, &shape.intermediate_size, &shape.vocab_size};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  bool valid = true;
  for (size_t i = 0; i < numbers.size() && valid; ++i) {
    const auto read = std::from_chars(at, end, *numbers[i]);
    const bool last = i + 1 == numbers.size();
    valid =
        read.ec == std::errc() && (last ? read.ptr == end : read.ptr != end && *read.ptr == ',');
    at = read.ptr + 1;
  }
  if (valid) return shape;
  return absl::InvalidArgumentError(
      fmt::format("shape '{}' is not layers,hidden,heads,kv_heads,head_dim,ffn,vocab, for example "
                  "12,768,12,4,64,2048,32000",
                  text));
}

absl::StatusOr<ModelConfig> RandomModelConfig(const RandomModelShape& shape, int64_t max_tokens) {
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                                 {"num_hidden_layers", shape.n_layers},
                                 {"hidden_size", shape.hidden_size},
                                 {"num_attention_heads", shape.n_heads},
                                 {"num_key_value_heads", shape.n_kv_heads},
                                 {"head_dim", shape.head_dim},
                                 {"intermediate_size", shape.intermediate_size},
                                 {"vocab_size", shape.vocab_size},
                                 {"max_position_embeddings", max_tokens},
                                 {"hidden_act", "silu"}};
  LH_ASSIGN_OR_RETURN(ModelConfig result, ParseModelConfig(config.dump(), "--shape"));
  result.rope.context_tokens = max_tokens;
  return result;
}

// In double: the product of all the largest values that a config allows overflows.
int64_t RandomWeightsBytes(const ModelConfig& config, std::optional<WeightFormat> format) {
  const ModelShape& shape = config.shape;
  const double e = shape.hidden_size;
  const double head_rows = (2.0 * shape.n_heads + 2.0 * shape.n_kv_heads) * shape.head_dim;
  const double layer = e * (head_rows + 3.0 * config.intermediate_size);
  const double embedding = e * shape.vocab_size;
  const double linear = shape.n_layers * layer + embedding;
  const double n_bytes_each = format == WeightFormat::kF32    ? 4
                              : format == WeightFormat::kInt8 ? 1
                                                              : 2;
  const double source = static_cast<double>(LargestMatrix(config) + kStarts);
  const double n_bytes = linear * n_bytes_each + 2 * (embedding + source);
  return static_cast<int64_t>(std::min(n_bytes, 0x1p62));
}

RandomModel::RandomModel(ModelConfig config)
    : numbers_(RandomNumbers(LargestMatrix(config) + kStarts, config.shape.hidden_size)),
      ones_(config.shape.hidden_size, ToBF16(1.0f)) {
  TensorMaker maker(numbers_, ones_);
  const ModelShape& shape = config.shape;
  const TensorNames& names = *config.family->tensor_names;
  maker.Matrix(std::string(names.embedding), shape.vocab_size, shape.hidden_size);
  for (int32_t layer = 0; layer < shape.n_layers; ++layer) AddLayer(config, layer, maker);
  maker.Norm(std::string(names.final_norm));
  maker.Matrix(std::string(names.lm_head), shape.vocab_size, shape.hidden_size);
  source_ = {.config = std::move(config), .checkpoint = Checkpoint::FromTensors(maker.Take())};
}

}  // namespace longhaul
