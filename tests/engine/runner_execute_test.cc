// Steps of the real executor on a tiny model: what must not change a bit, what sparse prefill
// reports, and what is refused while loading.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/head_budgets.h"
#include "kernels/draw_token.h"
#include "kernels/select_keys.h"
#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using testing::DecodeOne;
using testing::DrivenSequence;
using ::testing::HasSubstr;
using testing::MakeSequence;
using testing::Prefill;
using testing::RandomTokens;
using testing::RunSlice;
using testing::SliceOf;

constexpr int64_t kEpoch = 256;
constexpr int32_t kLayers = 2;
constexpr int64_t kHeadCells = 4;  // heads of one layer

SparseOptions Sample(float alpha) {
  return {.mode = SparseMode::kSample,
          .alpha = alpha,
          .sink = 16,
          .window = 64,
          .sampled_rows = 24,
          .tail_rows = 8,
          .audit_rows = 8,
          .dense_tail_tokens = 32};
}

class RunnerTest : public ::testing::TestWithParam<const char*> {
 protected:
  RunnerTest() { testing::WriteTinyModel(dir_); }

  static EngineConfig Config(int64_t kv_cache_bytes = 4 << 20) {
    EngineConfig config;
    config.kv_cache_bytes = kv_cache_bytes;
    config.epoch_tokens = kEpoch;
    return config;
  }
  std::unique_ptr<Executor> Load(EngineConfig config = Config()) {
    auto runner = LoadRunner(dir_.path(), testing::MakeBackend(GetParam()), config, nullptr);
    EXPECT_TRUE(runner.ok()) << runner.status();
    return std::move(*runner);
  }
  std::vector<float> PrefillOnce(const std::vector<int32_t>& prompt, const SparseOptions& sparse,
                                 SparseReport* report = nullptr) {
    const auto executor = Load();
    DrivenSequence s = MakeSequence(prompt, 0);
    s.sparse = sparse;
    auto logits = Prefill(*executor, s, kEpoch);
    if (report != nullptr) *report = s.report;
    return logits;
  }

  testing::TempDir dir_;
  const std::vector<int32_t> prompt_ = RandomTokens(1000, 64, 3);
};

// Of a prompt of n tokens: all of its triangle, but of the last layer its last row.
int64_t ComputedPairs(int64_t n) { return kHeadCells * ((kLayers - 1) * CausalPairs({0, n}) + n); }

float MaxError(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float error = 0;
  for (size_t i = 0; i < a.size(); ++i) error = std::max(error, std::abs(a[i] - b[i]));
  return error;
}

TEST_P(RunnerTest, OrderOfSlicesDoesNotChangeABit) {
  for (const SparseOptions& sparse : {SparseOptions{.mode = SparseMode::kDense}, Sample(0.6f)}) {
    const auto executor = Load();
    DrivenSequence whole = MakeSequence(prompt_, 0);
    DrivenSequence by_layer = MakeSequence(prompt_, 40, -1);
    DrivenSequence layer_major = MakeSequence(prompt_, 60);
    for (DrivenSequence* s : {&whole, &by_layer, &layer_major}) s->sparse = sparse;

    const auto expected = Prefill(*executor, whole, kEpoch);
    EXPECT_EQ(Prefill(*executor, by_layer, kEpoch, 1), expected);

    // All epochs of a layer before the next layer; each epoch's state waits in a slot of its own.
    std::vector<float> logits;
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int64_t begin = 0; begin < 1000; begin += kEpoch) {
        layer_major.hidden_slot = static_cast<int32_t>(begin / kEpoch);
        logits = RunSlice(
            *executor, layer_major,
            SliceOf(layer_major, begin, std::min<int64_t>(begin + kEpoch, 1000), layer, layer + 1));
      }
    }
    EXPECT_EQ(logits, expected);
    EXPECT_EQ(layer_major.state.alpha, whole.state.alpha);
    EXPECT_EQ(layer_major.report.kept_pairs, whole.report.kept_pairs);
    EXPECT_EQ(layer_major.report.n_recalls, whole.report.n_recalls);
  }
}

