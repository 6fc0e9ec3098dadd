// config.json of the supported families, in its old and new forms, and everything that is refused.
#include "engine/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

namespace longhaul {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Json Base() {
  return Json::parse(R"({"architectures":["LlamaForCausalLM"],"hidden_size":64,
    "intermediate_size":96,"num_hidden_layers":3,"num_attention_heads":8,"num_key_value_heads":2,
    "vocab_size":100,"max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0,
    "hidden_act":"silu"})");
}

absl::StatusOr<ModelConfig> Parse(const Json& json) {
  return ParseModelConfig(json.dump(), "config.json");
}
absl::StatusOr<ModelConfig> With(const char* key, const Json& value) {
  Json json = Base();
  json[key] = value;
  return Parse(json);
}
std::string ErrorWith(const char* key, const Json& value,
                      absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  const auto config = With(key, value);
  EXPECT_EQ(config.status().code(), code) << key << " " << value << " " << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("config.json"));
  return std::string(config.status().message());
}

TEST(ModelConfigTest, ReadsLlama) {
  const auto config = Parse(Base());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->shape.n_layers, 3);
  EXPECT_EQ(config->shape.n_heads, 8);
  EXPECT_EQ(config->shape.n_kv_heads, 2);
  EXPECT_EQ(config->shape.head_dim, 8);  // hidden_size / heads
  EXPECT_EQ(config->shape.max_positions, 4096);
  EXPECT_EQ(config->intermediate_size, 96);
  EXPECT_FLOAT_EQ(config->rms_norm_eps, 1e-5f);
  EXPECT_FALSE(config->tie_word_embeddings || config->qkv_bias || config->o_bias);
  EXPECT_EQ(config->rope.kind, RopeKind::kDefault);
  EXPECT_EQ(With("head_dim", 32)->shape.head_dim, 32);
  EXPECT_EQ(With("head_dim", nullptr)->shape.head_dim, 8);
  EXPECT_EQ(With("num_key_value_heads", nullptr)->shape.n_kv_heads, 8);
  EXPECT_TRUE(With("attention_bias", true)->o_bias);
  EXPECT_TRUE(With("tie_word_embeddings", true)->tie_word_embeddings);
}

TEST(ModelConfigTest, KnowsTheFamilies) {
  const auto qwen2 = With("architectures", {"Qwen2ForCausalLM"});
  ASSERT_TRUE(qwen2.ok());
  EXPECT_TRUE(qwen2->qkv_bias);
  EXPECT_FALSE(qwen2->o_bias);
  Json mistral = Base();
  mistral["architectures"] = {"MistralForCausalLM"};
  EXPECT_TRUE(Parse(mistral).ok());
  EXPECT_EQ(Parse(mistral)->windows, std::vector<int64_t>({0, 0, 0}));
  mistral["sliding_window"] = 1024;
  EXPECT_EQ(Parse(mistral)->windows, std::vector<int64_t>({1024, 1024, 1024}));
  EXPECT_TRUE(With("architectures", {"Qwen3ForCausalLM"})->family->qk_norm);
  EXPECT_THAT(ErrorWith("architectures", {"GPT2LMHeadModel"}, absl::StatusCode::kUnimplemented),
              HasSubstr("GPT2LMHeadModel"));
  ErrorWith("architectures", Json::array());
  ErrorWith("architectures", "LlamaForCausalLM");
}

