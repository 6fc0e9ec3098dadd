// The sampler: order of its steps, distributions, ties, NaN, reproducibility, logprobs.
#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "kernels/draw_token.h"

namespace longhaul {
namespace {

using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}
SamplingParams Seeded(uint64_t seed = 1) {
  SamplingParams params;
  params.seed = seed;
  return params;
}
int32_t Once(const SamplingParams& params, const std::vector<float>& logits,
             const std::vector<int32_t>& prompt = {}, const std::vector<int32_t>& forbidden = {}) {
  return Sampler(params, prompt, 0, static_cast<int32_t>(logits.size()))
      .Sample(logits, forbidden)
      .token;
}
// How often each token is drawn in n tries of one sampler.
std::map<int32_t, double> Shares(const SamplingParams& params, const std::vector<float>& logits,
                                 int n = 20000) {
  Sampler sampler(params, {}, 0, static_cast<int32_t>(logits.size()));
  std::map<int32_t, double> shares;
  for (int i = 0; i < n; ++i) shares[sampler.Sample(logits, {}).token] += 1.0 / n;
  return shares;
}
std::vector<float> LogOf(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(Once(Greedy(), {1, 3, 3, 2}), 1);
  EXPECT_EQ(Once(Greedy(), {kNan, -5, kNan, -4}), 3);
  EXPECT_EQ(Once(Greedy(), {-kInf, -kInf, -7}), 2);
  EXPECT_EQ(Once(Greedy(), {5}), 0);
}

TEST(SamplerTest, ForbiddenTokensAreNeverChosen) {
  EXPECT_EQ(Once(Greedy(), {1, 9, 8}, {}, {1}), 2);
  EXPECT_EQ(Once(Greedy(), {1, 9, 8}, {}, {1, 2, 99, -1}), 0);
  SamplingParams biased = Greedy();
  biased.logit_bias = {{1, 100.0f}};
  EXPECT_EQ(Once(biased, {1, 9, 8}, {}, {1}), 2);
}

TEST(SamplerTest, NothingPossibleGivesTheLowestAllowedToken) {
  EXPECT_EQ(Once(Seeded(), {kNan, kNan, kNan}), 0);
  EXPECT_EQ(Once(Seeded(), {kNan, kNan, kNan}, {}, {0, 1}), 2);
  EXPECT_EQ(Once(Seeded(), {1, 2}, {}, {0, 1}), 1);
}

TEST(SamplerTest, TemperatureShapesTheDistribution) {
  const std::vector<float> logits = LogOf({0.5f, 0.3f, 0.2f});
  auto shares = Shares(Seeded(), logits);
  EXPECT_NEAR(shares[0], 0.5, 0.02);
  EXPECT_NEAR(shares[1], 0.3, 0.02);
  SamplingParams hot = Seeded();
  hot.temperature = 2.0f;
  const double sum = std::sqrt(0.5) + std::sqrt(0.3) + std::sqrt(0.2);
  shares = Shares(hot, logits);
  EXPECT_NEAR(shares[0], std::sqrt(0.5) / sum, 0.02);
  SamplingParams cold = Seeded();
  cold.temperature = 1e-30f;
  EXPECT_EQ(Shares(cold, logits, 100).size(), 1u);
}

TEST(SamplerTest, InfiniteLogitWins) { EXPECT_EQ(Once(Seeded(), {0, kInf, 3}), 1); }

TEST(SamplerTest, TopKKeepsTheLikeliestTiesByTheLowerId) {
  SamplingParams params = Seeded();
  params.top_k = 2;
  auto shares = Shares(params, {1, 2, 2, 2, 0}, 2000);
  EXPECT_EQ(shares.size(), 2u);
  EXPECT_GT(shares[1], 0.4);
  EXPECT_GT(shares[2], 0.4);
  params.top_k = 1000;
  EXPECT_EQ(Shares(params, {1, 1}, 200).size(), 2u);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = LogOf({0.1f, 0.45f, 0.05f, 0.4f});
  SamplingParams params = Seeded();
  params.top_p = 0.84f;
  EXPECT_EQ(Shares(params, logits, 3000).size(), 2u);
  params.top_p = 0.86f;
  EXPECT_EQ(Shares(params, logits, 3000).size(), 3u);
  params.top_p = 1e-6f;
  EXPECT_EQ(Shares(params, logits, 100).size(), 1u);
  // After top-k the share is of what top-k kept: 0.45 of 0.85 is more than a half.
  params.top_k = 2;
  params.top_p = 0.5f;
  EXPECT_EQ(Shares(params, logits, 1000).size(), 1u);
}

// Against a full sort, on a vocabulary larger than the first blocks of the partial selection.
TEST(SamplerTest, TopPOfALargeVocabularyEqualsAFullSort) {
  std::mt19937 rng(5);
  std::vector<float> logits(3000);
  for (float& logit : logits) logit = static_cast<float>(rng() % 50) / 25.0f;  // many ties
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double total = 0;
  for (float logit : logits) total += std::exp(double{logit} - 2.0);
  for (float top_p : {0.01f, 0.05f, 0.2f, 0.5f}) {
    double sum = 0;
    size_t n_kept = 0;
    while (sum < double{top_p} * total) sum += std::exp(double{logits[order[n_kept++]]} - 2.0);
    const std::set<int32_t> kept(order.begin(), order.begin() + n_kept + 1);  // one for rounding
    SamplingParams params = Seeded();
    params.top_p = top_p;
    const auto shares = Shares(params, logits, 20 * static_cast<int>(n_kept));
    EXPECT_GT(shares.size(), n_kept * 9 / 10);
    for (const auto& [token, share] : shares) EXPECT_TRUE(kept.contains(token)) << token;
  }
}

TEST(SamplerTest, MinPIsRelativeToTheLikeliest) {
  SamplingParams params = Seeded();
  params.min_p = 0.5f;
  EXPECT_EQ(Shares(params, LogOf({0.4f, 0.21f, 0.19f, 0.2f}), 2000).size(), 2u);
  params.min_p = 1.0f;
  EXPECT_EQ(Shares(params, LogOf({0.4f, 0.21f, 0.19f, 0.2f}), 100).size(), 1u);
}

TEST(SamplerTest, RepetitionPenaltyCountsPromptAndOutput) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2.0f;
  const std::vector<float> logits = {3.0f, 2.0f, -1.0f};
  const std::vector<int32_t> prompt = {0};
  Sampler sampler(params, prompt, 0, 3);
  EXPECT_EQ(sampler.Sample(logits, {}).token, 1);  // 1.5, 2, -1
  EXPECT_EQ(sampler.Sample(logits, {}).token, 0);  // 1.5, 1, -1
  // A negative logit gets more negative.
  EXPECT_EQ(Once(params, {-1.0f, -1.5f}, {0}), 1);
}