TEST_P(RunnerTest, APauseWhileOthersRunDoesNotChangeABit) {
  const auto executor = Load();
  DrivenSequence alone = MakeSequence(prompt_, 0);
  alone.sparse = Sample(0.6f);
  const auto expected = Prefill(*executor, alone, kEpoch);

  DrivenSequence paused = MakeSequence(prompt_, 16);
  paused.sparse = Sample(0.6f);
  DrivenSequence other = MakeSequence(RandomTokens(300, 64, 5), 32, 1, 400);
  other.hidden_slot = 1;
  std::vector<float> logits;
  for (int64_t begin = 0; begin < 1000; begin += kEpoch) {
    const int64_t end = std::min<int64_t>(begin + kEpoch, 1000);
    RunSlice(*executor, paused, SliceOf(paused, begin, end, 0, 1));
    if (begin == 0) {
      Prefill(*executor, other, kEpoch);
    } else {
      DecodeOne(*executor, other, 7);
    }
    logits = RunSlice(*executor, paused, SliceOf(paused, begin, end, 1, 2));
  }
  EXPECT_EQ(logits, expected);
}

TEST_P(RunnerTest, ACachedPrefixGivesTheBitsOfAColdPrompt) {
  for (const SparseOptions& sparse : {SparseOptions{.mode = SparseMode::kDense}, Sample(0.6f)}) {
    const auto executor = Load();
    // The first prompt shares 512 tokens with the second, and nothing behind them.
    std::vector<int32_t> first_prompt = RandomTokens(900, 64, 11);
    std::copy_n(prompt_.begin(), 512, first_prompt.begin());
    DrivenSequence first = MakeSequence(first_prompt, 0);
    first.sparse = sparse;
    SparseState at_border;
    for (int64_t begin = 0; begin < 512; begin += kEpoch) {
      RunSlice(*executor, first, SliceOf(first, begin, begin + kEpoch, 0, kLayers));
      at_border = first.state;
    }
    Prefill(*executor, first, kEpoch, 0, 512);

    DrivenSequence cold = MakeSequence(prompt_, 20);
    cold.sparse = sparse;
    const auto expected = Prefill(*executor, cold, kEpoch);
    DrivenSequence cached = MakeSequence(prompt_, 40);
    cached.sparse = sparse;
    cached.state = at_border;
    std::copy_n(first.pages.begin(), 512 / 64, cached.pages.begin());
    EXPECT_EQ(Prefill(*executor, cached, kEpoch, 0, 512), expected);
    EXPECT_EQ(cached.state.alpha, cold.state.alpha);
  }
}

TEST_P(RunnerTest, EveryModeWithNothingLeftOutEqualsDense) {
  SparseReport report;
  const auto dense = PrefillOnce(prompt_, {.mode = SparseMode::kDense}, &report);
  EXPECT_EQ(report.Density(), 1.0);
  EXPECT_EQ(report.causal_pairs, ComputedPairs(1000));
  EXPECT_EQ(report.n_recalls, 0);
  // alpha = 1 takes the dense path: equal bits.
  EXPECT_EQ(PrefillOnce(prompt_, Sample(1.0f)), dense);
  // A window that holds everything, and auto below its crossover.
  EXPECT_EQ(PrefillOnce(prompt_, {.mode = SparseMode::kStreaming, .window = 1024}), dense);
  EXPECT_EQ(PrefillOnce(prompt_, {.mode = SparseMode::kAuto, .alpha = 0.5f}), dense);
  // Budgets that cover everything, in the sparse path.
  const SparseOptions all_budget{.mode = SparseMode::kVerticalSlash, .columns = 1 << 20};
  EXPECT_LT(MaxError(PrefillOnce(prompt_, all_budget, &report), dense), 1e-4f);
  EXPECT_EQ(report.n_dense, report.n_head_epochs);
  EXPECT_GT(report.n_head_epochs, 0);
  EXPECT_EQ(report.Density(), 1.0);
  // A floor that no head reaches: everything is repaired, in the sparse path.
  SparseOptions all_repaired = Sample(0.3f);
  all_repaired.recall_floor = 1.0f;
  EXPECT_LT(MaxError(PrefillOnce(prompt_, all_repaired, &report), dense), 1e-4f);
  EXPECT_GT(report.n_repaired, 0);
  EXPECT_EQ(report.recall_min, 1.0f);
  EXPECT_EQ(report.Density(), 1.0);
}

