#include "engine/model/weights.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace longhaul {
namespace {

constexpr int64_t kLogFromBytes = int64_t{1} << 30;  // smaller checkpoints load in a moment

std::optional<DType> WeightDType(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  return std::nullopt;
}

// Tensors that old exports carry although they are no parameters of the architecture.
bool MayBeIgnored(std::string_view name, const ModelConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") ||
         (config.tie_word_embeddings && name == "lm_head.weight");
}

// Copies tensors out of a checkpoint into backend memory.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, const ModelConfig& config, Backend& backend)
      : checkpoint_(checkpoint), config_(config), backend_(backend) {}

  // Declares a tensor; every later use is of a declared one, so lookups cannot fail.
  absl::Status Expect(const std::string& name, std::vector<int64_t> shape) {
    const auto it = checkpoint_.tensors().find(name);
    if (it == checkpoint_.tensors().end()) {
      return absl::InvalidArgumentError(
          fmt::format("the checkpoint has no tensor '{}' (shape [{}]), which {} needs", name,
                      fmt::join(shape, ", "), config_.architecture));
    }
    const StoredTensor& tensor = it->second;
    if (tensor.shape != shape) {
      return absl::InvalidArgumentError(
          fmt::format("tensor '{}' has shape [{}], config.json asks for [{}]", name,
                      fmt::join(tensor.shape, ", "), fmt::join(shape, ", ")));
    }
    if (!WeightDType(tensor.dtype)) {
      return absl::InvalidArgumentError(fmt::format(
          "tensor '{}' is of type {}; weights must be F32, BF16 or F16", name, tensor.dtype));
    }
    expected_.insert(name);
    return absl::OkStatus();
  }

  absl::Status CheckNothingElse() const {
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (!expected_.contains(name) && !MayBeIgnored(name, config_)) {
        return absl::InvalidArgumentError(
            fmt::format("tensor '{}' (shape [{}]) is no part of {} as config.json describes it",
                        name, fmt::join(tensor.shape, ", "), config_.architecture));
      }
    }
    return absl::OkStatus();
  }

  int64_t ExpectedParameters() const {
    int64_t n = 0;
    for (const std::string& name : expected_) {
      const StoredTensor& tensor = Stored(name);
      n += static_cast<int64_t>(tensor.data.size() / DTypeBytes(*WeightDType(tensor.dtype)));
    }
    return n;
  }

  // Matrices with the same number of columns, one below the other.
  absl::StatusOr<std::unique_ptr<LinearWeight>> Linear(const std::vector<std::string>& names) {
    LH_ASSIGN_OR_RETURN(const TensorView matrix, Stage(names));
    LH_ASSIGN_OR_RETURN(std::unique_ptr<LinearWeight> weight, backend_.PrepareLinear(matrix));
    n_bytes_ += weight->n_bytes;
    return weight;
  }

  // Vectors, one after the other, as f32.
  absl::StatusOr<TensorView> VectorF32(const std::vector<std::string>& names) {
    int64_t n = 0;
    for (const std::string& name : names) n += Stored(name).shape[0];
    LH_ASSIGN_OR_RETURN(std::byte * data, Keep(n * static_cast<int64_t>(sizeof(float))));
    float* out = reinterpret_cast<float*>(data);
    for (const std::string& name : names) {
      const StoredTensor& tensor = Stored(name);
      CopyAsF32(tensor, out);
      out += tensor.shape[0];
    }
    return TensorView(data, DType::kF32, {n});
  }

  // A matrix in its own dtype.
  absl::StatusOr<TensorView> Matrix(const std::string& name) {
    const StoredTensor& tensor = Stored(name);
    LH_ASSIGN_OR_RETURN(std::byte * data, Keep(static_cast<int64_t>(tensor.data.size())));
    std::memcpy(data, tensor.data.data(), tensor.data.size());
    return TensorView(data, *WeightDType(tensor.dtype), {tensor.shape[0], tensor.shape[1]});
  }

  int64_t n_bytes() const { return n_bytes_; }
  std::vector<Buffer> TakeBuffers() { return std::move(buffers_); }

 private:
  const StoredTensor& Stored(const std::string& name) const {
    LH_CHECK(expected_.contains(name));
    return checkpoint_.tensors().find(name)->second;
  }

  absl::StatusOr<std::byte*> Keep(int64_t n_bytes) {
    LH_ASSIGN_OR_RETURN(Buffer buffer, backend_.Allocate(n_bytes));
    n_bytes_ += n_bytes;
    buffers_.push_back(std::move(buffer));
    return static_cast<std::byte*>(buffers_.back().data());
  }

  static void CopyAsF32(const StoredTensor& tensor, float* out) {
    const int64_t n = tensor.shape[0];
    const std::byte* data = tensor.data.data();
    if (tensor.dtype == "F32") {
      std::memcpy(out, data, n * sizeof(float));
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data + i * sizeof(bits), sizeof(bits));
      out[i] = tensor.dtype == "BF16" ? ToF32(BF16{bits}) : ToF32(F16{bits});
    }
  }

  // One aligned matrix of the named ones. A single aligned tensor is used where it is mapped.
  absl::StatusOr<TensorView> Stage(const std::vector<std::string>& names) {
    const StoredTensor& first = Stored(names[0]);
    const DType dtype = *WeightDType(first.dtype);
    int64_t n_rows = 0;
    size_t n_bytes = 0;
    for (const std::string& name : names) {
      const StoredTensor& tensor = Stored(name);
      if (tensor.dtype != first.dtype) {
        return absl::InvalidArgumentError(
            fmt::format("tensor '{}' is {} but '{}' is {}; projections that are fused must agree",
                        names[0], first.dtype, name, tensor.dtype));
      }
      n_rows += tensor.shape[0];
      n_bytes += tensor.data.size();
    }
    std::byte* data = const_cast<std::byte*>(first.data.data());
    const bool aligned = reinterpret_cast<uintptr_t>(data) % DTypeBytes(dtype) == 0;
    if (names.size() > 1 || !aligned) {
      if (staging_.n_bytes() < n_bytes) {
        LH_ASSIGN_OR_RETURN(staging_, backend_.Allocate(static_cast<int64_t>(n_bytes)));
      }
      data = static_cast<std::byte*>(staging_.data());
      std::byte* out = data;
      for (const std::string& name : names) {
        const std::span<const std::byte> part = Stored(name).data;
        std::memcpy(out, part.data(), part.size());
        out += part.size();
      }
    }
    return TensorView(data, dtype, {n_rows, first.shape[1]});
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  Backend& backend_;
  std::set<std::string, std::less<>> expected_;
  Buffer staging_;
  std::vector<Buffer> buffers_;
  int64_t n_bytes_ = 0;
};

