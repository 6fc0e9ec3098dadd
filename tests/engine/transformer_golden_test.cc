// The forward pass against Hugging Face transformers, or against a definition where it has none
// (dual chunk attention): tiny random checkpoints of each family, made by
// tools/goldens/make_model_goldens.py, with the logits of every position.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <tuple>

#include "engine/model/safetensors.h"
#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using testing::DecodeOne;
using testing::DrivenSequence;
using testing::MakeSequence;
using testing::Prefill;
using testing::SliceOf;

struct Golden {
  std::vector<int32_t> input_ids;
  std::vector<float> logits;  // [n_tokens, V]
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;

  int64_t n_tokens() const { return static_cast<int64_t>(input_ids.size()); }
  std::span<const float> At(int64_t position) const {
    return std::span(logits).subspan(position * vocab_size, vocab_size);
  }
};

Golden LoadGolden(const std::string& path) {
  const auto file = MappedFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  const auto tensors = ParseSafetensors(file->bytes(), "golden");
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  const StoredTensor& ids = tensors->at("input_ids");
  const StoredTensor& logits = tensors->at("logits");
  Golden golden;
  golden.input_ids.resize(ids.shape[0]);
  std::memcpy(golden.input_ids.data(), ids.data.data(), ids.data.size());
  golden.logits.resize(logits.shape[0] * logits.shape[1]);
  std::memcpy(golden.logits.data(), logits.data.data(), logits.data.size());
  golden.vocab_size = logits.shape[1];
  int32_t max_model_len;
  std::memcpy(&max_model_len, tensors->at("max_model_len").data.data(), sizeof(max_model_len));
  golden.max_model_len = max_model_len;
  return golden;
}

// Weights are widened exactly and all arithmetic is f32, in transformers too: only the order of
// sums, and its frequencies in f32, differ.
constexpr float kTolerance = 1e-4f;

class GoldenTest : public ::testing::TestWithParam<std::tuple<std::string, const char*>> {
 protected:
  // The largest error of each test is in its XML output.
  ~GoldenTest() override {
    RecordProperty("max_relative_error", fmt::format("{:.1e}", max_error_));
  }

  std::unique_ptr<Executor> Load(const Golden& golden, int64_t epoch_tokens,
                                 DType kv_dtype = DType::kF32,
                                 WeightFormat weight_format = WeightFormat::kF32) {
    EngineConfig config;
    config.epoch_tokens = epoch_tokens;
    config.max_model_len = golden.max_model_len;
    config.kv_cache_bytes = 1 << 20;
    config.kv_dtype = kv_dtype;
    config.weight_format = weight_format;
    auto runner = LoadRunner(Dir(), testing::MakeBackend(std::get<1>(GetParam())), config, nullptr);
    EXPECT_TRUE(runner.ok()) << runner.status();
    return std::move(*runner);
  }
  static std::string Dir() { return "tests/golden/models/" + std::get<0>(GetParam()); }
  static Golden Load() { return LoadGolden(Dir() + "/golden.safetensors"); }

  // Largest difference of two rows of logits, relative to the largest logit. The best token must be
  // the same where the error leaves no doubt.
  float RelativeError(std::span<const float> actual, std::span<const float> golden) {
    EXPECT_EQ(actual.size(), golden.size());
    float error = 0, largest = 0;
    for (size_t i = 0; i < golden.size(); ++i) {
      const float difference = std::abs(actual[i] - golden[i]);
      error = std::isnan(difference) ? HUGE_VALF : std::max(error, difference);
      largest = std::max(largest, std::abs(golden[i]));
    }
    const auto best = std::max_element(golden.begin(), golden.end());
    const auto ours = std::max_element(actual.begin(), actual.end());
    EXPECT_LE(*best - golden[ours - actual.begin()], 2 * error);
    max_error_ = std::max(max_error_, error / largest);
    return error / largest;
  }