TEST_P(RunnerTest, SparseModesReportWhatTheyKept) {
  SparseReport dense_report, report;
  const auto dense = PrefillOnce(prompt_, {.mode = SparseMode::kDense}, &dense_report);
  for (SparseMode mode : {SparseMode::kSample, SparseMode::kPaper, SparseMode::kStreaming}) {
    SCOPED_TRACE(SparseModeName(mode));
    SparseOptions sparse = Sample(0.8f);
    sparse.mode = mode;
    sparse.recall_floor = 0.0f;
    const auto logits = PrefillOnce(prompt_, sparse, &report);
    EXPECT_EQ(report.causal_pairs, dense_report.causal_pairs);
    EXPECT_LT(report.kept_pairs, report.causal_pairs);
    EXPECT_GT(report.n_recalls, 0);
    EXPECT_GT(report.n_head_epochs, 0);
    EXPECT_EQ(report.n_repaired, 0);
    EXPECT_GT(MaxError(logits, dense), 0.0f);
    HeadReport heads;  // all but the exact tail of the prompt
    ASSERT_EQ(report.heads.size(), size_t{kHeadCells * kLayers});
    for (const HeadReport& head : report.heads) heads.Merge(head);
    EXPECT_EQ(heads.n_epochs, report.n_head_epochs);
    EXPECT_EQ(heads.causal_pairs - heads.kept_pairs, report.causal_pairs - report.kept_pairs);
    EXPECT_EQ(heads.n_streaming, report.n_streaming);
    EXPECT_EQ(heads.n_dense, report.n_dense);
    EXPECT_EQ(heads.n_recalls, report.n_recalls);
    EXPECT_NEAR(heads.recall_sum, report.recall_sum, 1e-3);
    EXPECT_LE(report.recall_min, report.RecallMean());
    EXPECT_LE(report.RecallPercentile(1), report.RecallPercentile(50));
    // Attention of random weights has no structure to find: more than the local keys, not alpha.
    EXPECT_GT(report.RecallMean(), mode == SparseMode::kStreaming ? 0.2 : 0.4);
  }
}

TEST_P(RunnerTest, VerticalSlashFollowsItsBudgetsNotAlpha) {
  SparseOptions sparse{.mode = SparseMode::kVerticalSlash, .columns = 100, .diagonals = 256};
  SparseReport report, other_report;
  const auto logits = PrefillOnce(prompt_, sparse, &report);
  EXPECT_LT(report.Density(), 0.9);
  EXPECT_GT(report.n_head_epochs, 0);
  EXPECT_EQ(report.n_dense,
            kHeadCells * (kLayers - 1));  // 256 diagonals are all of the first epoch
  EXPECT_EQ(report.n_repaired + report.n_streaming, 0);
  EXPECT_GT(report.RecallMean(), 0.4);
  for (float alpha : {0.1f, 1.0f}) {
    sparse.alpha = alpha;
    EXPECT_EQ(PrefillOnce(prompt_, sparse, &other_report), logits);
    EXPECT_EQ(other_report.kept_pairs, report.kept_pairs);
  }
  // One head of the first layer gets nothing but its sink and window, the others everything.
  const char* all = R"(["vertical_and_slash", 100000, 100, 1])";
  const char* local = R"(["stream_llm", 30, 128, 1])";
  sparse.head_budgets = std::make_shared<const HeadBudgets>(
      ParseHeadBudgets(fmt::format(
                           R"([{{"0": {0}, "1": {1}, "2": {0}, "3": {0}}},
                               {{"0": {0}, "1": {0}, "2": {0}, "3": {0}}}])",
                           all, local))
          .value());
  PrefillOnce(prompt_, sparse, &report);
  EXPECT_EQ(report.n_streaming * kHeadCells * (kLayers - 1), report.n_head_epochs);
  EXPECT_EQ(report.n_dense + report.n_streaming, report.n_head_epochs);
}

