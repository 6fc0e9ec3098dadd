#include "engine/model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/model/config_fields.h"
#include "engine/model/mapped_file.h"
#include "kernels/kv_layout.h"

namespace longhaul {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfigBytes = 4 << 20;
// Longest context that may be asked of a checkpoint whose rope type fits itself to any length.
constexpr int64_t kMaxStretchedTokens = int64_t{1} << 24;

const Architecture* FindArchitecture(Fields& fields) {
  const Json* names = fields.Find("architectures");
  if (names == nullptr || !names->is_array() || names->size() != 1 || !(*names)[0].is_string()) {
    fields.Fail("'architectures' must be a list with one name");
    return nullptr;
  }
  const std::string& name = (*names)[0].get_ref<const std::string&>();
  std::string supported;
  for (const Architecture& architecture : Architectures()) {
    if (name == architecture.name) return &architecture;
    supported += (supported.empty() ? "" : ", ") + std::string(architecture.name);
  }
  fields.FailUnimplemented(fmt::format("architecture {} is not supported; supported are {}",
                                       Fields::Show((*names)[0]), supported));
  return nullptr;
}

void CheckUnsupported(Fields& fields) {
  if (const Json* quantization = fields.Find("quantization_config"); quantization != nullptr) {
    const bool named = quantization->is_object() && quantization->contains("quant_method");
    fields.FailUnimplemented(
        fmt::format("quantized weights ({}) are not supported; use the bf16, f16 or f32 checkpoint",
                    named ? Fields::Show((*quantization)["quant_method"]) : "unknown method"));
  }
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu") {
    fields.FailUnimplemented(
        fmt::format("activation '{}' is not supported; supported is silu", activation));
  }
  if (fields.Bool("mlp_bias", false)) {
    fields.FailUnimplemented("'mlp_bias' is true: biased feed-forward layers are not supported");
  }
}

// ChatGLM's code has more switches than its published checkpoints use.
void CheckChatGlm(Fields& fields) {
  constexpr std::pair<const char*, bool> kFixed[] = {
      {"rmsnorm", true},          {"post_layer_norm", true},
      {"add_bias_linear", false}, {"apply_residual_connection_post_layernorm", false},
      {"original_rope", true},    {"interleaved_qkv", false},
  };
  for (const auto& [name, value] : kFixed) {
    if (fields.Bool(name, value) != value) {
      fields.FailUnimplemented(
          fmt::format("'{}' is {}: only {} is supported", name, !value, value));
    }
  }
}

DualChunkConfig ParseDualChunk(Fields& top) {
  constexpr char kName[] = "dual_chunk_attention_config";
  constexpr int64_t kMost = int64_t{1} << 30;
  DualChunkConfig dual;
  const Json* section = top.Find(kName);
  if (section == nullptr) return dual;
  if (!section->is_object()) {
    top.Fail(fmt::format("'{}' must be an object", kName));
    return dual;
  }
  Fields fields(*section, fmt::format("{}: {}", top.where(), kName));
  dual.most_distance = fields.Int("chunk_size", 2, kMost);
  const int64_t local_size = fields.Int("local_size", 1, dual.most_distance - 1);
  dual.original_positions = fields.Int("original_max_position_embeddings", 0, kMost, 0);
  dual.chunk_tokens = dual.most_distance - local_size;
  if (fields.status().ok() && dual.chunk_tokens % kPageTokens != 0) {
    fields.FailUnimplemented(
        fmt::format("chunk_size {} less local_size {} is {}; supported are multiples of {}",
                    dual.most_distance, local_size, dual.chunk_tokens, kPageTokens));
  }
  top.Adopt(fields.status());
  return dual;
}

void ParseShape(Fields& fields, const Architecture& family, ModelShape& shape) {
  const ConfigNames& names = *family.config_names;
  shape.n_layers = static_cast<int32_t>(fields.Int(names.n_layers, 1, 1024));
  shape.hidden_size = static_cast<int32_t>(fields.Int("hidden_size", 1, 65536));
  shape.n_heads = static_cast<int32_t>(fields.Int("num_attention_heads", 1, 1024));
  shape.n_kv_heads = static_cast<int32_t>(fields.Int(names.n_kv_heads, 1, 1024, shape.n_heads));
  // ChatGLM writes a group count that holds only with this flag.
  if (family.chatglm_config && !fields.Bool("multi_query_attention", false)) {
    shape.n_kv_heads = shape.n_heads;
  }
  shape.head_dim = static_cast<int32_t>(
      fields.Int(names.head_dim, 2, 1024, std::max(1, shape.hidden_size / shape.n_heads)));
  shape.vocab_size = static_cast<int32_t>(fields.Int(names.vocab_size, 1, 4 << 20));
  shape.max_positions = fields.Int(names.max_positions, 1, int64_t{1} << 30);
  if (!fields.status().ok()) return;
  if (shape.head_dim % 2 != 0) {
    fields.Fail(fmt::format("head_dim is {}, rotary embeddings need an even one", shape.head_dim));
  }
  if (shape.n_heads % shape.n_kv_heads != 0) {
    fields.Fail(fmt::format("num_attention_heads {} is no multiple of {} {}", shape.n_heads,
                            names.n_kv_heads, shape.n_kv_heads));
  }
}