  // Root mean square of the error of all positions, decoded one by one, relative to the logits.
  double ErrorOfAllRows(Executor& executor, const Golden& golden) {
    DrivenSequence s = MakeSequence({golden.input_ids[0]}, 0, 1, golden.n_tokens());
    Prefill(executor, s, 64);
    double error_squares = 0, squares = 0;
    for (int64_t i = 1; i < golden.n_tokens(); ++i) {
      const std::vector<float> logits = DecodeOne(executor, s, golden.input_ids[i]);
      for (int64_t v = 0; v < golden.vocab_size; ++v) {
        const double expected = golden.At(i)[v];
        error_squares += (logits[v] - expected) * (logits[v] - expected);
        squares += expected * expected;
      }
    }
    const double error = std::sqrt(error_squares / squares);
    max_error_ = static_cast<float>(error);
    return error;
  }

  float max_error_ = 0;
};

TEST_P(GoldenTest, PrefillOfManyLengths) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/256);
  for (int64_t n : {int64_t{1}, int64_t{2}, int64_t{63}, int64_t{64}, int64_t{65}, int64_t{128},
                    golden.n_tokens()}) {
    DrivenSequence s = MakeSequence({golden.input_ids.begin(), golden.input_ids.begin() + n}, 0);
    EXPECT_LT(RelativeError(Prefill(*executor, s, 256), golden.At(n - 1)), kTolerance)
        << n << " tokens";
  }
}

// Rope types that change beyond the original context, loaded for a shorter one.
class StretchedGoldenTest : public GoldenTest {};

TEST_P(StretchedGoldenTest, PrefillWithinTheOriginalContext) {
  const Golden golden = LoadGolden(Dir() + "/golden_short.safetensors");
  const auto executor = Load(golden, /*epoch_tokens=*/64);
  DrivenSequence s = MakeSequence(golden.input_ids, 0);
  EXPECT_LT(RelativeError(Prefill(*executor, s, 64), golden.At(golden.n_tokens() - 1)), kTolerance);
}

TEST_P(GoldenTest, PrefillCutInEpochsAndLayers) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64);
  DrivenSequence s = MakeSequence(golden.input_ids, /*first_page=*/10, /*stride=*/-3);
  const auto logits = Prefill(*executor, s, 64, /*layers_per_slice=*/1);
  EXPECT_LT(RelativeError(logits, golden.At(golden.n_tokens() - 1)), kTolerance);
}

TEST_P(GoldenTest, SampleWithAlphaOne) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64);
  DrivenSequence s = MakeSequence(golden.input_ids, 0);
  s.sparse = {.mode = SparseMode::kSample, .alpha = 1, .window = 64, .dense_tail_tokens = 1};
  EXPECT_LT(RelativeError(Prefill(*executor, s, 64), golden.At(golden.n_tokens() - 1)), kTolerance);
}

// A layer with a window leaves a sparse policy nothing to choose: whatever its budget, exact.
class WindowGoldenTest : public GoldenTest {};

TEST_P(WindowGoldenTest, StreamingIsExact) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/128);
  DrivenSequence s = MakeSequence(golden.input_ids, 0);
  s.sparse = {.mode = SparseMode::kStreaming, .sink = 0, .window = 64, .dense_tail_tokens = 0};
  EXPECT_LT(RelativeError(Prefill(*executor, s, 128), golden.At(golden.n_tokens() - 1)),
            kTolerance);
  EXPECT_EQ(s.report.Density(), 1.0);
}

TEST_P(GoldenTest, DecodeOfEveryPosition) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64);
  const int64_t n = golden.n_tokens();
  DrivenSequence s = MakeSequence({golden.input_ids[0]}, 0, 1, n);
  EXPECT_LT(RelativeError(Prefill(*executor, s, 64), golden.At(0)), kTolerance);
  for (int64_t i = 1; i < n; ++i) {
    ASSERT_LT(RelativeError(DecodeOne(*executor, s, golden.input_ids[i]), golden.At(i)), kTolerance)
        << "position " << i;
  }
}

// Keys and values rounded to 8 bits: single rows with sharp attention deviate by 5 %, so all
// positions together are measured.
TEST_P(GoldenTest, Bf16KvCache) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64, DType::kBF16);
  const double error = ErrorOfAllRows(*executor, golden);
  // Now and then the rounding makes a row of a mixture choose another second expert.
  EXPECT_LT(error, Dir().ends_with("mixtral_f32") ? 4e-2 : 2e-2);
  EXPECT_GT(error, 1e-4);  // and really rounded
}