TEST_P(RunnerTest, StreamingKeepsExactlyTheLocalPairs) {
  SparseReport report;
  SparseOptions sparse = Sample(0.8f);
  sparse.mode = SparseMode::kStreaming;
  PrefillOnce(prompt_, sparse, &report);
  const LocalPattern local{.sink = sparse.sink, .window = sparse.window};
  // Rows [0, 968) stream; the 32 last ones are exact.
  const int64_t kept = LocalPairs({0, 968}, local) + CausalPairs({968, 1000});
  EXPECT_EQ(report.kept_pairs, kHeadCells * ((kLayers - 1) * kept + 1000));
  EXPECT_EQ(report.n_streaming, report.n_head_epochs);
  EXPECT_EQ(report.n_head_epochs, kHeadCells * (kLayers - 1) * 4);
}

TEST_P(RunnerTest, ARepairRaisesAlphaForTheNextEpochs) {
  const auto executor = Load();
  DrivenSequence s = MakeSequence(prompt_, 0);
  s.sparse = Sample(0.4f);
  s.sparse.recall_floor = 0.9f;
  Prefill(*executor, s, kEpoch);
  ASSERT_GT(s.report.n_repaired, 0);
  ASSERT_EQ(s.state.alpha.size(), 8u);
  int64_t n_raised = 0;
  for (float alpha : s.state.alpha) {
    EXPECT_GE(alpha, 0.4f);
    n_raised += alpha > 0.4f;
  }
  EXPECT_GT(n_raised, 0);
}

// Against a prompt all of whose rows are read: the same logits, and the same bits in the KV cache.
TEST_P(RunnerTest, OnlyRowsThatAreReadPassTheLastLayer) {
  for (const SparseOptions& sparse : {SparseOptions{.mode = SparseMode::kDense}, Sample(0.6f)}) {
    const auto executor = Load();
    DrivenSequence last_read = MakeSequence(prompt_, 0, 1, 1001);
    DrivenSequence all_read = MakeSequence(prompt_, 20, 1, 1001);
    last_read.sparse = all_read.sparse = sparse;
    const auto logits = Prefill(*executor, last_read, kEpoch);
    std::vector<float> expected;
    for (int64_t begin = 0; begin < 1000; begin += kEpoch) {
      const int64_t end = std::min<int64_t>(begin + kEpoch, 1000);
      PrefillSlice slice = SliceOf(all_read, begin, end, 0, kLayers);
      slice.logprob_tokens =
          std::span<const int32_t>(prompt_).subspan(begin + 1, std::min<int64_t>(end, 999) - begin);
      expected = RunSlice(*executor, all_read, slice);
    }
    EXPECT_LT(MaxError(logits, expected), 1e-4f);
    EXPECT_EQ(DecodeOne(*executor, last_read, 7), DecodeOne(*executor, all_read, 7));

    EXPECT_EQ(last_read.report.causal_pairs, ComputedPairs(1000));
    EXPECT_EQ(all_read.report.causal_pairs, kHeadCells * kLayers * CausalPairs({0, 1000}));
    const bool sampled = sparse.mode == SparseMode::kSample;
    for (int64_t head = (kLayers - 1) * kHeadCells; head < kLayers * kHeadCells; ++head) {
      EXPECT_EQ(last_read.report.heads[head].n_epochs, 0);
      EXPECT_EQ(all_read.report.heads[head].n_epochs > 0, sampled);
    }
  }
}

TEST_P(RunnerTest, PromptEndsAndTinyEpochs) {
  // Lengths around the epoch grid and the dense tail: one-row epochs, epochs within the tail.
  for (int64_t n : {1, 31, 33, 255, 256, 257, 288, 289, 512, 513}) {
    std::vector<int32_t> prompt(prompt_.begin(), prompt_.begin() + n);
    SparseReport report;
    const auto logits = PrefillOnce(prompt, Sample(0.9f), &report);
    EXPECT_EQ(logits.size(), 64u);
    for (float logit : logits) EXPECT_TRUE(std::isfinite(logit)) << n;
    // 112 = sink + window + dense tail: below, nothing is sparse. 63: one epoch too small to
    // sample.
    EXPECT_EQ(report.n_head_epochs > 0, n > 112) << n;
    EXPECT_LE(report.kept_pairs, report.causal_pairs) << n;
    EXPECT_EQ(report.causal_pairs, ComputedPairs(n)) << n;
  }
}

