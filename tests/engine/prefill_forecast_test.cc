#include "engine/prefill_forecast.h"

#include <random>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

constexpr ForecastRules kRules{.max_prefills = 4, .short_share = 0.75};

TEST(PrefillForecast, OneAloneTakesItsOwnTime) {
  const auto times = ForecastPrefills(std::vector<ForecastJob>{{.left_us = 500}}, 1, kRules);
  EXPECT_DOUBLE_EQ(times[0].done_us, 500);
  EXPECT_TRUE(ForecastPrefills({}, 0, kRules).empty());
}

TEST(PrefillForecast, LongOnesShareAlike) {
  const std::vector<ForecastJob> jobs = {{.left_us = 100, .is_long = true},
                                         {.left_us = 300, .is_long = true}};
  const auto times = ForecastPrefills(jobs, 2, kRules);
  EXPECT_DOUBLE_EQ(times[0].done_us, 200);
  EXPECT_DOUBLE_EQ(times[1].done_us, 400);
}

TEST(PrefillForecast, ShortOnesGoOneAfterTheOtherBesideALongOne) {
  const std::vector<ForecastJob> jobs = {
      {.left_us = 1'000, .is_long = true}, {.left_us = 75}, {.left_us = 75}};
  const auto times = ForecastPrefills(jobs, 3, kRules);
  EXPECT_DOUBLE_EQ(times[1].done_us, 100);
  EXPECT_DOUBLE_EQ(times[2].done_us, 200);
  EXPECT_DOUBLE_EQ(times[0].done_us, 1'150);
}

TEST(PrefillForecast, ABetterPriorityGoesFirst) {
  const std::vector<ForecastJob> jobs = {{.left_us = 100, .priority = 1},
                                         {.left_us = 300, .priority = 0, .is_long = true}};
  const auto times = ForecastPrefills(jobs, 2, kRules);
  EXPECT_DOUBLE_EQ(times[1].done_us, 300);
  EXPECT_DOUBLE_EQ(times[0].done_us, 400);
}

TEST(PrefillForecast, OneSlotIsKeptForShortOnes) {
  std::vector<ForecastJob> jobs(4, {.left_us = 100, .is_long = true});
  jobs.push_back({.left_us = 30});
  const auto times = ForecastPrefills(jobs, 0, kRules);
  EXPECT_DOUBLE_EQ(times[2].admitted_us, 0);
  EXPECT_DOUBLE_EQ(times[4].done_us, 40) << "overtakes the long one that waits for a slot";
  EXPECT_DOUBLE_EQ(times[3].admitted_us, times[0].done_us);
  EXPECT_DOUBLE_EQ(times[3].done_us, 430);
}

TEST(PrefillForecast, FollowersWaitForTheirLeader) {
  const std::vector<ForecastJob> jobs = {
      {.left_us = 100, .is_long = true},
      {.left_us = 10, .is_long = true, .leader = 0},
      {.left_us = 100, .is_long = true},
  };
  const auto times = ForecastPrefills(jobs, 3, kRules);
  EXPECT_DOUBLE_EQ(times[0].done_us, 200);
  EXPECT_DOUBLE_EQ(times[2].done_us, 200);
  EXPECT_DOUBLE_EQ(times[1].done_us, 210);
}

TEST(PrefillForecast, EndsWhateverTheJobs) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<ForecastJob> jobs(random() % 40);
    double total_us = 0;
    for (ForecastJob& job : jobs) {
      job = {.left_us = static_cast<double>(random() % 1'000) - 10,
             .priority = static_cast<int32_t>(random() % 3),
             .is_long = random() % 2 == 0};
      total_us += std::max(0.0, job.left_us);
    }
    const int64_t max_prefills = 1 + static_cast<int64_t>(random() % 5);
    const auto n_admitted = std::min<int64_t>(max_prefills, static_cast<int64_t>(jobs.size()));
    const auto times = ForecastPrefills(jobs, n_admitted, {.max_prefills = max_prefills});
    double last_us = 0;
    for (const ForecastTime& time : times) {
      EXPECT_GE(time.done_us, time.admitted_us);
      last_us = std::max(last_us, time.done_us);
    }
    EXPECT_NEAR(last_us, total_us, 1e-3) << "no time is lost or counted twice";
  }
}

}  // namespace
}  // namespace longhaul