TEST(SamplerTest, FrequencyAndPresencePenaltiesCountTheOutput) {
  SamplingParams params = Greedy();
  params.frequency_penalty = 1.0f;
  Sampler frequency(params, std::vector<int32_t>{0, 0, 0}, 0, 2);  // the prompt does not count
  std::vector<int32_t> tokens;
  for (int i = 0; i < 4; ++i) tokens.push_back(frequency.Sample(std::vector{2.5f, 1.0f}, {}).token);
  EXPECT_THAT(tokens, ElementsAre(0, 0, 1, 0));  // 2.5 1 | 1.5 1 | .5 1 | .5 0
  params.frequency_penalty = 0;
  params.presence_penalty = 2.0f;
  Sampler presence(params, {}, 0, 2);
  tokens.clear();
  for (int i = 0; i < 4; ++i) tokens.push_back(presence.Sample(std::vector{2.5f, 1.0f}, {}).token);
  EXPECT_THAT(tokens, ElementsAre(0, 1, 0, 0));
}

TEST(SamplerTest, LogitBiasIsAdded) {
  SamplingParams params = Greedy();
  params.logit_bias = {{0, 1.5f}, {2, -100.0f}, {0, 1.0f}, {77, 5.0f}};
  EXPECT_EQ(Once(params, {0, 2, 9}), 0);
}

