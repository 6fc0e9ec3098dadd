#include "server/load/samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

namespace longhaul::load {
namespace {

TEST(SamplesTest, EmptyIsZero) {
  const Samples samples;
  EXPECT_EQ(samples.n(), 0);
  EXPECT_EQ(samples.Quantile(0.5), 0);
  EXPECT_EQ(samples.Mean(), 0);
  EXPECT_EQ(samples.Max(), 0);
}

TEST(SamplesTest, OneValueIsEveryQuantile) {
  Samples samples;
  samples.Add(3);
  for (const double q : {0.0, 0.5, 0.99, 1.0}) EXPECT_EQ(samples.Quantile(q), 3);
}

TEST(SamplesTest, NearestRankOfAHundred) {
  std::vector<double> values(100);
  std::iota(values.begin(), values.end(), 1);
  std::shuffle(values.begin(), values.end(), std::mt19937(7));
  Samples samples;
  samples.Add(values);
  EXPECT_EQ(samples.Quantile(0), 1);
  EXPECT_EQ(samples.Quantile(0.5), 50);
  EXPECT_EQ(samples.Quantile(0.9), 90);
  EXPECT_EQ(samples.Quantile(0.99), 99);
  EXPECT_EQ(samples.Quantile(0.991), 100);
  EXPECT_EQ(samples.Max(), 100);
  EXPECT_DOUBLE_EQ(samples.Mean(), 50.5);
}

// The definition itself: the smallest value that a share q of all does not exceed.
TEST(SamplesTest, AgreesWithTheDefinition) {
  std::mt19937 random(3);
  for (int n = 1; n < 60; ++n) {
    Samples samples;
    std::vector<double> values;
    for (int i = 0; i < n; ++i) {
      values.push_back(random() % 20);
      samples.Add(values.back());
    }
    std::sort(values.begin(), values.end());
    for (int percent = 1; percent <= 100; ++percent) {
      const auto expected = std::find_if(values.begin(), values.end(), [&](double v) {
        const auto n_below = std::upper_bound(values.begin(), values.end(), v) - values.begin();
        return 100 * n_below >= percent * n;
      });
      EXPECT_EQ(samples.Quantile(percent / 100.0), *expected)
          << n << " values, " << percent << " %";
    }
  }
}

TEST(SamplesTest, MoreValuesAfterAQuestion) {
  Samples samples;
  samples.Add(5);
  EXPECT_EQ(samples.Max(), 5);
  samples.Add(9);
  samples.Add(1);
  EXPECT_EQ(samples.Max(), 9);
  EXPECT_EQ(samples.Quantile(0.5), 5);
  EXPECT_EQ(samples.Json()["n"], 3);
  EXPECT_EQ(samples.Json()["p50"], 5);
}

}  // namespace
}  // namespace longhaul::load
