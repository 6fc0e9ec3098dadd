// models/lookup through the real executor: a key planted in a haystack is answered exactly, by
// greedy decoding, whatever the attention, the epochs or the KV type.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using testing::DecodeOne;
using testing::DrivenSequence;
using testing::MakeSequence;
using testing::Prefill;

// Tokens of models/lookup.
constexpr int32_t kBeginOfText = 2044, kEndOfText = 2045, kParagraph = 1257, kFirstWord = 1258;
constexpr int32_t kWords = 500;
// "The code of stern market is #", and "243606557.\n".
const std::vector<int32_t> kQuestion = {1845, 1799, 1761, 1349, 1494, 1810, 1256};
const std::vector<int32_t> kAnswer = {499, 862, 813, kParagraph};

std::vector<int32_t> Haystack(int64_t n_tokens, double depth) {
  std::vector<int32_t> prompt = {kBeginOfText};
  const int64_t n_planted = static_cast<int64_t>(kQuestion.size() + kAnswer.size());
  const int64_t n_filler = n_tokens - 1 - n_planted - static_cast<int64_t>(kQuestion.size());
  std::mt19937 rng(17);
  for (int64_t i = 0; i <= n_filler; ++i) {
    if (i == static_cast<int64_t>(depth * static_cast<double>(n_filler))) {
      prompt.insert(prompt.end(), kQuestion.begin(), kQuestion.end());
      prompt.insert(prompt.end(), kAnswer.begin(), kAnswer.end());
    }
    if (i == n_filler) break;
    prompt.push_back(i % 100 == 99 ? kParagraph
                                   : static_cast<int32_t>(kFirstWord + rng() % kWords));
  }
  prompt.insert(prompt.end(), kQuestion.begin(), kQuestion.end());
  return prompt;
}

int32_t Argmax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

class LookupTest : public ::testing::TestWithParam<std::tuple<const char*, const char*, DType>> {};

TEST_P(LookupTest, AnswersThePlantedKey) {
  const auto& [backend, mode, kv_dtype] = GetParam();
  constexpr int64_t kEpoch = 512;
  EngineConfig config;
  config.max_model_len = 4096;
  config.kv_cache_bytes = 16 << 20;
  config.kv_dtype = kv_dtype;
  config.epoch_tokens = kEpoch;
  auto executor = LoadRunner("models/lookup", testing::MakeBackend(backend), config, nullptr);
  ASSERT_TRUE(executor.ok()) << executor.status();
  // The plain loops are the specification, and slow.
  const bool slow = std::string(backend) == "ref";
  const int64_t n_tokens = slow ? 900 : 4000;
  const std::vector<double> depths = slow ? std::vector{0.3} : std::vector{0.0, 0.5, 1.0};
  for (double depth : depths) {
    DrivenSequence s = MakeSequence(Haystack(n_tokens, depth), 0, 1, n_tokens + 8);
    s.sparse.mode = *ParseSparseMode(mode);
    s.sparse.window = 128;
    s.sparse.auto_min_keys = 512;
    s.sparse.columns = 100;
    s.sparse.diagonals = 256;
    std::vector<int32_t> output = {Argmax(Prefill(**executor, s, kEpoch))};
    while (output.size() < 5) output.push_back(Argmax(DecodeOne(**executor, s, output.back())));
    std::vector<int32_t> expected = kAnswer;
    expected.push_back(kEndOfText);
    EXPECT_EQ(output, expected) << "depth " << depth;
    if (s.sparse.mode == SparseMode::kDense) continue;
    EXPECT_GE(s.report.RecallMean(), 0.95) << "depth " << depth;
    EXPECT_LT(s.report.Density(), 0.9) << "depth " << depth;
  }
}

class WeightFormatLookupTest : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(WeightFormatLookupTest, AnswersThePlantedKey) {
  constexpr int64_t kEpoch = 512, kTokens = 2500;
  EngineConfig config;
  config.max_model_len = 4096;
  config.kv_cache_bytes = 16 << 20;
  config.epoch_tokens = kEpoch;
  config.weight_format = GetParam();
  const auto executor =
      LoadRunner("models/lookup", testing::MakeBackend("cpu"), config, nullptr).value();
  DrivenSequence s = MakeSequence(Haystack(kTokens, 0.3), 0, 1, kTokens + 8);
  s.sparse.mode = SparseMode::kSample;
  s.sparse.window = 128;
  std::vector<int32_t> output = {Argmax(Prefill(*executor, s, kEpoch))};
  while (output.size() < 5) output.push_back(Argmax(DecodeOne(*executor, s, output.back())));
  std::vector<int32_t> expected = kAnswer;
  expected.push_back(kEndOfText);
  EXPECT_EQ(output, expected);
}

INSTANTIATE_TEST_SUITE_P(Lookup, WeightFormatLookupTest,
                         ::testing::Values(WeightFormat::kBF16, WeightFormat::kInt8),
                         [](const auto& info) {
                           return std::string(WeightFormatName(info.param));
                         });

std::string NameOf(const ::testing::TestParamInfo<LookupTest::ParamType>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param) + "_" +
         std::string(DTypeName(std::get<2>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(Fp8, LookupTest,
                         ::testing::Combine(::testing::Values("cpu"),
                                            ::testing::Values("dense", "sample", "auto"),
                                            ::testing::Values(DType::kF8E4M3)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Lookup, LookupTest,
                         ::testing::Combine(::testing::Values("ref", "cpu"),
                                            ::testing::Values("dense", "sample", "paper",
                                                              "vertical_slash", "auto"),
                                            ::testing::Values(DType::kF32, DType::kBF16)),
                         NameOf);

}  // namespace
}  // namespace longhaul