std::string LayerPrefix(int32_t layer) { return fmt::format("model.layers.{}.", layer); }

absl::Status ExpectAll(const ModelConfig& config, WeightLoader& loader) {
  const ModelShape& shape = config.shape;
  const int64_t e = shape.hidden_size;
  const int64_t f = config.intermediate_size;
  const int64_t q_rows = int64_t{shape.n_heads} * shape.head_dim;
  const int64_t kv_rows = int64_t{shape.n_kv_heads} * shape.head_dim;
  LH_RETURN_IF_ERROR(loader.Expect("model.embed_tokens.weight", {shape.vocab_size, e}));
  for (int32_t layer = 0; layer < shape.n_layers; ++layer) {
    const std::string p = LayerPrefix(layer);
    LH_RETURN_IF_ERROR(loader.Expect(p + "input_layernorm.weight", {e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.q_proj.weight", {q_rows, e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.k_proj.weight", {kv_rows, e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.v_proj.weight", {kv_rows, e}));
    if (config.qkv_bias) {
      LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.q_proj.bias", {q_rows}));
      LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.k_proj.bias", {kv_rows}));
      LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.v_proj.bias", {kv_rows}));
    }
    LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.o_proj.weight", {e, q_rows}));
    if (config.o_bias) LH_RETURN_IF_ERROR(loader.Expect(p + "self_attn.o_proj.bias", {e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "post_attention_layernorm.weight", {e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "mlp.gate_proj.weight", {f, e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "mlp.up_proj.weight", {f, e}));
    LH_RETURN_IF_ERROR(loader.Expect(p + "mlp.down_proj.weight", {e, f}));
  }
  LH_RETURN_IF_ERROR(loader.Expect("model.norm.weight", {e}));
  if (!config.tie_word_embeddings) {
    LH_RETURN_IF_ERROR(loader.Expect("lm_head.weight", {shape.vocab_size, e}));
  }
  return loader.CheckNothingElse();
}

absl::StatusOr<LayerWeights> LoadLayer(const ModelConfig& config, int32_t layer,
                                       WeightLoader& loader) {
  const std::string p = LayerPrefix(layer);
  const std::string attn = p + "self_attn.";
  LayerWeights weights;
  LH_ASSIGN_OR_RETURN(weights.input_norm, loader.VectorF32({p + "input_layernorm.weight"}));
  LH_ASSIGN_OR_RETURN(weights.qkv, loader.Linear({attn + "q_proj.weight", attn + "k_proj.weight",
                                                  attn + "v_proj.weight"}));
  if (config.qkv_bias) {
    LH_ASSIGN_OR_RETURN(
        weights.qkv_bias,
        loader.VectorF32({attn + "q_proj.bias", attn + "k_proj.bias", attn + "v_proj.bias"}));
  }
  LH_ASSIGN_OR_RETURN(weights.o, loader.Linear({attn + "o_proj.weight"}));
  if (config.o_bias) {
    LH_ASSIGN_OR_RETURN(weights.o_bias, loader.VectorF32({attn + "o_proj.bias"}));
  }
  LH_ASSIGN_OR_RETURN(weights.post_norm, loader.VectorF32({p + "post_attention_layernorm.weight"}));
  LH_ASSIGN_OR_RETURN(weights.gate_up,
                      loader.Linear({p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight"}));
  LH_ASSIGN_OR_RETURN(weights.down, loader.Linear({p + "mlp.down_proj.weight"}));
  return weights;
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const ModelConfig& config,
                                         Backend& backend) {
  WeightLoader loader(checkpoint, config, backend);
  LH_RETURN_IF_ERROR(ExpectAll(config, loader));

  ModelWeights weights;
  weights.n_parameters = loader.ExpectedParameters();
  const bool large = weights.n_parameters * 2 >= kLogFromBytes;
  LH_ASSIGN_OR_RETURN(weights.embedding, loader.Matrix("model.embed_tokens.weight"));
  for (int32_t layer = 0; layer < config.shape.n_layers; ++layer) {
    LH_ASSIGN_OR_RETURN(LayerWeights layer_weights, LoadLayer(config, layer, loader));
    weights.layers.push_back(std::move(layer_weights));
    if (large && (layer + 1) % 8 == 0) {
      spdlog::info("loading weights: {} of {} layers, {:.1f} GiB", layer + 1, config.shape.n_layers,
                   static_cast<double>(loader.n_bytes()) / (1 << 30));
    }
  }
  LH_ASSIGN_OR_RETURN(weights.final_norm, loader.VectorF32({"model.norm.weight"}));
  LH_ASSIGN_OR_RETURN(
      weights.lm_head,
      loader.Linear({config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"}));
  weights.n_bytes = loader.n_bytes();
  weights.buffers = loader.TakeBuffers();
  return weights;
}

}  // namespace longhaul
