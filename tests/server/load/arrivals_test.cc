#include "server/load/arrivals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace longhaul::load {
namespace {

std::vector<double> Gaps(double rate_per_s, uint64_t seed, int n) {
  PoissonArrivals arrivals(rate_per_s, seed);
  std::vector<double> gaps;
  for (int i = 0; i < n; ++i) gaps.push_back(arrivals.NextGap());
  return gaps;
}

TEST(PoissonArrivalsTest, SeedDecides) {
  EXPECT_EQ(Gaps(10, 1, 100), Gaps(10, 1, 100));
  EXPECT_NE(Gaps(10, 1, 100), Gaps(10, 2, 100));
  // Twice the rate: the same arrivals in half the time.
  const std::vector<double> slow = Gaps(10, 1, 100), fast = Gaps(20, 1, 100);
  for (size_t i = 0; i < slow.size(); ++i) EXPECT_DOUBLE_EQ(slow[i], 2 * fast[i]);
}

// The first gaps of seed 1, so that another compiler or library shows if it differs.
TEST(PoissonArrivalsTest, GapsAreTheSameEverywhere) {
  std::mt19937_64 random(1);
  for (const double gap : Gaps(4, 1, 5)) {
    const double uniform = static_cast<double>(random() >> 11) / 9007199254740992.0;
    EXPECT_NEAR(gap, -std::log(1 - uniform) / 4, 1e-12);
  }
}

TEST(PoissonArrivalsTest, IsExponentialWithItsRate) {
  constexpr int kN = 200000;
  constexpr double kRate = 50;
  double sum = 0, squares = 0;
  int n_beyond_mean = 0;
  for (const double gap : Gaps(kRate, 42, kN)) {
    ASSERT_GE(gap, 0);
    ASSERT_TRUE(std::isfinite(gap));
    sum += gap;
    squares += gap * gap;
    n_beyond_mean += gap > 1 / kRate;
  }
  const double mean = sum / kN;
  EXPECT_NEAR(mean * kRate, 1, 0.01);
  EXPECT_NEAR(std::sqrt(squares / kN - mean * mean) / mean, 1, 0.02) << "standard deviation = mean";
  EXPECT_NEAR(n_beyond_mean / static_cast<double>(kN), std::exp(-1), 0.005);
}

// Counts per second have variance = mean: not a regular beat, and not bursts.
TEST(PoissonArrivalsTest, CountsVaryAsTheyShould) {
  PoissonArrivals arrivals(20, 5);
  std::vector<int> counts(2000);
  for (double at = arrivals.NextGap(); at < 2000; at += arrivals.NextGap())
    ++counts[static_cast<size_t>(at)];
  double mean = 0, variance = 0;
  for (const int count : counts) mean += count / 2000.0;
  for (const int count : counts) variance += (count - mean) * (count - mean) / 2000.0;
  EXPECT_NEAR(mean, 20, 0.5);
  EXPECT_NEAR(variance / mean, 1, 0.12);
}

}  // namespace
}  // namespace longhaul::load