TEST(ModelConfigTest, ExpertsByLayer) {
  EXPECT_EQ(Parse(Base())->experts.max_experts, 0);
  Json mixtral = Base();
  mixtral["architectures"] = {"MixtralForCausalLM"};
  mixtral["num_local_experts"] = 8;
  mixtral["num_experts_per_tok"] = 2;
  const auto all = Parse(mixtral);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->experts.layers, std::vector<bool>({true, true, true}));
  EXPECT_EQ(all->experts.intermediate_size, 96);
  EXPECT_TRUE(all->experts.renormalize);
  mixtral["num_experts_per_tok"] = 9;
  EXPECT_THAT(std::string(Parse(mixtral).status().message()), HasSubstr("num_experts_per_tok"));
  mixtral.erase("num_local_experts");
  EXPECT_THAT(std::string(Parse(mixtral).status().message()), HasSubstr("num_local_experts"));

  Json qwen = Base();
  qwen["architectures"] = {"Qwen3MoeForCausalLM"};
  qwen["num_experts"] = 16;
  qwen["num_experts_per_tok"] = 4;
  qwen["moe_intermediate_size"] = 24;
  qwen["norm_topk_prob"] = false;
  qwen["mlp_only_layers"] = {2};
  const auto some = Parse(qwen);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(some->experts.layers, std::vector<bool>({true, true, false}));
  EXPECT_EQ(some->experts.intermediate_size, 24);
  EXPECT_FALSE(some->experts.renormalize);
  qwen["decoder_sparse_step"] = 2;
  EXPECT_EQ(Parse(qwen)->experts.layers, std::vector<bool>({false, true, false}));
  for (const Json& bad : {Json(2), Json::array({3}), Json::array({-1}), Json::array({"1"})}) {
    qwen["mlp_only_layers"] = bad;
    EXPECT_THAT(std::string(Parse(qwen).status().message()), HasSubstr("mlp_only_layers"));
  }
}

TEST(ModelConfigTest, SlidingWindowByLayer) {
  EXPECT_EQ(With("sliding_window", 1024)->windows[0], 0);  // Llama ignores it
  Json qwen = Base();
  qwen["architectures"] = {"Qwen2ForCausalLM"};
  qwen["sliding_window"] = 1024;
  EXPECT_EQ(Parse(qwen)->windows[2], 0);  // only with use_sliding_window
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(Parse(qwen)->windows[2], 0);  // and from max_window_layers on
  qwen["max_window_layers"] = 1;
  EXPECT_EQ(Parse(qwen)->windows, std::vector<int64_t>({0, 1024, 1024}));
  qwen["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_EQ(Parse(qwen)->windows, std::vector<int64_t>({1024, 0, 0}));
  qwen["layer_types"] = {"sliding_attention"};
  EXPECT_THAT(std::string(Parse(qwen).status().message()), HasSubstr("layer_types"));
  qwen["layer_types"] = {"full_attention", "chunked_attention", "full_attention"};
  const absl::Status status = Parse(qwen).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("chunked_attention"));
}

// Field names and switches of its own.
TEST(ModelConfigTest, ReadsChatGlm) {
  const Json glm = Json::parse(R"({"architectures":["ChatGLMModel"],"num_layers":4,
    "hidden_size":64,"ffn_hidden_size":96,"num_attention_heads":8,"multi_query_attention":true,
    "multi_query_group_num":2,"kv_channels":16,"padded_vocab_size":100,"seq_length":1048576,
    "layernorm_epsilon":1e-5,"add_qkv_bias":true,"add_bias_linear":false,"rmsnorm":true,
    "post_layer_norm":true,"original_rope":true,"rope_ratio":500})");
  const auto config = Parse(glm);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->shape.n_layers, 4);
  EXPECT_EQ(config->shape.n_kv_heads, 2);
  EXPECT_EQ(config->shape.head_dim, 16);
  EXPECT_EQ(config->shape.vocab_size, 100);
  EXPECT_EQ(config->shape.max_positions, 1048576);
  EXPECT_EQ(config->intermediate_size, 96);
  EXPECT_TRUE(config->qkv_bias && !config->o_bias);
  EXPECT_EQ(config->rope.n_pairs, 4);  // half of a head
  EXPECT_EQ(config->rope.theta, 500 * 10000.0);

  Json one_head_each = glm;
  one_head_each["multi_query_attention"] = false;
  EXPECT_EQ(Parse(one_head_each)->shape.n_kv_heads, 8);
  for (const auto& [name, value] : {std::pair("rmsnorm", false),
                                    {"add_bias_linear", true},
                                    {"apply_residual_connection_post_layernorm", true}}) {
    Json other = glm;
    other[name] = value;
    const absl::Status status = Parse(other).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
  Json no_layers = glm;
  no_layers.erase("num_layers");
  EXPECT_THAT(std::string(Parse(no_layers).status().message()), HasSubstr("num_layers"));
}

