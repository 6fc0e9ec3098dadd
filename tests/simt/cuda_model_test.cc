// Models on the CUDA backend, from their weights to their tokens, on the emulated device.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "tests/engine/tiny_model.h"
#include "tests/simt/kernel_test.h"

namespace longhaul {
namespace {

// Tokens of models/lookup.
constexpr int32_t kBeginOfText = 2044, kEndOfText = 2045, kParagraph = 1257, kFirstWord = 1258;
// "The code of stern market is #", and "243606557.\n".
const std::vector<int32_t> kQuestion = {1845, 1799, 1761, 1349, 1494, 1810, 1256};
const std::vector<int32_t> kAnswer = {499, 862, 813, kParagraph};

std::vector<int32_t> Haystack(int64_t n_tokens) {
  std::vector<int32_t> prompt = {kBeginOfText};
  prompt.insert(prompt.end(), kQuestion.begin(), kQuestion.end());
  prompt.insert(prompt.end(), kAnswer.begin(), kAnswer.end());
  std::mt19937 rng(17);
  while (static_cast<int64_t>(prompt.size() + kQuestion.size()) < n_tokens) {
    prompt.push_back(static_cast<int32_t>(kFirstWord + rng() % 500));
  }
  prompt.insert(prompt.end(), kQuestion.begin(), kQuestion.end());
  return prompt;
}

// Greedy tokens of one prompt, and the report of its prefill.
std::vector<int32_t> Generate(std::unique_ptr<Backend> backend, const std::string& mode,
                              SparseReport& report, DType kv_dtype = DType::kBF16) {
  constexpr int64_t kTokens = 390;
  EngineConfig config;
  config.max_model_len = 512;
  config.kv_cache_bytes = 2 << 20;
  config.kv_dtype = kv_dtype;
  config.epoch_tokens = 128;
  config.max_num_seqs = 2;
  config.max_prefills = 1;
  auto executor = LoadRunner("models/lookup", std::move(backend), config, nullptr);
  EXPECT_TRUE(executor.ok()) << executor.status();
  if (!executor.ok()) return {};
  testing::DrivenSequence s = testing::MakeSequence(Haystack(kTokens), 0, 1, kTokens + 8);
  s.sparse.mode = *ParseSparseMode(mode);
  s.sparse.window = 64;
  s.sparse.sink = 16;
  const auto best = [](const std::vector<float>& logits) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  };
  std::vector<int32_t> output = {best(testing::Prefill(**executor, s, config.epoch_tokens))};
  while (output.size() < 5) {
    output.push_back(best(testing::DecodeOne(**executor, s, output.back())));
  }
  report = s.report;
  return output;
}

TEST(CudaModelTest, GivesTheTokensOfTheCpu) {
  std::vector<int32_t> expected = kAnswer;
  expected.push_back(kEndOfText);
  for (const std::string mode : {"dense", "sample", "paper", "streaming", "vertical_slash"}) {
    SparseReport cpu_report, cuda_report;
    const std::vector<int32_t> cpu = Generate(CreateCpuBackend(2), mode, cpu_report);
    simt::SetSeed(5);
    const std::vector<int32_t> cuda = Generate(CreateCudaBackend().value(), mode, cuda_report);
    simt::Reset();
    EXPECT_EQ(cuda, cpu) << mode;
    EXPECT_EQ(cuda_report.causal_pairs, cpu_report.causal_pairs) << mode;
    EXPECT_EQ(cuda_report.n_head_epochs, cpu_report.n_head_epochs) << mode;
    EXPECT_NEAR(cuda_report.Density(), cpu_report.Density(), 0.05) << mode;
    EXPECT_NEAR(cuda_report.RecallMean(), cpu_report.RecallMean(), 0.01) << mode;
    if (mode != "streaming") {
      EXPECT_EQ(cuda, expected) << mode;
    }
  }
}

TEST(CudaModelTest, AnswersFromACacheInFp8) {
  std::vector<int32_t> expected = kAnswer;
  expected.push_back(kEndOfText);
  SparseReport report;
  EXPECT_EQ(Generate(CreateCudaBackend().value(), "sample", report, DType::kF8E4M3), expected);
  EXPECT_GE(report.RecallMean(), 0.95);
  simt::Reset();
}

// Tokens of sequences that decode together, one more of them in every second step, none of which
// ever ends; every second one draws, the others take their logits home.
std::vector<std::vector<int32_t>> GenerateTogether(bool enforce_eager) {
  constexpr int64_t kSequences = 5;
  constexpr int64_t kPrompt = 24;
  EngineConfig config;
  config.max_model_len = 192;
  config.kv_cache_bytes = 2 << 20;
  config.epoch_tokens = 128;
  config.max_num_seqs = kSequences;
  config.max_prefills = 1;
  config.enforce_eager = enforce_eager;
  auto runner = LoadRunner("models/lookup", CreateCudaBackend().value(), config, nullptr);
  EXPECT_TRUE(runner.ok()) << runner.status();
  if (!runner.ok()) return {};
  std::vector<testing::DrivenSequence> sequences;
  std::vector<std::vector<int32_t>> output;
  for (int step = 0; step < 2 * kSequences; ++step) {
    if (step % 2 == 0) {
      const auto i = static_cast<int32_t>(sequences.size());
      sequences.push_back(
          testing::MakeSequence(Haystack(kPrompt + 13 * i), i, kSequences, config.max_model_len));
      const std::vector<float> logits =
          testing::Prefill(**runner, sequences.back(), config.epoch_tokens);
      output.push_back(
          {static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())});
    }
    StepPlan plan;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto position = static_cast<int64_t>(sequences[i].n_prompt + output[i].size() - 1);
      plan.decode.push_back(
          {.token = output[i].back(),
           .position = position,
           .pages =
               std::span<const int32_t>(sequences[i].pages).first(position / kPageTokens + 1)});
      if (i % 2 == 1) {
        plan.decode.back().draw = TokenDraw{.temperature = 2, .top_k = 50, .random = 77u << step};
      }
    }
    const auto result = (*runner)->Execute(plan);
    EXPECT_TRUE(result.ok()) << result.status();
    for (size_t i = 0; i < sequences.size(); ++i) {
      const std::span<const float> logits = result->decode[i].logits;
      EXPECT_EQ(logits.empty(), plan.decode[i].draw.has_value());
      output[i].push_back(
          logits.empty() ? result->decode[i].token
                         : static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                                                logits.begin()));
    }
  }
  return output;
}

