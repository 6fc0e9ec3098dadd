#include "engine/model/architecture.h"

#include <algorithm>

namespace longhaul {
namespace {

constexpr ConfigNames kConfig;
constexpr ConfigNames kInternLm2Config = {.attention_bias = "bias"};
constexpr ConfigNames kChatGlmConfig = {.n_layers = "num_layers",
                                        .n_kv_heads = "multi_query_group_num",
                                        .head_dim = "kv_channels",
                                        .vocab_size = "padded_vocab_size",
                                        .max_positions = "seq_length",
                                        .intermediate_size = "ffn_hidden_size",
                                        .norm_eps = "layernorm_epsilon",
                                        .attention_bias = "add_qkv_bias"};

constexpr TensorNames kLlama;
constexpr TensorNames kPhi3 = {.qkv = "self_attn.qkv_proj", .gate_up = "mlp.gate_up_proj.weight"};
constexpr TensorNames kGlm = {.gate_up = "mlp.gate_up_proj.weight"};
constexpr TensorNames kInternLm2 = {.embedding = "model.tok_embeddings.weight",
                                    .lm_head = "output.weight",
                                    .input_norm = "attention_norm.weight",
                                    .post_norm = "ffn_norm.weight",
                                    .qkv = "attention.wqkv",
                                    .o = "attention.wo",
                                    .gate = "feed_forward.w1.weight",
                                    .up = "feed_forward.w3.weight",
                                    .down = "feed_forward.w2.weight"};
constexpr TensorNames kChatGlm = {.embedding = "transformer.embedding.word_embeddings.weight",
                                  .final_norm = "transformer.encoder.final_layernorm.weight",
                                  .lm_head = "transformer.output_layer.weight",
                                  .layer_prefix = "transformer.encoder.layers.",
                                  .qkv = "self_attention.query_key_value",
                                  .o = "self_attention.dense",
                                  .gate_up = "mlp.dense_h_to_4h.weight",
                                  .down = "mlp.dense_4h_to_h.weight"};

constexpr ExpertNames kMixtral = {.count_field = "num_local_experts",
                                  .intermediate_field = "intermediate_size",
                                  .router = "block_sparse_moe.gate.weight",
                                  .prefix = "block_sparse_moe.experts.",
                                  .gate = "w1.weight",
                                  .up = "w3.weight",
                                  .down = "w2.weight",
                                  .always_renormalize = true};
constexpr ExpertNames kQwen3Moe = {.count_field = "num_experts",
                                   .intermediate_field = "moe_intermediate_size",
                                   .router = "mlp.gate.weight",
                                   .prefix = "mlp.experts.",
                                   .gate = "gate_proj.weight",
                                   .up = "up_proj.weight",
                                   .down = "down_proj.weight"};

constexpr Architecture ChatGlm(std::string_view name) {
  return {.name = name,
          .config_names = &kChatGlmConfig,
          .tensor_names = &kChatGlm,
          .rope_pairing = RopePairing::kNeighbours,
          .bias_covers_o = false,
          .partial_rotary_factor = 0.5,
          .chatglm_config = true};
}

constexpr Architecture kArchitectures[] = {
    // Llama 1 to 3.3 and their long-context versions, Vicuna, Yi
    {.name = "LlamaForCausalLM", .config_names = &kConfig, .tensor_names = &kLlama},
    // Mistral, Mistral-NeMo
    {.name = "MistralForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kLlama,
     .sliding_window = SlidingWindow::kAlways},
    {.name = "Qwen2ForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kLlama,
     .sliding_window = SlidingWindow::kIfUsed,
     .always_qkv_bias = true},
    {.name = "Qwen3ForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kLlama,
     .sliding_window = SlidingWindow::kIfUsed,
     .qk_norm = true},
    {.name = "MixtralForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kLlama,
     .expert_names = &kMixtral,
     .sliding_window = SlidingWindow::kAlways},
    {.name = "Qwen3MoeForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kLlama,
     .expert_names = &kQwen3Moe,
     .sliding_window = SlidingWindow::kIfUsed,
     .qk_norm = true},
    // Phi-3, 3.5 (mini, medium), Phi-4 (mini)
    {.name = "Phi3ForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kPhi3,
     .sliding_window = SlidingWindow::kAlways,
     .yarn_is_longrope = true},
    {.name = "InternLM2ForCausalLM",
     .config_names = &kInternLm2Config,
     .tensor_names = &kInternLm2,
     .qkv_order = QkvOrder::kByGroup},
    // GLM-4-9B as transformers stores it
    {.name = "GlmForCausalLM",
     .config_names = &kConfig,
     .tensor_names = &kGlm,
     .rope_pairing = RopePairing::kNeighbours,
     .bias_covers_o = false,
     .partial_rotary_factor = 0.5},
    // ChatGLM3 and GLM-4-9B as first published
    ChatGlm("ChatGLMModel"),
    ChatGlm("ChatGLMForConditionalGeneration"),
};

// Reordering rows at load covers the projections, not the weights of a norm over the same elements.
static_assert(std::ranges::none_of(kArchitectures, [](const Architecture& a) {
  return a.qk_norm && a.rope_pairing == RopePairing::kNeighbours;
}));

}  // namespace

std::span<const Architecture> Architectures() { return kArchitectures; }

}  // namespace longhaul
