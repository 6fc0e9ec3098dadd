#include "engine/model/weights.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "engine/model/weight_loader.h"

namespace longhaul {
namespace {

// Rows of the fused projection: which stored row each of ours is. Empty where the checkpoint has
// our order: q heads, k heads, v heads; rotated pairs as halves.
std::vector<int64_t> QkvRowOrder(const ModelConfig& config) {
  const Architecture& family = *config.family;
  const bool by_group = family.qkv_order == QkvOrder::kByGroup;
  const bool neighbours = family.rope_pairing == RopePairing::kNeighbours;
  if (!by_group && !neighbours) return {};

  const ModelShape& shape = config.shape;
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  const auto stored_head = [&](int64_t head) {
    if (!by_group) return head;
    if (head < shape.n_heads) return head / group * (group + 2) + head % group;
    const int64_t kv_head = (head - shape.n_heads) % shape.n_kv_heads;
    const bool is_value = head >= shape.n_heads + shape.n_kv_heads;
    return kv_head * (group + 2) + group + (is_value ? 1 : 0);
  };
  const int64_t n_pairs = config.rope.n_pairs;
  const auto stored_element = [&](int64_t i) {
    if (i >= 2 * n_pairs) return i;
    return i < n_pairs ? 2 * i : 2 * (i - n_pairs) + 1;
  };
  std::vector<int64_t> order;
  for (int64_t head = 0; head < shape.n_heads + 2 * shape.n_kv_heads; ++head) {
    const bool rotated = neighbours && head < shape.n_heads + shape.n_kv_heads;
    for (int64_t i = 0; i < shape.head_dim; ++i) {
      order.push_back(stored_head(head) * shape.head_dim + (rotated ? stored_element(i) : i));
    }
  }
  return order;
}

// The tensors of one model: which are there, and how they become ModelWeights.
class ModelReader {
 public:
  ModelReader(const Checkpoint& checkpoint, const ModelConfig& config, Backend& backend,
              const WeightOptions& options)
      : config_(config),
        names_(*config.family->tensor_names),
        experts_(config.family->expert_names),
        qkv_order_(QkvRowOrder(config)),
        loader_(checkpoint, backend, options.format) {}

  absl::Status ExpectAll() {
    const ModelShape& shape = config_.shape;
    const int64_t e = shape.hidden_size;
    LH_RETURN_IF_ERROR(loader_.Expect(std::string(names_.embedding), {shape.vocab_size, e}));
    for (int32_t layer = 0; layer < shape.n_layers; ++layer) {
      LH_RETURN_IF_ERROR(ExpectAttention(layer));
      LH_RETURN_IF_ERROR(ExpectFeedForward(layer));
    }
    LH_RETURN_IF_ERROR(loader_.Expect(std::string(names_.final_norm), {e}));
    if (config_.tie_word_embeddings) {
      loader_.Ignore(std::string(names_.lm_head));
    } else {
      LH_RETURN_IF_ERROR(loader_.Expect(std::string(names_.lm_head), {shape.vocab_size, e}));
    }
    IgnoreFrequencies();
    return loader_.CheckNothingElse();
  }

  // Everything about a model that the rows of its packed matrices depend on, besides the bytes of
  // the checkpoint.
  std::string PackingKey() const {
    const ModelShape& shape = config_.shape;
    return fmt::format("{}|{}|{}|{}|{}", config_.family->name, shape.n_heads, shape.n_kv_heads,
                       shape.head_dim, config_.rope.n_pairs);
  }
  WeightLoader& loader() { return loader_; }

  absl::StatusOr<ModelWeights> Load() {
    const int32_t n_layers = config_.shape.n_layers;
    ModelWeights weights;
    weights.n_parameters = loader_.ExpectedParameters();
    LH_ASSIGN_OR_RETURN(weights.embedding, loader_.Matrix(std::string(names_.embedding)));
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      LayerWeights layer_weights;
      LH_RETURN_IF_ERROR(LoadAttention(layer, layer_weights));
      LH_RETURN_IF_ERROR(LoadFeedForward(layer, layer_weights));
      weights.layers.push_back(std::move(layer_weights));
    }
    LH_ASSIGN_OR_RETURN(weights.final_norm, loader_.VectorF32({std::string(names_.final_norm)}));
    const bool tied = config_.tie_word_embeddings;
    LH_ASSIGN_OR_RETURN(weights.lm_head,
                        loader_.Linear({std::string(tied ? names_.embedding : names_.lm_head)}));
    loader_.FinishCache();
    weights.packed_file = loader_.packed_file();
    weights.n_bytes = loader_.n_bytes();
    weights.buffers = loader_.TakeBuffers();
    return weights;
  }