// Recordings of 1, 2, 4 and 5 places: contexts that grow over a page's end, places that are
// nobody's, prefills between them.
TEST(CudaModelTest, RecordedStepsGiveTheTokensOfEagerOnes) {
  simt::SetSeed(3);
  simt::TakeStatistics();
  const auto eager = GenerateTogether(/*enforce_eager=*/true);
  EXPECT_EQ(simt::TakeStatistics().n_graph_launches, 0);
  const auto recorded = GenerateTogether(/*enforce_eager=*/false);
  EXPECT_EQ(simt::TakeStatistics().n_graph_launches, 10 - 4);  // all but the first of each size
  simt::Reset();
  EXPECT_EQ(recorded, eager);
}

// ---- Dual chunk attention ----

// A random model with heads of 64 dimensions.
std::unique_ptr<Executor> LoadDualChunkModel(std::unique_ptr<Backend> backend,
                                             int64_t chunk_tokens) {
  const testing::TempDir dir;
  std::map<std::string, testing::TinyTensor> tensors = testing::TinyTensors();
  std::mt19937 rng(23);
  std::normal_distribution<float> normal(0, 0.35f);
  for (const std::string layer : {"model.layers.0.self_attn.", "model.layers.1.self_attn."}) {
    for (const auto& [name, n_out, n_in] : {std::tuple{"q_proj", 128, 32},
                                            {"k_proj", 64, 32},
                                            {"v_proj", 64, 32},
                                            {"o_proj", 32, 128}}) {
      testing::TinyTensor& tensor = tensors[layer + name + ".weight"];
      tensor.shape = {n_out, n_in};
      tensor.values.resize(n_out * n_in);
      for (float& x : tensor.values) x = normal(rng);
    }
  }
  WriteTinyModel(dir, tensors,
                 fmt::format(R"({{
      "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 24,
      "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
      "vocab_size": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
      "dual_chunk_attention_config": {{"chunk_size": {}, "local_size": 32,
                                      "original_max_position_embeddings": 100}}}})",
                             chunk_tokens + 32));
  EngineConfig config;
  config.max_model_len = 512;
  config.kv_cache_bytes = 1 << 20;
  config.kv_dtype = DType::kBF16;
  config.epoch_tokens = 128;
  config.max_num_seqs = 1;
  config.max_prefills = 1;
  auto runner = LoadRunner(dir.path(), std::move(backend), config, nullptr);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return runner.ok() ? *std::move(runner) : nullptr;
}

// The logits behind a prompt of almost four chunks of 64 and behind each of three more tokens.
std::vector<float> DualChunkLogits(std::unique_ptr<Backend> backend, const std::string& mode,
                                   int64_t chunk_tokens = 64) {
  const std::unique_ptr<Executor> executor = LoadDualChunkModel(std::move(backend), chunk_tokens);
  if (executor == nullptr) return {};
  testing::DrivenSequence s =
      testing::MakeSequence(testing::RandomTokens(254, 64, 31), 0, 1, /*n_tokens=*/300);
  s.sparse.mode = *ParseSparseMode(mode);
  s.sparse.window = 64;
  s.sparse.sink = 16;
  std::vector<float> all = testing::Prefill(*executor, s, 128);
  for (int32_t token : {3, 14, 15}) {  // the third stands in the fifth chunk
    const std::vector<float> logits = testing::DecodeOne(*executor, s, token);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

// Root mean square of the differences, relative to the logits.
double RelativeDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double differences = 0, squares = 0;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    differences += (a[i] - b[i]) * (a[i] - b[i]);
    squares += a[i] * a[i];
  }
  return std::sqrt(differences / squares);
}

TEST(CudaModelTest, DualChunksGiveTheLogitsOfTheCpu) {
  constexpr double kError = 0.04;  // activations in bf16 here, in f32 there: 0.02 measured
  for (const std::string mode : {"dense", "streaming", "sample"}) {
    const std::vector<float> cpu = DualChunkLogits(CreateCpuBackend(1), mode);
    const std::vector<float> cuda = DualChunkLogits(CreateCudaBackend().value(), mode);
    EXPECT_LT(RelativeDifference(cpu, cuda), kError) << mode;
    // The same model as if all keys were near is another one.
    const std::vector<float> plain = DualChunkLogits(CreateCpuBackend(1), mode, 8192);
    EXPECT_GT(RelativeDifference(cpu, plain), 0.5) << mode;
  }
  simt::Reset();
}

TEST(CudaModelTest, AnswersOnHopper) {
  std::vector<int32_t> expected = kAnswer;
  expected.push_back(kEndOfText);
  simt::SetDeviceIsHopper(true);
  auto backend = CreateBackend(BackendKind::kCuda, 1).value();
  simt::TakeStatistics();
  SparseReport report;
  EXPECT_EQ(Generate(std::move(backend), "dense", report), expected);
  EXPECT_GT(simt::TakeStatistics().n_wgmma, 0);
  simt::SetDeviceIsHopper(false);
  simt::Reset();
}

}  // namespace
}  // namespace longhaul
