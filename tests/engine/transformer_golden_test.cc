// The forward pass against Hugging Face transformers: tiny random checkpoints of each family, made
// by tools/goldens/make_model_goldens.py, with the logits of every position.
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "engine/model/safetensors.h"
#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using testing::DecodeOne;
using testing::DrivenSequence;
using testing::MakeSequence;
using testing::Prefill;

struct Golden {
  std::vector<int32_t> input_ids;
  std::vector<float> logits;  // [n_tokens, V]
  int64_t vocab_size = 0;

  std::span<const float> At(int64_t position) const {
    return std::span(logits).subspan(position * vocab_size, vocab_size);
  }
};

Golden LoadGolden(const std::string& dir) {
  const auto file = MappedFile::Open(dir + "/golden.safetensors");
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
  return golden;
}

// Largest absolute difference of two rows of logits. The goldens' logits have a deviation of 2.
float MaxError(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float error = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    error = std::isnan(difference) ? HUGE_VALF : std::max(error, difference);
  }
  return error;
}

class GoldenTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  std::unique_ptr<Executor> Load(int64_t epoch_tokens, DType kv_dtype) {
    EngineConfig config;
    config.epoch_tokens = epoch_tokens;
    config.kv_cache_bytes = 1 << 20;
    config.kv_dtype = kv_dtype;
    auto runner = LoadRunner(Dir(), testing::MakeBackend(std::get<1>(GetParam())), config, nullptr);
    EXPECT_TRUE(runner.ok()) << runner.status();
    return std::move(*runner);
  }
  static std::string Dir() { return std::string("tests/golden/models/") + std::get<0>(GetParam()); }
  // Weights are widened exactly and all arithmetic is f32, in transformers too: only the order of
  // sums differs.
  static constexpr float kTolerance = 2e-4f;
};

TEST_P(GoldenTest, PrefillOfManyLengths) {
  const Golden golden = LoadGolden(Dir());
  const auto executor = Load(/*epoch_tokens=*/256, DType::kF32);
  for (int64_t n : {1, 2, 63, 64, 65, 128, 150}) {
    DrivenSequence s = MakeSequence({golden.input_ids.begin(), golden.input_ids.begin() + n}, 0);
    EXPECT_LT(MaxError(Prefill(*executor, s, 256), golden.At(n - 1)), kTolerance) << n << " tokens";
  }
}

TEST_P(GoldenTest, PrefillCutInEpochsAndLayers) {
  const Golden golden = LoadGolden(Dir());
  const auto executor = Load(/*epoch_tokens=*/64, DType::kF32);
  DrivenSequence s = MakeSequence(golden.input_ids, /*first_page=*/7, /*stride=*/-3);
  const auto logits = Prefill(*executor, s, 64, /*layers_per_slice=*/1);
  EXPECT_LT(MaxError(logits, golden.At(golden.input_ids.size() - 1)), kTolerance);
}

TEST_P(GoldenTest, DecodeOfEveryPosition) {
  const Golden golden = LoadGolden(Dir());
  const auto executor = Load(/*epoch_tokens=*/64, DType::kF32);
  const int64_t n = static_cast<int64_t>(golden.input_ids.size());
  DrivenSequence s = MakeSequence({golden.input_ids[0]}, 0, 1, n);
  EXPECT_LT(MaxError(Prefill(*executor, s, 64), golden.At(0)), kTolerance);
  for (int64_t i = 1; i < n; ++i) {
    ASSERT_LT(MaxError(DecodeOne(*executor, s, golden.input_ids[i]), golden.At(i)), kTolerance)
        << "position " << i;
  }
}

TEST_P(GoldenTest, Bf16KvCache) {
  const Golden golden = LoadGolden(Dir());
  const auto executor = Load(/*epoch_tokens=*/64, DType::kBF16);
  DrivenSequence s = MakeSequence(golden.input_ids, 0);
  const float error = MaxError(Prefill(*executor, s, 64), golden.At(golden.input_ids.size() - 1));
  EXPECT_LT(error, 0.2f);   // keys and values rounded to 8 bits; the logits deviate by 2
  EXPECT_GT(error, 1e-4f);  // and really rounded
}

std::string TestName(const ::testing::TestParamInfo<GoldenTest::ParamType>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(
    Models, GoldenTest,
    ::testing::Combine(::testing::Values("gqa_f32", "tied_headdim_bf16", "llama3_rope_f16",
                                         "linear_rope_sharded_bf16", "mistral_bf16", "qwen2_f32"),
                       ::testing::Values("ref", "cpu")),
    TestName);

}  // namespace
}  // namespace longhaul
