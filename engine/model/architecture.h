// The table of model families: one row says how a family's config.json and tensors are named, how
// its matrices are packed, and which of the optional parts of the one transformer it uses. Adding a
// family that needs no new part is adding a row. Constant data; knows no tensor and no value of a
// config.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace longhaul {

// Names of config.json fields; those that all families share are written where they are read.
struct ConfigNames {
  const char* n_layers = "num_hidden_layers";
  const char* n_kv_heads = "num_key_value_heads";
  const char* head_dim = "head_dim";
  const char* vocab_size = "vocab_size";
  const char* max_positions = "max_position_embeddings";
  const char* intermediate_size = "intermediate_size";
  const char* norm_eps = "rms_norm_eps";
  const char* attention_bias = "attention_bias";
};

// Names of tensors. Those of a layer follow `layer_prefix`, the layer's number and a dot.
struct TensorNames {
  std::string_view embedding = "model.embed_tokens.weight";
  std::string_view final_norm = "model.norm.weight";
  std::string_view lm_head = "lm_head.weight";
  std::string_view layer_prefix = "model.layers.";
  std::string_view input_norm = "input_layernorm.weight";
  std::string_view post_norm = "post_attention_layernorm.weight";
  // With .weight and .bias. One name is the fused matrix; else three.
  std::string_view qkv = "";
  std::string_view q = "self_attn.q_proj";
  std::string_view k = "self_attn.k_proj";
  std::string_view v = "self_attn.v_proj";
  std::string_view o = "self_attn.o_proj";
  std::string_view q_norm = "self_attn.q_norm.weight";
  std::string_view k_norm = "self_attn.k_norm.weight";
  // Of a dense layer: the fused matrix (gate rows first), else two.
  std::string_view gate_up = "";
  std::string_view gate = "mlp.gate_proj.weight";
  std::string_view up = "mlp.up_proj.weight";
  std::string_view down = "mlp.down_proj.weight";
};

// A mixture of experts. Names of tensors: the router's follows the layer; those of expert e follow
// `prefix`, the number and a dot.
struct ExpertNames {
  const char* count_field;         // of config.json; "num_local_experts" also where it is absent
  const char* intermediate_field;  // feed-forward size of one expert
  std::string_view router;
  std::string_view prefix;
  std::string_view gate;
  std::string_view up;
  std::string_view down;
  bool always_renormalize = false;  // else as norm_topk_prob says
};

// Order of the rows of the q, k and v projections in the checkpoint.
enum class QkvOrder : uint8_t {
  kByKind,   // all q heads, all k heads, all v heads; as the engine wants it
  kByGroup,  // per kv head: its G q heads, its k head, its v head (InternLM2's wqkv)
};

enum class RopePairing : uint8_t {
  kHalves,      // element i with i + n / 2; as the engine wants it
  kNeighbours,  // element 2 i with 2 i + 1 (GLM); rows are reordered when they are loaded
};

enum class SlidingWindow : uint8_t {
  kNever,   // the family's reference ignores the field
  kAlways,  // wherever sliding_window is set
  kIfUsed,  // only with use_sliding_window, in the layers from max_window_layers on
};

struct Architecture {
  std::string_view name;  // of `architectures` in config.json
  const ConfigNames* config_names;
  const TensorNames* tensor_names;
  const ExpertNames* expert_names = nullptr;  // null: dense layers only
  QkvOrder qkv_order = QkvOrder::kByKind;
  RopePairing rope_pairing = RopePairing::kHalves;
  SlidingWindow sliding_window = SlidingWindow::kNever;
  bool always_qkv_bias = false;  // a bias on q, k and v that config.json does not mention
  bool bias_covers_o = true;     // attention_bias also puts one on the output projection
  bool qk_norm = false;          // q and k heads are normalised before the rotation
  bool yarn_is_longrope = false;
  double partial_rotary_factor = 1.0;
  bool chatglm_config = false;  // rope_ratio, multi_query_attention and fixed flags of ChatGLM
};

std::span<const Architecture> Architectures();

}  // namespace longhaul
