// What fits on which card: the plan of a Llama-3-8B with a million tokens, in numbers.
#include "engine/memory_plan.h"

#include <gtest/gtest.h>

#include <memory>

#include "engine/model/model_config.h"
#include "engine/model/transformer.h"
#include "kernels/forwarding_backend.h"

namespace longhaul {
namespace {

constexpr int64_t kMillion = int64_t{1} << 20;
constexpr int64_t kWeightBytes = int64_t{16'060'522'496};  // 8.03 billion bf16 numbers
constexpr char kLlama8B[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
  "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
  "max_position_embeddings": 1048576, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
  "tie_word_embeddings": false})";

// A GPU of which only the memory counts here.
class Card : public ForwardingBackend {
 public:
  Card(Backend& to, int64_t n_bytes) : ForwardingBackend(to), n_bytes_(n_bytes) {}
  bool is_host() const override { return false; }
  DType activation_dtype() const override { return DType::kBF16; }
  MemoryInfo Memory() const override {
    return {.total_bytes = n_bytes_, .available_bytes = n_bytes_};
  }

 private:
  int64_t n_bytes_;
};

class MemoryPlanTest : public ::testing::Test {
 protected:
  MemoryPlanTest() : model_(ParseModelConfig(kLlama8B, "config.json").value()) {
    config_.max_model_len = kMillion;
    config_.epoch_tokens = 8192;
    config_.gpu_memory_utilization = 0.95;
    model_.rope.context_tokens = config_.max_model_len;
  }

  KvLayout Layout(DType dtype) const {
    return {.n_layers = model_.shape.n_layers,
            .n_kv_heads = model_.shape.n_kv_heads,
            .head_dim = model_.shape.head_dim,
            .dtype = dtype};
  }
  // With the workspace and the hidden states that the runner counts.
  absl::Status Plan(DType dtype, MemoryPlan& plan) {
    plan.weight_bytes = kWeightBytes;
    plan.workspace_bytes = Transformer::WorkspaceBytes(model_, DType::kBF16, config_.epoch_tokens,
                                                       config_.max_model_len, config_.max_num_seqs);
    plan.hidden_bytes = config_.max_prefills * config_.epoch_tokens * model_.shape.hidden_size * 4;
    return PlanKvPool(config_, Layout(dtype), card_, UsableBytes(config_, card_), plan);
  }
  int64_t PoolTokens(const MemoryPlan& plan, DType dtype) const {
    return plan.kv_pool_bytes / Layout(dtype).PageBytes() * kPageTokens;
  }

  const std::unique_ptr<Backend> host_ = CreateRefBackend();
  Card card_{*host_, int64_t{141'000'000'000}};
  ModelConfig model_;
  EngineConfig config_;
};

// 64 KiB of numbers and 512 bytes of scales per token: 69.3 GB for a million tokens.
TEST_F(MemoryPlanTest, MillionTokensInFp8FitOneCardWithTheModel) {
  EXPECT_EQ(Layout(DType::kF8E4M3).PageBytes(), kPageTokens * (32 * 8 * 2 * (128 + 1)));
  const int64_t kv_bytes = kMillion / kPageTokens * Layout(DType::kF8E4M3).PageBytes();
  EXPECT_LT(kv_bytes + 16'000'000'000, 141'000'000'000);
  MemoryPlan plan;
  ASSERT_TRUE(Plan(DType::kF8E4M3, plan).ok());
  EXPECT_GE(PoolTokens(plan, DType::kF8E4M3), kMillion);
  EXPECT_LE(plan.weight_bytes + plan.workspace_bytes + plan.hidden_bytes + plan.kv_pool_bytes,
            141'000'000'000);
}

TEST_F(MemoryPlanTest, MillionTokensInBf16DoNot) {
  MemoryPlan plan;
  ASSERT_TRUE(Plan(DType::kBF16, plan).ok());
  EXPECT_LT(PoolTokens(plan, DType::kBF16), kMillion);
  config_.kv_cache_bytes = kMillion / kPageTokens * Layout(DType::kBF16).PageBytes();
  const absl::Status refused = Plan(DType::kBF16, plan);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("128.00 GiB"), std::string::npos) << refused;
}

// 32 layers in 11 sizes of steps: 1, 2, 4, 8, 16, ..., 64.
TEST_F(MemoryPlanTest, RecordedStepsHaveTheirRoom) {
  MemoryPlan eager;
  ASSERT_TRUE(Plan(DType::kBF16, eager).ok());
  MemoryPlan recorded;
  recorded.recorded = CountRecordedSteps(config_, model_);
  EXPECT_EQ(recorded.recorded.n_recordings, 11);
  EXPECT_GT(recorded.recorded.n_bytes, 11 * 32 * 10 * 4096);
  EXPECT_LT(recorded.recorded.n_bytes, 200'000'000);
  ASSERT_TRUE(Plan(DType::kBF16, recorded).ok());
  const int64_t page_bytes = Layout(DType::kBF16).PageBytes();
  EXPECT_LE(recorded.kv_pool_bytes + recorded.recorded.n_bytes, eager.kv_pool_bytes + page_bytes);
  EXPECT_GE(recorded.kv_pool_bytes + recorded.recorded.n_bytes, eager.kv_pool_bytes - page_bytes);
  // The rest of the card, of which a twentieth is left by the configured share.
  EXPECT_NEAR(static_cast<double>(recorded.reserve_bytes), 0.05 * 141e9, 1.1 * page_bytes);

  config_.max_num_seqs = 3;
  EXPECT_EQ(CountRecordedSteps(config_, model_).n_recordings, 3);
  config_.enforce_eager = true;
  EXPECT_EQ(CountRecordedSteps(config_, model_).n_recordings, 0);
  EXPECT_EQ(CountRecordedSteps(config_, model_).n_bytes, 0);
}

TEST(RecordedPlacesTest, OneTwoFourAndMultiplesOfEight) {
  const int64_t places[] = {1, 2, 4, 4, 8, 8, 8, 8, 11, 11, 11};
  for (int64_t n = 1; n <= 11; ++n) EXPECT_EQ(RecordedPlaces(n, 11), places[n - 1]) << n;
}

TEST_F(MemoryPlanTest, PoolSmallerThanAPage) {
  config_.kv_cache_bytes = Layout(DType::kF8E4M3).PageBytes() - 1;
  MemoryPlan plan;
  EXPECT_EQ(Plan(DType::kF8E4M3, plan).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace longhaul
