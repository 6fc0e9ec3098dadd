// Loading weights: what a checkpoint must hold, and the errors that name what it does not.
#include "engine/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TempDir;
using testing::TinyTensor;

constexpr char kUp[] = "model.layers.1.mlp.up_proj.weight";

class WeightsTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelWeights> Load(const std::map<std::string, TinyTensor>& tensors,
                                    std::string config_text = testing::kTinyConfig) {
    testing::WriteTinyModel(dir_, tensors, config_text);
    LH_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(dir_.path()));
    LH_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir_.path()));
    return LoadWeights(checkpoint, config, *backend_);
  }
  std::string ErrorOf(const std::map<std::string, TinyTensor>& tensors,
                      const std::string& config_text = testing::kTinyConfig) {
    const auto weights = Load(tensors, config_text);
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(weights.status().message());
  }
  static std::string TiedConfig() {
    std::string config = testing::kTinyConfig;
    config.replace(config.rfind("false"), 5, "true");
    return config;
  }

  TempDir dir_;
  std::unique_ptr<Backend> backend_ = CreateRefBackend();
  std::map<std::string, TinyTensor> tensors_ = testing::TinyTensors();
};

TEST_F(WeightsTest, FormatOfLinearLayers) {
  testing::WriteTinyModel(dir_, tensors_);
  const ModelConfig config = LoadModelConfig(dir_.path()).value();
  const Checkpoint f32 = Checkpoint::Open(dir_.path()).value();
  TensorMap bf16_tensors = f32.tensors();  // as many elements in half the bytes
  for (auto& [name, tensor] : bf16_tensors) {
    tensor.dtype = "BF16";
    tensor.data = tensor.data.first(tensor.data.size() / 2);
  }
  const Checkpoint bf16 = Checkpoint::FromTensors(std::move(bf16_tensors));
  const auto format = [&](const Checkpoint& checkpoint, std::optional<WeightFormat> wanted) {
    return LoadWeights(checkpoint, config, *backend_, {.format = wanted})->lm_head->format;
  };
  EXPECT_EQ(format(f32, std::nullopt), WeightFormat::kF32);
  EXPECT_EQ(format(bf16, std::nullopt), WeightFormat::kBF16);
  for (WeightFormat wanted : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
    EXPECT_EQ(format(f32, wanted), wanted);
    EXPECT_EQ(format(bf16, wanted), wanted);
  }
}

// A checkpoint in memory is used as it is, and left as it is: what is given back to the system
// after a tensor was read is memory of files alone.
TEST_F(WeightsTest, TensorsInMemory) {
  testing::WriteTinyModel(dir_, tensors_);
  const ModelConfig config = LoadModelConfig(dir_.path()).value();
  const Checkpoint file = Checkpoint::Open(dir_.path()).value();
  std::vector<std::vector<std::byte>> memory;
  TensorMap tensors = file.tensors();
  for (auto& [name, tensor] : tensors) {
    // Pages of its own, which a careless hint would clear.
    memory.emplace_back(tensor.data.begin(), tensor.data.end());
    memory.back().resize(1 << 16, std::byte{1});
    tensor.data = std::span(memory.back()).first(tensor.data.size());
  }
  const auto before = memory;
  const auto weights = LoadWeights(Checkpoint::FromTensors(tensors), config, *backend_);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(memory, before);
  EXPECT_EQ(weights->n_parameters, LoadWeights(file, config, *backend_)->n_parameters);
}

TEST_F(WeightsTest, FusesProjections) {
  const auto weights = Load(tensors_);
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->layers.size(), 2u);
  const LayerWeights& layer = weights->layers[1];
  EXPECT_EQ(layer.qkv->n_out, 64 + 32 + 32);
  EXPECT_EQ(layer.qkv->n_in, 32);
  EXPECT_EQ(layer.feed_forward.gate_up->n_out, 48);
  EXPECT_EQ(layer.feed_forward.down->n_in, 24);
  EXPECT_TRUE(layer.qkv_bias.empty());
  EXPECT_EQ(weights->embedding.dim(0), 64);
  EXPECT_EQ(weights->embedding.Row<float>(3)[1],
            tensors_["model.embed_tokens.weight"].values[3 * 32 + 1]);
  EXPECT_EQ(layer.input_norm.As<float>()[31],
            tensors_["model.layers.1.input_layernorm.weight"].values[31]);
  EXPECT_GT(weights->n_bytes, 0);
}

TEST_F(WeightsTest, NamesWhatIsMissing) {
  for (const char* name : {kUp, "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight",
                           "model.layers.0.self_attn.k_proj.weight"}) {
    auto tensors = tensors_;
    tensors.erase(name);
    EXPECT_THAT(ErrorOf(tensors), HasSubstr(std::string("no tensor '") + name));
  }
}

TEST_F(WeightsTest, NamesExpectedAndFoundShape) {
  tensors_[kUp] = {.shape = {32, 24}, .values = tensors_[kUp].values};
  EXPECT_THAT(ErrorOf(tensors_),
              AllOf(HasSubstr(kUp), HasSubstr("[32, 24]"), HasSubstr("[24, 32]")));
  tensors_[kUp] = {.shape = {24 * 32}, .values = tensors_[kUp].values};
  EXPECT_THAT(ErrorOf(tensors_), HasSubstr("[768]"));
}