// Which layers see a window only: as layer_types says where it is given, else as the family does.
std::vector<int64_t> ParseWindows(Fields& fields, const Architecture& family, int64_t n_layers) {
  std::vector<int64_t> windows(n_layers, 0);
  const int64_t window = fields.Int("sliding_window", 1, INT64_MAX, 0);
  const bool always = family.sliding_window == SlidingWindow::kAlways;
  const bool used = always || (family.sliding_window == SlidingWindow::kIfUsed &&
                               fields.Bool("use_sliding_window", false));
  if (!used || window == 0) return windows;

  const Json* types = fields.Find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != windows.size())) {
    fields.Fail(fmt::format("'layer_types' must be a list of {} names", n_layers));
    return windows;
  }
  const int64_t first_layer = always ? 0 : fields.Int("max_window_layers", 0, INT32_MAX, n_layers);
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    if (types == nullptr) {
      windows[layer] = layer >= first_layer ? window : 0;
    } else if ((*types)[layer] == "sliding_attention") {
      windows[layer] = window;
    } else if ((*types)[layer] != "full_attention") {
      fields.FailUnimplemented(fmt::format(
          "'layer_types' holds {} for layer {}; supported are full_attention, sliding_attention",
          Fields::Show((*types)[layer]), layer));
    }
  }
  return windows;
}

ExpertConfig ParseExperts(Fields& fields, const Architecture& family, int64_t n_layers) {
  ExpertConfig experts;
  experts.layers.assign(n_layers, false);
  if (family.expert_names == nullptr) return experts;
  const ExpertNames& names = *family.expert_names;
  const char* count =
      fields.Find(names.count_field) != nullptr ? names.count_field : "num_local_experts";
  experts.max_experts = static_cast<int32_t>(fields.Int(count, 1, 4096));
  experts.n_chosen =
      static_cast<int32_t>(fields.Int("num_experts_per_tok", 1, experts.max_experts));
  experts.intermediate_size =
      static_cast<int32_t>(fields.Int(names.intermediate_field, 1, 1 << 20));
  experts.renormalize = names.always_renormalize || fields.Bool("norm_topk_prob", false);

  const int64_t step = fields.Int("decoder_sparse_step", 1, INT32_MAX, 1);
  for (int64_t layer = 0; layer < n_layers; ++layer)
    experts.layers[layer] = (layer + 1) % step == 0;
  const Json* dense = fields.Find("mlp_only_layers");
  if (dense == nullptr) return experts;
  if (!dense->is_array()) {
    fields.Fail("'mlp_only_layers' must be a list of layers");
    return experts;
  }
  for (const Json& layer : *dense) {
    if (layer.is_number_unsigned() && layer.get<uint64_t>() < experts.layers.size()) {
      experts.layers[layer.get<uint64_t>()] = false;
    } else {
      fields.Fail(fmt::format("'mlp_only_layers' holds {}, which is no layer in [0, {})",
                              Fields::Show(layer), n_layers));
    }
  }
  return experts;
}

// What the rope type allows beyond max_position_embeddings, and what is served unasked.
void SetContext(ModelConfig& config) {
  int64_t& most = config.shape.max_positions;
  config.default_context_tokens = most;
  if (config.rope.kind == RopeKind::kYarn) {
    // Qwen2.5 keeps the original context in max_position_embeddings.
    const double scaled = config.rope.factor * static_cast<double>(config.rope.original_positions);
    most = std::max(most, static_cast<int64_t>(std::min(scaled, double{kMaxStretchedTokens})));
    config.default_context_tokens = most;
  } else if (config.rope.kind == RopeKind::kDynamic) {
    most = std::max(most, kMaxStretchedTokens);
  }
}

}  // namespace

float DualChunkConfig::Scale(int64_t position) const {
  if (position < original_positions || original_positions == 0) return 1.0f;
  const double ratio = static_cast<double>(position + 1) / static_cast<double>(original_positions);
  return static_cast<float>(1.0 + 0.1 * std::log(ratio));
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json_text,
                                             const std::string& file_name) {
  // The parser is iterative, and so is the destructor: depth costs heap, not stack.
  const Json json = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(fmt::format("{}: is not a JSON object", file_name));
  }
  Fields fields(json, file_name);
  const Architecture* family = FindArchitecture(fields);
  LH_RETURN_IF_ERROR(fields.status());
  CheckUnsupported(fields);
  if (family->chatglm_config) CheckChatGlm(fields);

  const ConfigNames& names = *family->config_names;
  ModelConfig config;
  config.family = family;
  ParseShape(fields, *family, config.shape);
  config.intermediate_size = static_cast<int32_t>(fields.Int(names.intermediate_size, 1, 1 << 20));
  config.rms_norm_eps = static_cast<float>(fields.Number(names.norm_eps, 0.0, 1.0, 1e-6));
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  const bool bias = fields.Bool(names.attention_bias, false);
  config.qkv_bias = bias || family->always_qkv_bias;
  config.o_bias = bias && family->bias_covers_o;
  LH_RETURN_IF_ERROR(fields.status());
  config.experts = ParseExperts(fields, *family, config.shape.n_layers);
  config.windows = ParseWindows(fields, *family, config.shape.n_layers);

  constexpr double kTheta = 10000.0;
  const double theta_ratio =
      family->chatglm_config ? fields.Number("rope_ratio", 0.0, 1e9, 1.0) : 1.0;
  config.dual_chunk = ParseDualChunk(fields);
  config.rope = ParseRope(fields, {.head_dim = config.shape.head_dim,
                                   .max_positions = config.shape.max_positions,
                                   .theta = kTheta * theta_ratio,
                                   .partial_factor = family->partial_rotary_factor,
                                   .yarn_is_longrope = family->yarn_is_longrope});
  LH_RETURN_IF_ERROR(fields.status());
  SetContext(config);
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = model_dir + "/config.json";
  LH_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const auto bytes = file.bytes();
  if (bytes.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(fmt::format("{}: has {} bytes, more than the allowed {}",
                                                  path, bytes.size(), kMaxConfigBytes));
  }
  return ParseModelConfig(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()),
                          path);
}

}  // namespace longhaul