// Keys and values rounded to 4 bits: 16 times the error of bf16's 8.
TEST_P(GoldenTest, Fp8KvCache) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64, DType::kF8E4M3);
  const double error = ErrorOfAllRows(*executor, golden);
  EXPECT_LT(error, 0.3);
  EXPECT_GT(error, 1e-3);
}

// Rounded weights and activations. These models are narrow (32 to 64 columns) and random, so that
// nothing averages out, and a mixture of experts that chooses by chance chooses others: a trained
// model of usual width is far closer.
TEST_P(GoldenTest, Bf16Weights) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64, DType::kF32, WeightFormat::kBF16);
  const double error = ErrorOfAllRows(*executor, golden);
  EXPECT_LT(error, Dir().ends_with("mixtral_f32") ? 0.15 : 3e-2);
  EXPECT_GT(error, 1e-3);
}

TEST_P(GoldenTest, Int8Weights) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/64, DType::kF32, WeightFormat::kInt8);
  const double error = ErrorOfAllRows(*executor, golden);
  EXPECT_LT(error, Dir().find("mixtral") != std::string::npos ? 0.25 : 0.11);
  EXPECT_GT(error, 1e-2);
}

// Of every position, with blocks of the output rows that end anywhere in an epoch.
TEST_P(GoldenTest, LogprobsOfThePrompt) {
  const Golden golden = Load();
  const auto executor = Load(golden, /*epoch_tokens=*/128);
  DrivenSequence s = MakeSequence(golden.input_ids, 0);
  const int64_t n = golden.n_tokens();
  constexpr int32_t kTop = 4;
  for (int64_t begin = 0; begin < n; begin += 128) {
    const int64_t end = std::min(begin + 128, n);
    PrefillSlice slice = SliceOf(s, begin, end, 0, executor->shape().n_layers);
    slice.logprob_tokens = std::span(s.tokens).subspan(begin + 1, std::min(end + 1, n) - begin - 1);
    slice.n_top_logprobs = kTop;
    StepPlan plan;
    plan.prefill.push_back(slice);
    const auto result = executor->Execute(plan);
    ASSERT_TRUE(result.ok()) << result.status();
    const PromptLogprobsEvent& logprobs = result->slices[0].prompt_logprobs;
    ASSERT_EQ(logprobs.tokens.size(), slice.logprob_tokens.size());
    ASSERT_EQ(logprobs.top.size(), slice.logprob_tokens.size() * kTop);
    for (size_t i = 0; i < logprobs.tokens.size(); ++i) {
      const std::span<const float> row = golden.At(begin + static_cast<int64_t>(i));
      double sum = 0, largest = 0;
      for (float logit : row) {
        sum += std::exp(double{logit});
        largest = std::max(largest, std::abs(double{logit}));
      }
      const auto expect = [&](const TokenLogprob& token) {
        EXPECT_NEAR(token.logprob, row[token.token] - std::log(sum), 2 * kTolerance * largest);
      };
      expect(logprobs.tokens[i]);
      for (int32_t k = 0; k < kTop; ++k) expect(logprobs.top[i * kTop + k]);
    }
  }
}

// Names of the folders that hold `file`.
std::vector<std::string> ModelsWith(const char* file) {
  std::vector<std::string> models;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden/models")) {
    if (std::filesystem::exists(entry.path() / file)) {
      models.push_back(entry.path().filename().string());
    }
  }
  std::sort(models.begin(), models.end());
  return models;
}

std::string TestName(const ::testing::TestParamInfo<GoldenTest::ParamType>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         ::testing::Combine(::testing::ValuesIn(ModelsWith("golden.safetensors")),
                                            ::testing::Values("ref", "cpu")),
                         TestName);
INSTANTIATE_TEST_SUITE_P(
    Models, StretchedGoldenTest,
    ::testing::Combine(::testing::ValuesIn(ModelsWith("golden_short.safetensors")),
                       ::testing::Values("ref", "cpu")),
    TestName);
INSTANTIATE_TEST_SUITE_P(Models, WindowGoldenTest,
                         ::testing::Combine(::testing::Values("window_mistral_bf16"),
                                            ::testing::Values("ref", "cpu")),
                         TestName);

}  // namespace
}  // namespace longhaul
