// Sampling on the device against kernels/draw_token.cc: the same tokens, for any logits, settings
// and random numbers.
#include "kernels/cuda/draw_tokens.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/draw_token.h"
#include "tests/simt/kernel_test.h"
#include "tests/testing/compare.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using testing::Random;

// Draws from rows of n_vocab logits; every row's token must be the host's.
void ExpectEqual(const std::vector<float>& logits, int64_t n_vocab,
                 const std::vector<TokenDraw>& draws) {
  const auto n_rows = static_cast<int64_t>(draws.size());
  std::vector<int32_t> expected(n_rows);
  DrawTokensArgs args{
      .logits = TensorView(const_cast<float*>(logits.data()), DType::kF32, {n_rows, n_vocab}),
      .draws = draws.data(),
      .tokens = expected.data()};
  for (int64_t row = 0; row < n_rows; ++row) DrawTokenOfRow(args, row);
  const DeviceArray<float> device_logits(logits);
  const DeviceArray<TokenDraw> device_draws(draws);
  simt::ForEachSeed(2, [&] {
    const DeviceArray<int32_t> tokens(n_rows);
    args.logits = TensorView(device_logits.data(), DType::kF32, {n_rows, n_vocab});
    args.draws = device_draws.data();
    args.tokens = tokens.data();
    ASSERT_EQ(DrawTokens(args, nullptr), cudaSuccess);
    EXPECT_EQ(tokens.Download(), expected);
  });
}

// With ties, and a few tokens that never come.
std::vector<float> RandomLogits(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits(n);
  for (float& logit : logits) {
    logit = random.Below(20) == 0 ? -std::numeric_limits<float>::infinity() : 2 * random.Normal();
    if (random.Below(2) == 0) logit = std::round(8 * logit) / 8;
  }
  return logits;
}

const std::vector<TokenDraw> kSettings = {
    {},
    {.temperature = 1},
    {.temperature = 0.25f},
    {.temperature = 1e-30f},
    {.temperature = 1, .top_k = 1},
    {.temperature = 2, .top_k = 37},
    {.temperature = 1, .top_k = 100000},
    {.temperature = 1, .top_p = 0.5f},
    {.temperature = 1, .top_p = 1e-7f},
    {.temperature = 0.7f, .top_k = 500, .top_p = 0.95f},
    {.temperature = 1, .min_p = 0.1f},
    {.temperature = 1, .top_k = 300, .top_p = 0.999f, .min_p = 0.02f}};

TEST(DrawTokensDeviceTest, EverySettingDrawsTheHostsToken) {
  Random random(4);
  std::vector<TokenDraw> draws;
  for (TokenDraw draw : kSettings) {
    draw.random = static_cast<uint64_t>(random.Below(1 << 30)) << 34 | 12345;
    draws.push_back(draw);
  }
  constexpr int64_t kVocab = 5003;
  ExpectEqual(RandomLogits(kVocab * static_cast<int64_t>(draws.size()), 5), kVocab, draws);
}

TEST(DrawTokensDeviceTest, TheEndsOfTheRandomNumbers) {
  std::vector<TokenDraw> draws;
  for (const uint64_t bits : {uint64_t{0}, ~uint64_t{0}, uint64_t{1} << 63}) {
    draws.push_back({.temperature = 1, .random = bits});
    draws.push_back({.temperature = 1, .top_k = 9, .random = bits});
    draws.push_back({.temperature = 1, .top_p = 0.9f, .random = bits});
  }
  ExpectEqual(RandomLogits(1500 * static_cast<int64_t>(draws.size()), 6), 1500, draws);
}

TEST(DrawTokensDeviceTest, SmallVocabulariesTiesAndBrokenRows) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  ExpectEqual({3, -4, 5}, 1, {{}, {.temperature = 1}, {.temperature = 1, .top_p = 0.5f}});
  const std::vector<float> rows = {2,     2,     2,     2,      2,      // equal
                                   -0.0f, 0.0f,  -1,    -0.0f,  0.0f,   // zeros of either sign
                                   1,     kNan,  3,     4,      5,      //
                                   1,     2,     kInf,  4,      5,      //
                                   -kInf, -kInf, -kInf, -kInf,  -kInf,  //
                                   -kInf, -kInf, 3e38f, -3e38f, -kInf};
  for (const size_t setting : {0, 1, 5, 9}) {
    TokenDraw draw = kSettings[setting];
    draw.random = uint64_t{3} << 62;
    ExpectEqual(rows, 5, std::vector<TokenDraw>(6, draw));
  }
}

}  // namespace
}  // namespace longhaul::cuda
