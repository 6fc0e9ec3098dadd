// Drawing against brute force: what is kept, how often it is drawn, fixed-point weights, ties,
// broken rows; the host backends the same.
#include "kernels/draw_token.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/backend.h"

namespace longhaul {
namespace {

using draw_internal::HalvingsPerLogit;
using draw_internal::PlaceOf;
using draw_internal::WeightOf;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t Draw(const std::vector<float>& logits, const TokenDraw& draw) {
  std::vector<uint32_t> scratch;
  return DrawToken(logits, draw, scratch);
}

// Shares of the tokens, over random numbers that are spread evenly.
std::map<int32_t, double> Shares(const std::vector<float>& logits, TokenDraw draw) {
  constexpr int kTries = 4096;
  std::map<int32_t, double> shares;
  for (int i = 0; i < kTries; ++i) {
    draw.random = (uint64_t{2} * static_cast<uint64_t>(i) + 1) << (63 - 12);
    shares[Draw(logits, draw)] += 1.0 / kTries;
  }
  return shares;
}

// By definition, in f64.
std::map<int32_t, double> ExpectedShares(const std::vector<float>& logits, const TokenDraw& draw) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (draw.top_k > 0 && draw.top_k < static_cast<int32_t>(order.size())) order.resize(draw.top_k);
  const auto weight = [&](int32_t token) {
    return std::exp((double{logits[token]} - double{logits[order[0]]}) / double{draw.temperature});
  };
  double total = 0;
  for (int32_t token : order) total += weight(token);
  double sum = 0;
  size_t n_kept = 0;
  while (n_kept < order.size() && (draw.top_p == 1.0f || sum < total * double{draw.top_p})) {
    sum += weight(order[n_kept++]);
  }
  order.resize(n_kept);
  std::erase_if(order, [&](int32_t token) { return weight(token) < double{draw.min_p}; });
  total = 0;
  for (int32_t token : order) total += weight(token);
  std::map<int32_t, double> shares;
  for (int32_t token : order) shares[token] = weight(token) / total;
  return shares;
}

TEST(DrawTokenTest, SharesAreThoseOfTheDefinition) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(300);
  for (float& logit : logits) logit = normal(rng);
  for (int i = 0; i < 30; ++i) logits[i * 7] = 3.0f;  // ties
  for (const TokenDraw& draw :
       std::vector<TokenDraw>{{.temperature = 1},
                              {.temperature = 0.3f},
                              {.temperature = 1.5f, .top_k = 17},
                              {.temperature = 1, .top_p = 0.37f},
                              {.temperature = 1, .top_p = 0.97f},
                              {.temperature = 0.8f, .top_k = 100, .top_p = 0.9f},
                              {.temperature = 1, .min_p = 0.2f},
                              {.temperature = 1, .top_k = 50, .top_p = 0.95f, .min_p = 0.05f}}) {
    const auto shares = Shares(logits, draw);
    const auto expected = ExpectedShares(logits, draw);
    for (const auto& [token, share] : shares) EXPECT_EQ(expected.count(token), 1u) << token;
    for (const auto& [token, share] : expected) {
      EXPECT_NEAR(shares.count(token) > 0 ? shares.at(token) : 0.0, share, 1.0 / 2048) << token;
    }
  }
}

TEST(DrawTokenTest, WeightsAreExactPowersToTheirPrecision) {
  EXPECT_EQ(WeightOf(3.0f, 3.0f, 1e30f), uint64_t{1} << 40);
  EXPECT_EQ(WeightOf(3.0f, 1.0f, 1.0f), uint64_t{1} << 38);
  EXPECT_EQ(WeightOf(3.0f, -37.5f, 1.0f), 0u);
  EXPECT_EQ(WeightOf(3.0f, -kInf, 1.0f), 0u);
  EXPECT_EQ(WeightOf(3.0f, 2.999f, HalvingsPerLogit(1e-40f)), 0u);
  uint64_t last = uint64_t{1} << 40;
  for (int i = 0; i < 200000; ++i) {
    const float logit = -static_cast<float>(i) * 0x1p-14f;
    const uint64_t weight = WeightOf(0.0f, logit, 1.0f);
    const double exact = std::exp2(40.0 + double{logit});
    ASSERT_NEAR(static_cast<double>(weight), exact, 2e-8 * exact + 1.0) << logit;
    ASSERT_LE(weight, last) << logit;
    last = weight;
  }
}

TEST(DrawTokenTest, PlacesSpreadOverTheWhole) {
  const uint64_t all = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(PlaceOf(0, 12345), 0u);
  EXPECT_EQ(PlaceOf(all, 12345), 12344u);
  EXPECT_EQ(PlaceOf(uint64_t{1} << 63, uint64_t{1} << 58), uint64_t{1} << 57);
  EXPECT_EQ(PlaceOf(all, uint64_t{1} << 58), (uint64_t{1} << 58) - 1);
  EXPECT_EQ(PlaceOf(0x123456789abcdef0u, 0xfedcba987654321u), 0x121fa00ad77d742u);
}

TEST(DrawTokenTest, GreedyAndBrokenRows) {
  EXPECT_EQ(Draw({1, 3, 3, 2}, {}), 1);
  EXPECT_EQ(Draw({-0.0f, 0.0f}, {}), 0);
  EXPECT_EQ(Draw({-kInf, -7, -kInf}, {.temperature = 1, .random = ~uint64_t{0}}), 1);
  for (const float temperature : {0.0f, 1.0f}) {
    EXPECT_EQ(Draw({1, kNan, 3}, {.temperature = temperature}), kBrokenLogits);
    EXPECT_EQ(Draw({1, kInf, 3}, {.temperature = temperature}), kBrokenLogits);
    EXPECT_EQ(Draw({-kInf, -kInf}, {.temperature = temperature}), kBrokenLogits);
  }
  EXPECT_EQ(Draw({5}, {.temperature = 1, .top_k = 3, .top_p = 0.1f, .min_p = 1.0f}), 0);
}

TEST(DrawTokenTest, HostBackendsDrawRowsOfABatch) {
  const std::vector<float> logits = {0, 1, 2, 9, 5, 4, kNan, 0, 0, 0, 7, 0};
  const std::vector<TokenDraw> draws = {{}, {.temperature = 1, .top_k = 1}, {}, {}};
  for (const bool cpu : {false, true}) {
    const std::unique_ptr<Backend> backend = cpu ? CreateCpuBackend(2) : CreateRefBackend();
    std::vector<int32_t> tokens(4, -9);
    backend->DrawTokens(
        {.logits = TensorView(const_cast<float*>(logits.data()), DType::kF32, {4, 3}),
         .draws = draws.data(),
         .tokens = tokens.data()});
    EXPECT_EQ(tokens, (std::vector<int32_t>{2, 0, kBrokenLogits, 1}));
  }
}

}  // namespace
}  // namespace longhaul