 private:
  std::string Name(int32_t layer, std::string_view tensor, std::string_view suffix = "") const {
    return fmt::format("{}{}.{}{}", names_.layer_prefix, layer, tensor, suffix);
  }

  // Names of the q, k and v projections, or the one of all three.
  std::vector<std::string> Qkv(int32_t layer, std::string_view suffix) const {
    if (!names_.qkv.empty()) return {Name(layer, names_.qkv, suffix)};
    return {Name(layer, names_.q, suffix), Name(layer, names_.k, suffix),
            Name(layer, names_.v, suffix)};
  }
  std::string ExpertName(int32_t layer, int64_t expert, std::string_view tensor) const {
    return Name(layer, fmt::format("{}{}.{}", experts_->prefix, expert, tensor));
  }
  std::vector<std::string> ExpertGateUp(int32_t layer, int64_t expert) const {
    return {ExpertName(layer, expert, experts_->gate), ExpertName(layer, expert, experts_->up)};
  }
  std::vector<std::string> GateUp(int32_t layer) const {
    if (!names_.gate_up.empty()) return {Name(layer, names_.gate_up)};
    return {Name(layer, names_.gate), Name(layer, names_.up)};
  }

  // Expects rows, each part in a tensor of its own or all of them in one; n_columns 0: vectors.
  absl::Status ExpectRows(const std::vector<std::string>& names, std::vector<int64_t> rows,
                          int64_t n_columns) {
    if (names.size() == 1) {
      int64_t total = 0;
      for (int64_t n : rows) total += n;
      rows = {total};
    }
    for (size_t i = 0; i < names.size(); ++i) {
      std::vector<int64_t> shape = {rows[i]};
      if (n_columns > 0) shape.push_back(n_columns);
      LH_RETURN_IF_ERROR(loader_.Expect(names[i], std::move(shape)));
    }
    return absl::OkStatus();
  }

  absl::Status ExpectAttention(int32_t layer) {
    const ModelShape& shape = config_.shape;
    const int64_t e = shape.hidden_size;
    const int64_t q_rows = int64_t{shape.n_heads} * shape.head_dim;
    const int64_t kv_rows = int64_t{shape.n_kv_heads} * shape.head_dim;
    LH_RETURN_IF_ERROR(loader_.Expect(Name(layer, names_.input_norm), {e}));
    LH_RETURN_IF_ERROR(ExpectRows(Qkv(layer, ".weight"), {q_rows, kv_rows, kv_rows}, e));
    if (config_.qkv_bias) {
      LH_RETURN_IF_ERROR(ExpectRows(Qkv(layer, ".bias"), {q_rows, kv_rows, kv_rows}, 0));
    }
    if (config_.family->qk_norm) {
      LH_RETURN_IF_ERROR(loader_.Expect(Name(layer, names_.q_norm), {shape.head_dim}));
      LH_RETURN_IF_ERROR(loader_.Expect(Name(layer, names_.k_norm), {shape.head_dim}));
    }
    LH_RETURN_IF_ERROR(loader_.Expect(Name(layer, names_.o, ".weight"), {e, q_rows}));
    if (!config_.o_bias) return absl::OkStatus();
    return loader_.Expect(Name(layer, names_.o, ".bias"), {e});
  }

  absl::Status ExpectFeedForward(int32_t layer) {
    const int64_t e = config_.shape.hidden_size;
    const int64_t f = config_.intermediate_size;
    LH_RETURN_IF_ERROR(loader_.Expect(Name(layer, names_.post_norm), {e}));
    if (config_.experts.layers[layer]) return ExpectExperts(layer);
    LH_RETURN_IF_ERROR(ExpectRows(GateUp(layer), {f, f}, e));
    return loader_.Expect(Name(layer, names_.down), {e, f});
  }