// What may be asked for beyond max_position_embeddings, and what is served unasked.
TEST(ModelConfigTest, ContextOfScaledRope) {
  const auto plain = Parse(Base());
  EXPECT_EQ(plain->default_context_tokens, 4096);
  EXPECT_EQ(plain->shape.max_positions, 4096);
  const auto yarn =
      With("rope_scaling",
           {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 4096}});
  EXPECT_EQ(yarn->default_context_tokens, 4 * 4096);
  EXPECT_EQ(yarn->shape.max_positions, 4 * 4096);
  const auto dynamic = With("rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}});
  EXPECT_EQ(dynamic->default_context_tokens, 4096);
  EXPECT_GE(dynamic->shape.max_positions, 1 << 20);
}

TEST(ModelConfigTest, DualChunkAttention) {
  auto config =
      With("dual_chunk_attention_config",
           {{"chunk_size", 1024}, {"local_size", 64}, {"original_max_position_embeddings", 1000}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->shape.max_positions, 4096);
  const DualChunkConfig& dual = config->dual_chunk;
  EXPECT_EQ(dual.chunk_tokens, 960);
  EXPECT_EQ(dual.Own(2000), 80);
  EXPECT_EQ(dual.Next(1920 + 10), 970);
  EXPECT_EQ(dual.Next(1920 + 64), 1024);
  EXPECT_EQ(dual.Next(1920 + 900), 1024);
  EXPECT_EQ(dual.Far(), 1024);
  EXPECT_EQ(dual.Scale(999), 1.0f);
  EXPECT_FLOAT_EQ(dual.Scale(2717), 1.0f + 0.1f * std::log(2.718f));
  // Off where nobody sees a second chunk.
  config->rope.context_tokens = 960;
  EXPECT_FALSE(config->UsesDualChunk());
  config->rope.context_tokens = 961;
  EXPECT_TRUE(config->UsesDualChunk());
  // A chunk shorter than its local part: the last position of the next chunk bounds the angle.
  const auto close =
      With("dual_chunk_attention_config", {{"chunk_size", 300}, {"local_size", 236}});
  ASSERT_TRUE(close.ok()) << close.status();
  EXPECT_EQ(close->dual_chunk.Far(), 127);
  EXPECT_THAT(ErrorWith("dual_chunk_attention_config", {{"chunk_size", 1000}, {"local_size", 64}},
                        absl::StatusCode::kUnimplemented),
              HasSubstr("936"));
  EXPECT_THAT(ErrorWith("dual_chunk_attention_config", {{"chunk_size", 64}, {"local_size", 64}}),
              HasSubstr("local_size"));
  EXPECT_THAT(ErrorWith("dual_chunk_attention_config", Json::object()), HasSubstr("chunk_size"));
  ErrorWith("dual_chunk_attention_config", 1024);
}

TEST(ModelConfigTest, RopeFrequencies) {
  const auto expect = [](const absl::StatusOr<ModelConfig>& config, int i, double value) {
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_NEAR(InverseFrequencies(config->rope)[i] / value, 1.0, 1e-12);
  };
  // head_dim 8: theta^(-i / 4).
  expect(Parse(Base()), 0, 1.0);
  expect(Parse(Base()), 2, 0.01);
  expect(With("rope_scaling", {{"type", "linear"}, {"factor", 4.0}}), 2, 0.0025);
  expect(With("rope_scaling", {{"rope_type", "linear"}, {"factor", 4.0}}), 2, 0.0025);
  expect(With("rope_scaling", nullptr), 2, 0.01);
  expect(With("rope_parameters", {{"rope_type", "linear"}, {"factor", 2}, {"rope_theta", 1e8}}), 2,
         0.5e-4);
  expect(With("rope_parameters", {{"rope_theta", 1e8}}), 2, 1e-4);

  const auto llama3 = With("rope_scaling", {{"rope_type", "llama3"},
                                            {"factor", 8.0},
                                            {"low_freq_factor", 1.0},
                                            {"high_freq_factor", 4.0},
                                            {"original_max_position_embeddings", 128}});
  expect(llama3, 0, 1.0);                                   // turns 20 times in 128 tokens: kept
  expect(llama3, 2, 0.01 / 8);                              // turns 0.2 times: scaled
  const double turns = 128 * 0.1 / (2 * std::numbers::pi);  // 2.04: between
  const double keep = (turns - 1) / 3;
  expect(llama3, 1, keep * 0.1 + (1 - keep) * 0.1 / 8);
}

TEST(ModelConfigTest, RefusesBadRope) {
  EXPECT_THAT(ErrorWith("rope_scaling", {{"rope_type", "mrope"}, {"factor", 4}},
                        absl::StatusCode::kUnimplemented),
              AllOf(HasSubstr("mrope"), HasSubstr("longrope")));
  EXPECT_THAT(ErrorWith("rope_scaling", {{"rope_type", "linear"}}), HasSubstr("factor"));
  ErrorWith("rope_scaling", {{"rope_type", "linear"}, {"factor", 0}});
  ErrorWith("rope_scaling", {{"rope_type", "linear"}, {"factor", "4"}});
  ErrorWith("rope_scaling", 4);
  ErrorWith("rope_scaling", Json::object(), absl::StatusCode::kUnimplemented);
  ErrorWith("rope_theta", -1);
  ErrorWith("rope_theta", 0);
  EXPECT_THAT(ErrorWith("partial_rotary_factor", 0.1), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(ErrorWith("partial_rotary_factor", 0.4), HasSubstr("even"));  // 3 of 8
  ErrorWith("partial_rotary_factor", 1.5);
  Json longrope = {
      {"type", "longrope"}, {"short_factor", {1, 1, 1, 1}}, {"long_factor", {1, 2, 3}}};
  EXPECT_THAT(ErrorWith("rope_scaling", longrope), HasSubstr("'long_factor'"));
  longrope["long_factor"] = {1, 2, 3, 0};
  EXPECT_THAT(ErrorWith("rope_scaling", longrope), HasSubstr("index 3"));
  longrope.erase("short_factor");
  EXPECT_THAT(ErrorWith("rope_scaling", longrope), HasSubstr("'short_factor'"));
  EXPECT_THAT(ErrorWith("rope_scaling", {{"type", "yarn"}}), HasSubstr("factor"));
  ErrorWith("rope_scaling", {{"type", "yarn"}, {"factor", 4}, {"beta_fast", 1}, {"beta_slow", 2}});
  ErrorWith("rope_scaling", {{"type", "yarn"}, {"factor", 4}, {"rope_theta", 1.0}});
  ErrorWith("rope_scaling", {{"rope_type", "llama3"},
                             {"factor", 8.0},
                             {"low_freq_factor", 4.0},
                             {"high_freq_factor", 4.0}});
}

TEST(ModelConfigTest, RefusesNumbersOutOfRange) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    SCOPED_TRACE(key);
    for (const Json& bad : {Json(0), Json(-1), Json(int64_t{1} << 40), Json(UINT64_MAX), Json(1.5),
                            Json("8"), Json(true), Json::array({8}), Json(1e300)}) {
      EXPECT_THAT(ErrorWith(key, bad), HasSubstr(key));
    }
    Json json = Base();
    json.erase(key);
    EXPECT_THAT(std::string(Parse(json).status().message()), HasSubstr(key));
  }
  EXPECT_THAT(ErrorWith("num_key_value_heads", 3), HasSubstr("multiple"));
  EXPECT_THAT(ErrorWith("head_dim", 7), HasSubstr("even"));
  ErrorWith("rms_norm_eps", 0);
  ErrorWith("rms_norm_eps", "1e-5");
  ErrorWith("tie_word_embeddings", "yes");
}

TEST(ModelConfigTest, RefusesWhatItCannotRun) {
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  EXPECT_THAT(ErrorWith("hidden_act", "gelu", kUnimplemented), HasSubstr("gelu"));
  EXPECT_THAT(ErrorWith("quantization_config", {{"quant_method", "gptq"}}, kUnimplemented),
              HasSubstr("gptq"));
  EXPECT_THAT(ErrorWith("mlp_bias", true, kUnimplemented), HasSubstr("mlp_bias"));
}

TEST(ModelConfigTest, RefusesBadJson) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("[]"),
                                  std::string("null"), std::string("{\"architectures\":[1]}"),
                                  std::string("{\"a\":\"\xff\"}"), std::string(1'000'000, '[')}) {
    EXPECT_EQ(ParseModelConfig(text, "config.json").status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(LoadModelConfig("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace longhaul