TEST_F(WeightsTest, RefusesTensorsItDoesNotKnow) {
  tensors_["model.layers.2.mlp.up_proj.weight"] = tensors_[kUp];
  EXPECT_THAT(ErrorOf(tensors_), HasSubstr("model.layers.2.mlp.up_proj.weight"));
  tensors_.erase("model.layers.2.mlp.up_proj.weight");
  tensors_["model.layers.0.self_attn.q_proj.bias"] = {.shape = {64},
                                                      .values = std::vector<float>(64)};
  EXPECT_THAT(ErrorOf(tensors_), HasSubstr("q_proj.bias"));
}

TEST_F(WeightsTest, IgnoresWhatOldExportsCarry) {
  tensors_["model.layers.0.self_attn.rotary_emb.inv_freq"] = {.shape = {8},
                                                              .values = std::vector<float>(8)};
  EXPECT_TRUE(Load(tensors_).ok());
  // Tied: an lm_head may be there and is not used; it may also be absent.
  const auto with_head = Load(tensors_, TiedConfig());
  ASSERT_TRUE(with_head.ok()) << with_head.status();
  tensors_.erase("lm_head.weight");
  const auto without_head = Load(tensors_, TiedConfig());
  ASSERT_TRUE(without_head.ok()) << without_head.status();
  EXPECT_EQ(with_head->n_parameters, without_head->n_parameters);
}

// The tiny model as a Mixtral with 3 experts in its first layer and 2 in its second.
std::map<std::string, TinyTensor> MixtralTensors(std::map<std::string, TinyTensor> tensors) {
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = fmt::format("model.layers.{}.", layer);
    const int64_t n_experts = layer == 0 ? 3 : 2;
    tensors[p + "block_sparse_moe.gate.weight"] = {
        .shape = {n_experts, 32}, .values = std::vector<float>(n_experts * 32, 0.5f)};
    for (int64_t expert = 0; expert < n_experts; ++expert) {
      const std::string e = p + fmt::format("block_sparse_moe.experts.{}.", expert);
      tensors[e + "w1.weight"] = tensors[p + "mlp.gate_proj.weight"];
      tensors[e + "w3.weight"] = tensors[p + "mlp.up_proj.weight"];
      tensors[e + "w2.weight"] = tensors[p + "mlp.down_proj.weight"];
    }
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
      tensors.erase(p + "mlp." + name + ".weight");
    }
  }
  return tensors;
}

std::string MixtralConfig(int n_experts) {
  std::string config = testing::kTinyConfig;
  config.replace(config.find("LlamaForCausalLM"), 16, "MixtralForCausalLM");
  config.insert(config.find("\"hidden_size\""),
                fmt::format("\"num_local_experts\": {}, \"num_experts_per_tok\": 2, ", n_experts));
  return config;
}

TEST_F(WeightsTest, LayersMayHaveFewerExperts) {
  const auto tensors = MixtralTensors(tensors_);
  const auto weights = Load(tensors, MixtralConfig(4));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[0].experts.size(), 3u);
  EXPECT_EQ(weights->layers[1].experts.size(), 2u);
  EXPECT_EQ(weights->layers[1].router->n_out, 2);
  EXPECT_EQ(weights->layers[0].feed_forward.gate_up, nullptr);
}

TEST_F(WeightsTest, RefusesExpertsThatDoNotFit) {
  const auto tensors = MixtralTensors(tensors_);
  EXPECT_THAT(ErrorOf(tensors, MixtralConfig(2)),
              AllOf(HasSubstr("layers.0.block_sparse_moe.gate.weight"), HasSubstr("[3, 32]"),
                    HasSubstr("1 to 2")));
  auto missing = tensors;
  missing.erase("model.layers.0.block_sparse_moe.experts.2.w3.weight");
  EXPECT_THAT(ErrorOf(missing, MixtralConfig(4)), HasSubstr("experts.2.w3.weight"));
  auto no_router = tensors;
  no_router.erase("model.layers.1.block_sparse_moe.gate.weight");
  EXPECT_THAT(ErrorOf(no_router, MixtralConfig(4)), HasSubstr("layers.1.block_sparse_moe.gate"));
  auto too_many = tensors;
  too_many["model.layers.1.block_sparse_moe.experts.2.w1.weight"] =
      tensors.at("model.layers.1.block_sparse_moe.experts.1.w1.weight");
  EXPECT_THAT(ErrorOf(too_many, MixtralConfig(4)),
              HasSubstr("layers.1.block_sparse_moe.experts.2"));
}

TEST_F(WeightsTest, NamesShapesOfFusedTensors) {
  std::string config = testing::kTinyConfig;
  config.replace(config.find("LlamaForCausalLM"), 16, "Phi3ForCausalLM");
  EXPECT_THAT(ErrorOf(tensors_, config),
              AllOf(HasSubstr("self_attn.qkv_proj.weight"), HasSubstr("[128, 32]")));
}

TEST_F(WeightsTest, RefusesIntegerWeights) {
  std::string file = testing::SafetensorsBytes(tensors_);
  const auto replace_dtype = [&](const std::string& name, const std::string& from,
                                 const std::string& to) {
    const size_t at = file.find(from, file.find(name));
    file.replace(at, from.size(), to);
  };
  replace_dtype(kUp, "F32", "I32");
  testing::WriteTinyModel(dir_, tensors_);
  dir_.Write("model.safetensors", file);
  auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto config = LoadModelConfig(dir_.path());
  EXPECT_THAT(std::string(LoadWeights(*checkpoint, *config, *backend_).status().message()),
              AllOf(HasSubstr(kUp), HasSubstr("I32")));
}

}  // namespace
}  // namespace longhaul