TEST_P(RunnerTest, MixedStepOfDecodeRowsAndSlices) {
  const auto executor = Load();
  DrivenSequence a = MakeSequence(RandomTokens(70, 64, 1), 0, 1, 100);
  DrivenSequence b = MakeSequence(RandomTokens(130, 64, 2), 10, 1, 200);
  DrivenSequence c = MakeSequence(RandomTokens(90, 64, 4), 20);
  Prefill(*executor, a, kEpoch);
  Prefill(*executor, b, kEpoch);
  DrivenSequence a_alone = a;
  const auto expected_a = DecodeOne(*executor, a_alone, 3);
  const auto expected_c = Prefill(*executor, c, kEpoch);

  // Copy on write: b decodes in a copy of its last page; a and a prefill share the step.
  const int32_t old_page = b.pages[2];
  DrivenSequence b_alone = b;
  const auto expected_b = DecodeOne(*executor, b_alone, 5);
  StepPlan plan;
  plan.copies.push_back({.src = old_page, .dst = 50});
  b.pages[2] = 50;
  plan.decode.push_back({.token = 3, .position = 70, .pages = a.pages});
  plan.decode.push_back({.token = 5, .position = 130, .pages = std::span(b.pages).first(3)});
  DrivenSequence c2 = MakeSequence(c.tokens, 30);
  c2.hidden_slot = 2;
  plan.prefill.push_back(SliceOf(c2, 0, 90, 0, kLayers));
  const auto result = executor->Execute(plan);
  ASSERT_TRUE(result.ok());
  const auto vec = [](std::span<const float> s) { return std::vector<float>(s.begin(), s.end()); };
  EXPECT_LT(MaxError(vec(result->decode[0].logits), expected_a), 1e-4f);
  EXPECT_LT(MaxError(vec(result->decode[1].logits), expected_b), 1e-4f);
  EXPECT_EQ(vec(result->slices[0].logits), expected_c);
}

TEST_P(RunnerTest, RowsThatDrawAnswerWithTheTokenOfTheirLogits) {
  const auto executor = Load();
  DrivenSequence a = MakeSequence(RandomTokens(70, 64, 1), 0, 1, 100);
  DrivenSequence b = MakeSequence(RandomTokens(130, 64, 2), 10, 1, 200);
  Prefill(*executor, a, kEpoch);
  Prefill(*executor, b, kEpoch);
  StepPlan plan;
  plan.decode.push_back({.token = 3, .position = 70, .pages = std::span(a.pages).first(2)});
  plan.decode.push_back({.token = 5, .position = 130, .pages = std::span(b.pages).first(3)});
  std::vector<std::vector<float>> logits;
  const auto with_logits = executor->Execute(plan);
  ASSERT_TRUE(with_logits.ok());
  for (const RowResult& row : with_logits->decode) {
    logits.emplace_back(row.logits.begin(), row.logits.end());
  }
  const std::vector<TokenDraw> draws = {
      {}, {.temperature = 3, .random = 1u << 31}, {.temperature = 3, .random = ~uint64_t{0}}};
  std::vector<uint32_t> scratch;
  for (const TokenDraw& draw : draws) {
    for (const bool both : {false, true}) {  // the step again: it writes the same keys and values
      plan.decode[0].draw = both ? std::optional(draw) : std::nullopt;
      plan.decode[1].draw = draw;
      const auto result = executor->Execute(plan);
      ASSERT_TRUE(result.ok());
      ASSERT_EQ(result->decode[0].logits.empty(), both);
      ASSERT_TRUE(result->decode[1].logits.empty());
      if (both) {
        EXPECT_EQ(result->decode[0].token, DrawToken(logits[0], draw, scratch));
      }
      EXPECT_EQ(result->decode[1].token, DrawToken(logits[1], draw, scratch));
    }
  }
}