TEST(SamplerTest, SeedAndChoiceDecideTheTokens) {
  const std::vector<float> logits(50, 0.0f);
  const auto draw = [&](uint64_t seed, int32_t choice) {
    Sampler sampler(Seeded(seed), {}, choice, 50);
    std::vector<int32_t> tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.Sample(logits, {}).token);
    return tokens;
  };
  EXPECT_EQ(draw(1, 0), draw(1, 0));
  EXPECT_NE(draw(1, 0), draw(1, 1));
  EXPECT_NE(draw(1, 0), draw(2, 0));
  EXPECT_NE(draw(1, 1), draw(2, 0));
}

// What a backend draws where the logits are is what the sampler would have drawn.
TEST(SamplerTest, NextDrawAndAcceptAreSample) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal(0, 2);
  for (const float temperature : {0.0f, 0.7f}) {
    SamplingParams params = Seeded(11);
    params.temperature = temperature;
    params.top_k = 40;
    params.top_p = 0.9f;
    Sampler sampler(params, {}, 0, 100), elsewhere(params, {}, 0, 100);
    ASSERT_TRUE(elsewhere.is_plain());
    std::vector<uint32_t> scratch;
    for (int i = 0; i < 50; ++i) {
      std::vector<float> logits(100);
      for (float& logit : logits) logit = normal(rng);
      const int32_t token = DrawToken(logits, elsewhere.NextDraw(), scratch);
      elsewhere.Accept(token);
      EXPECT_EQ(token, sampler.Sample(logits, {}).token);
    }
  }
}

TEST(SamplerTest, WhatNeedsTheLogitsIsNotPlain) {
  const auto is_plain = [](const auto& change) {
    SamplingParams params;
    change(params);
    return Sampler(params, {}, 0, 4).is_plain();
  };
  EXPECT_TRUE(is_plain([](SamplingParams& p) { p.top_k = 5; }));
  EXPECT_FALSE(is_plain([](SamplingParams& p) { p.repetition_penalty = 1.1f; }));
  EXPECT_FALSE(is_plain([](SamplingParams& p) { p.presence_penalty = 0.5f; }));
  EXPECT_FALSE(is_plain([](SamplingParams& p) { p.frequency_penalty = -0.5f; }));
  EXPECT_FALSE(is_plain([](SamplingParams& p) { p.logit_bias = {{1, 2.0f}}; }));
  EXPECT_FALSE(is_plain([](SamplingParams& p) { p.n_logprobs = 0; }));
}

TEST(SamplerTest, WithoutASeedRunsDiffer) {
  const std::vector<float> logits(1000, 0.0f);
  std::set<int32_t> tokens;
  for (int i = 0; i < 10; ++i) tokens.insert(Once(SamplingParams(), logits));
  EXPECT_GT(tokens.size(), 1u);
}

TEST(SamplerTest, LogprobsAreOfTheRawDistribution) {
  SamplingParams params = Greedy();
  params.n_logprobs = 2;
  params.logit_bias = {{2, 100.0f}};
  Sampler sampler(params, {}, 0, 4);
  const Sampled sampled = sampler.Sample(LogOf({0.2f, 0.5f, 0.1f, 0.2f}), {});
  EXPECT_EQ(sampled.token, 2);
  EXPECT_NEAR(sampled.logprob, std::log(0.1), 1e-5);
  ASSERT_EQ(sampled.top_logprobs.size(), 2u);
  EXPECT_EQ(sampled.top_logprobs[0].token, 1);
  EXPECT_NEAR(sampled.top_logprobs[0].logprob, std::log(0.5), 1e-5);
  EXPECT_EQ(sampled.top_logprobs[1].token, 0);  // ties by the lower id
  params.n_logprobs = 0;
  EXPECT_TRUE(
      Sampler(params, {}, 0, 4).Sample(LogOf({0.2f, 0.5f, 0.1f, 0.2f}), {}).top_logprobs.empty());
}

TEST(SamplerTest, LogprobsOfLargeLogitsStayFinite) {
  SamplingParams params = Greedy();
  params.n_logprobs = 1;
  const Sampled sampled = Sampler(params, {}, 0, 3).Sample(std::vector{3e38f, 3e38f, kNan}, {});
  EXPECT_NEAR(sampled.logprob, std::log(0.5), 1e-5);
}

}  // namespace
}  // namespace longhaul