  absl::Status ExpectExperts(int32_t layer) {
    const int64_t e = config_.shape.hidden_size;
    const int64_t f = config_.experts.intermediate_size;
    const std::string router = Name(layer, experts_->router);
    LH_ASSIGN_OR_RETURN(const int64_t n_experts,
                        loader_.CountRows(router, config_.experts.max_experts, e));
    LH_RETURN_IF_ERROR(loader_.Expect(router, {n_experts, e}));
    for (int64_t expert = 0; expert < n_experts; ++expert) {
      LH_RETURN_IF_ERROR(ExpectRows(ExpertGateUp(layer, expert), {f, f}, e));
      LH_RETURN_IF_ERROR(loader_.Expect(ExpertName(layer, expert, experts_->down), {e, f}));
    }
    return absl::OkStatus();
  }

  // Old exports carry the rotary frequencies, which follow from config.json.
  void IgnoreFrequencies() {
    for (int32_t layer = 0; layer < config_.shape.n_layers; ++layer) {
      loader_.Ignore(Name(layer, "self_attn.rotary_emb.inv_freq"));
      loader_.Ignore(Name(layer, "attention.rotary_emb.inv_freq"));
    }
    loader_.Ignore("transformer.rotary_pos_emb.inv_freq");
  }

  absl::Status LoadAttention(int32_t layer, LayerWeights& weights) {
    LH_ASSIGN_OR_RETURN(weights.input_norm, loader_.VectorF32({Name(layer, names_.input_norm)}));
    LH_ASSIGN_OR_RETURN(weights.qkv, loader_.Linear(Qkv(layer, ".weight"), qkv_order_));
    if (config_.qkv_bias) {
      LH_ASSIGN_OR_RETURN(weights.qkv_bias, loader_.VectorF32(Qkv(layer, ".bias"), qkv_order_));
    }
    if (config_.family->qk_norm) {
      LH_ASSIGN_OR_RETURN(weights.q_norm, loader_.VectorF32({Name(layer, names_.q_norm)}));
      LH_ASSIGN_OR_RETURN(weights.k_norm, loader_.VectorF32({Name(layer, names_.k_norm)}));
    }
    LH_ASSIGN_OR_RETURN(weights.o, loader_.Linear({Name(layer, names_.o, ".weight")}));
    if (config_.o_bias) {
      LH_ASSIGN_OR_RETURN(weights.o_bias, loader_.VectorF32({Name(layer, names_.o, ".bias")}));
    }
    return absl::OkStatus();
  }

  absl::Status LoadFeedForward(int32_t layer, LayerWeights& weights) {
    LH_ASSIGN_OR_RETURN(weights.post_norm, loader_.VectorF32({Name(layer, names_.post_norm)}));
    if (config_.experts.layers[layer]) return LoadExperts(layer, weights);
    LH_ASSIGN_OR_RETURN(weights.feed_forward.gate_up, loader_.Linear(GateUp(layer)));
    LH_ASSIGN_OR_RETURN(weights.feed_forward.down, loader_.Linear({Name(layer, names_.down)}));
    return absl::OkStatus();
  }

  absl::Status LoadExperts(int32_t layer, LayerWeights& weights) {
    LH_ASSIGN_OR_RETURN(weights.router, loader_.ExactLinear(Name(layer, experts_->router)));
    for (int64_t expert = 0; expert < weights.router->n_out; ++expert) {
      ExpertWeights loaded;
      LH_ASSIGN_OR_RETURN(loaded.gate_up, loader_.Linear(ExpertGateUp(layer, expert)));
      LH_ASSIGN_OR_RETURN(loaded.down, loader_.Linear({ExpertName(layer, expert, experts_->down)}));
      weights.experts.push_back(std::move(loaded));
    }
    return absl::OkStatus();
  }

  const ModelConfig& config_;
  const TensorNames& names_;
  const ExpertNames* const experts_;  // null where the family has none
  const std::vector<int64_t> qkv_order_;
  WeightLoader loader_;
};

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const ModelConfig& config,
                                         Backend& backend, const WeightOptions& options) {
  ModelReader reader(checkpoint, config, backend, options);
  LH_RETURN_IF_ERROR(reader.ExpectAll());
  if (!options.cache_dir.empty()) {
    LH_RETURN_IF_ERROR(reader.loader().OpenCache(options.cache_dir, reader.PackingKey()));
  }
  return reader.Load();
}

}  // namespace longhaul