TEST_P(RunnerTest, RefusesAStepLargerThanItWasMadeFor) {
  EngineConfig config = Config();
  config.max_num_seqs = 1;
  const auto executor = Load(config);
  DrivenSequence s = MakeSequence(RandomTokens(10, 64, 1), 0);
  StepPlan plan;
  plan.decode.resize(2, {.token = 1, .position = 3, .pages = s.pages});
  EXPECT_EQ(executor->Execute(plan).status().code(), absl::StatusCode::kInternal);
}

TEST_P(RunnerTest, CompletesTheConfig) {
  EngineConfig config = Config(1 << 20);
  MemoryPlan plan;
  const auto runner = LoadRunner(dir_.path(), testing::MakeBackend(GetParam()), config, &plan);
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_EQ(config.max_model_len, 8192);
  EXPECT_NE(config.model_digest, 0u);
  // 2 layers, 2 kv heads, K and V of 64 tokens of 16 floats.
  EXPECT_EQ((*runner)->n_pages(), (1 << 20) / (2 * 2 * 2 * 64 * 16 * 4));
  EXPECT_EQ(plan.kv_pool_bytes, 1 << 20);
  EXPECT_GT(plan.weight_bytes, 0);
  EXPECT_GT(plan.workspace_bytes, 0);
  EXPECT_EQ(plan.hidden_bytes, config.max_prefills * kEpoch * 32 * 4);
  EXPECT_EQ(plan.layer_store_bytes, 0);
  EXPECT_EQ((*runner)->shape().n_parameters,
            2 * 64 * 32 + 32 + 2 * (2 * 32 + 2 * 64 * 32 + 2 * 32 * 32 + 3 * 24 * 32));

  // The workspace grows with the length, not with its square.
  EngineConfig half = Config(1 << 20);
  half.max_model_len = 4096;
  MemoryPlan half_plan;
  ASSERT_TRUE(LoadRunner(dir_.path(), testing::MakeBackend(GetParam()), half, &half_plan).ok());
  EXPECT_LT(half_plan.workspace_bytes, plan.workspace_bytes);
  EXPECT_LE(plan.workspace_bytes, 2 * half_plan.workspace_bytes);

  // Layer by layer: the hidden state of a whole prompt.
  half.prefill_order = PrefillOrder::kLayer;
  ASSERT_TRUE(LoadRunner(dir_.path(), testing::MakeBackend(GetParam()), half, &half_plan).ok());
  EXPECT_EQ(half_plan.layer_store_bytes, 4096 * 32 * 4);
}

// Whatever the linear layers are computed in, and unless the config says otherwise.
TEST_P(RunnerTest, TheKvCacheIsOfTheTypeOfTheCheckpoint) {
  const auto kv_dtype = [&](const std::string& model_dir, EngineConfig config) {
    config.max_model_len = 256;
    EXPECT_TRUE(LoadRunner(model_dir, testing::MakeBackend(GetParam()), config, nullptr).ok());
    return config.kv_dtype;
  };
  EngineConfig int8 = Config(1 << 20);
  int8.weight_format = WeightFormat::kInt8;
  EXPECT_EQ(kv_dtype(dir_.path(), Config(1 << 20)), DType::kF32);
  EXPECT_EQ(kv_dtype(dir_.path(), int8), DType::kF32);
  EXPECT_EQ(kv_dtype("models/lookup", Config(1 << 20)), DType::kBF16);
  EXPECT_EQ(kv_dtype("models/lookup", int8), DType::kBF16);
  EngineConfig fp8 = Config(1 << 20);
  fp8.kv_dtype = DType::kF8E4M3;
  EXPECT_EQ(kv_dtype("models/lookup", fp8), DType::kF8E4M3);
}

TEST_P(RunnerTest, TheLayerStoreHoldsAWholePromptAndBorderStates) {
  EngineConfig config = Config();
  config.prefill_order = PrefillOrder::kLayer;
  const auto executor = Load(config);
  DrivenSequence expected = MakeSequence(prompt_, 0);
  DrivenSequence s = MakeSequence(prompt_, 20);
  expected.sparse = s.sparse = Sample(0.6f);
  std::vector<SparseState> expected_borders;
  std::vector<float> expected_logits;
  for (int64_t begin = 0; begin < 1000; begin += kEpoch) {
    const int64_t end = std::min<int64_t>(begin + kEpoch, 1000);
    expected_logits = RunSlice(*executor, expected, SliceOf(expected, begin, end, 0, kLayers));
    expected_borders.push_back(expected.state);
  }

  // All of it in one step.
  std::vector<SparseState> borders(expected_borders.size());
  for (SparseState& border : borders) border.alpha.resize(kLayers * kHeadCells);
  StepPlan plan;
  s.hidden_slot = static_cast<int32_t>(config.max_prefills);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int64_t begin = 0; begin < 1000; begin += kEpoch) {
      plan.prefill.push_back(
          SliceOf(s, begin, std::min<int64_t>(begin + kEpoch, 1000), layer, layer + 1));
      plan.prefill.back().border_state = &borders[begin / kEpoch];
    }
  }
  const auto result = executor->Execute(plan);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto logits = result->slices.back().logits;
  EXPECT_EQ(std::vector<float>(logits.begin(), logits.end()), expected_logits);
  for (size_t i = 0; i < borders.size(); ++i) {
    EXPECT_EQ(borders[i].alpha, expected_borders[i].alpha) << i;
  }
  EXPECT_NE(borders.front().alpha, borders.back().alpha) << "else this would show nothing";
}

TEST_P(RunnerTest, TheDigestTellsModelsApart) {
  const auto digest = [&](const testing::TempDir& dir) {
    EngineConfig config = Config(1 << 20);
    EXPECT_TRUE(LoadRunner(dir.path(), testing::MakeBackend(GetParam()), config, nullptr).ok());
    return config.model_digest;
  };
  testing::TempDir same, other_weights, other_config;
  testing::WriteTinyModel(same);
  auto tensors = testing::TinyTensors();
  tensors["model.layers.1.mlp.up_proj.weight"].values[5] += 1e-3f;
  testing::WriteTinyModel(other_weights, tensors);
  std::string config = testing::kTinyConfig;
  config.replace(config.find("10000.0"), 7, "20000.0");
  testing::WriteTinyModel(other_config, testing::TinyTensors(), config);
  EngineConfig bf16 = Config(1 << 20);
  bf16.kv_dtype = DType::kBF16;
  ASSERT_TRUE(LoadRunner(dir_.path(), testing::MakeBackend(GetParam()), bf16, nullptr).ok());
  EXPECT_EQ(digest(same), digest(dir_));
  EXPECT_NE(bf16.model_digest, digest(dir_));
  EXPECT_NE(digest(other_weights), digest(dir_));
  EXPECT_NE(digest(other_config), digest(dir_));
}

TEST_P(RunnerTest, RefusesWhatCannotWork) {
  const auto status = [&](EngineConfig config) {
    return LoadRunner(dir_.path(), testing::MakeBackend(GetParam()), config, nullptr).status();
  };
  EngineConfig longer = Config();
  longer.max_model_len = 8193;
  const auto too_long = status(longer);
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_long.message()), HasSubstr("8192"));
  const auto too_large = status(Config(int64_t{1} << 48));
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(too_large.message()), HasSubstr("GiB of this machine"));
  EngineConfig by_layer = Config(int64_t{1} << 48);
  by_layer.prefill_order = PrefillOrder::kLayer;
  EXPECT_THAT(std::string(status(by_layer).message()), HasSubstr("layer by layer"));
  const auto too_small = status(Config(100));
  EXPECT_EQ(too_small.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_small.message()), HasSubstr("one page"));

  EngineConfig config;
  const auto nowhere =
      LoadRunner("/nonexistent", testing::MakeBackend(GetParam()), config, nullptr);
  EXPECT_EQ(nowhere.status().code(), absl::StatusCode::kNotFound);

  EngineConfig budgets = Config();
  budgets.sparse.mode = SparseMode::kVerticalSlash;
  budgets.sparse.head_budgets = std::make_shared<const HeadBudgets>(
      ParseHeadBudgets(R"([{"0": ["vertical_and_slash", 100, 100, 1]}])").value());
  const auto other_model = status(budgets);
  EXPECT_EQ(other_model.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(other_model.message()), HasSubstr("the model has 2 with 4"));
}

INSTANTIATE_TEST_SUITE_P(Backends, RunnerTest, ::testing::Values("ref", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longhaul
