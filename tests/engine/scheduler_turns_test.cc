// Who gets the time: short prompts among long ones, long ones among each other, priorities, decode
// rows; in virtual time against a fake model.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/scheduler_fixture.h"

namespace longhaul {
namespace {

using testing::SchedulerTest;
using testing::Sink;

// Prompts of 256 tokens that arrive at random, with a pause of mean_gap_us on average.
class TurnsTest : public SchedulerTest {
 protected:
  struct Arrival {
    int64_t at_us;
    std::shared_ptr<Sink> sink;
  };

  // Adds those that are due. Each has a text of its own, unlike the long prompts' (0 to 9).
  void AddDue(std::vector<Arrival>& arrivals) {
    while (next_arrival_us_ <= now_us_) {
      auto sink = std::make_shared<Sink>(&now_us_);
      const int32_t text = 10 + static_cast<int32_t>(arrivals.size() % 50);
      Request request = Prompt(256, 1, text);
      request.cache_salt = std::to_string(arrivals.size());
      scheduler_->Add(std::move(request), sink, now_us_, now_us_ - next_arrival_us_);
      arrivals.push_back({next_arrival_us_, sink});
      std::exponential_distribution<double> gap(1.0 / mean_gap_us_);
      next_arrival_us_ += 1 + static_cast<int64_t>(gap(random_));
    }
  }

  // Of the k-th permille of the times to first token.
  static int64_t Permille(const std::vector<Arrival>& arrivals, size_t permille) {
    std::vector<int64_t> times;
    for (const Arrival& arrival : arrivals) {
      if (arrival.sink->first_token_us < 0) continue;
      times.push_back(arrival.sink->first_token_us - arrival.at_us);
    }
    std::sort(times.begin(), times.end());
    return times[(times.size() - 1) * permille / 1000];
  }

  double mean_gap_us_ = 0;
  int64_t next_arrival_us_ = 0;
  std::mt19937 random_{11};
};

TEST_F(TurnsTest, AShortPromptWaitsForTheSliceInFlight) {
  Start();
  Add(Prompt(65'536, 1));
  for (int i = 0; i < 200; ++i) Step();
  for (int32_t trial = 0; trial < 20; ++trial) {
    const int64_t begin_us = now_us_;
    const int64_t in_flight_us = Step();  // it arrives right behind the start of this one
    const auto sink = Add(Prompt(100, 1, trial + 1));
    while (!sink->done.has_value()) Step();
    EXPECT_LE(now_us_ - begin_us, in_flight_us + 3 * 130) << trial;
  }
}

TEST_F(TurnsTest, PoissonShortPromptsAtHalfTheTimeBarelyNoticeALongOne) {
  config_.slice_us = 20'000;  // the longest layer takes 17'000
  const int64_t short_us = TimeAlone(Prompt(256, 1, 1));
  const int64_t long_us = TimeAlone(Prompt(65'536, 1));
  mean_gap_us_ = 2.0 * static_cast<double>(short_us);

  // Without the long prompt.
  Start();
  std::vector<Arrival> alone;
  while (alone.size() < 2'000) {
    AddDue(alone);
    if (Step() == 0) now_us_ = next_arrival_us_;
  }
  const int64_t alone_p99_us = Permille(alone, 990);

  Start();
  now_us_ = next_arrival_us_ = 0;
  const auto long_sink = Add(Prompt(65'536, 1));
  std::vector<Arrival> crowded;
  int64_t longest_us = 0;
  while (!long_sink->done.has_value()) {
    AddDue(crowded);
    longest_us = std::max(longest_us, Step());
  }
  ASSERT_GT(crowded.size(), 1'000u);
  EXPECT_LE(Permille(crowded, 990), 3 * alone_p99_us + config_.slice_us);
  EXPECT_LE(longest_us, config_.slice_us * 12 / 10);
  // It had half of the time.
  EXPECT_LE(long_sink->done_us, 2 * long_us * 11 / 10);
}

TEST_F(TurnsTest, ShortPromptsDoNotStarveALongOne) {
  Start();
  const auto long_sink = Add(Prompt(8'192, 1));
  const int64_t alone_us = TimeAlone(Prompt(8'192, 1));
  int32_t text = 1;
  while (!long_sink->done.has_value()) {
    while (scheduler_->n_waiting() < 4) Add(Prompt(100, 1, text++));
    Step();
    ASSERT_LT(now_us_, 10 * alone_us);
  }
  // A quarter of the time is its own.
  EXPECT_LT(long_sink->done_us, 4.4 * static_cast<double>(alone_us));
}

TEST_F(TurnsTest, APromptThatIsNotAsShortAsPredictedGivesWay) {
  // The first prompts teach that pairs cost nothing; then they cost most.
  model_.pair_us = 0.2;
  config_.slice_us = 10'000;
  Start();
  for (int32_t text = 1; text < 60; ++text) {
    Add(Prompt(4, 1, text));
    RunUntilIdle();
  }
  const auto wrong = Add(Prompt(512, 1, 60));
  const int64_t wrong_us = TimeAlone(Prompt(512, 1, 60));
  ASSERT_GT(wrong_us, 5 * config_.slice_us);
  Step();
  ASSERT_FALSE(wrong->done.has_value());
  int64_t worst_us = 0;
  for (int32_t text = 1; !wrong->done.has_value(); ++text) {
    const int64_t begin_us = now_us_;
    Request request = Prompt(64, 1, text);
    request.cache_salt = "new";
    const auto sink = Add(std::move(request));
    while (!sink->done.has_value()) Step();
    worst_us = std::max(worst_us, now_us_ - begin_us);
  }
  EXPECT_LT(worst_us, wrong_us / 2) << "they did not wait for its end";
}

TEST_F(TurnsTest, FourLongPromptsAtOnceTakeTheTimeOfFourInARow) {
  Start();
  const int64_t alone_us = TimeAlone(Prompt(16'384, 1, 1));
  std::vector<std::shared_ptr<Sink>> sinks;
  config_.max_prefills = model_.max_prefills = 5;
  Start();
  for (int32_t text = 1; text <= 4; ++text) {
    sinks.push_back(Add(WithProgress(Prompt(16'384, 1, text))));
  }
  int64_t n_apart = 0;
  while (sinks[0]->processed_tokens() < 16'384) {
    Step();
    int64_t least = 16'384, most = 0;
    for (const auto& sink : sinks) {
      least = std::min(least, sink->processed_tokens());
      most = std::max(most, sink->processed_tokens());
    }
    n_apart += most - least > 3 * model_.epoch_tokens;
  }
  EXPECT_EQ(n_apart, 0) << "all advance together";
  RunUntilIdle();
  for (const auto& sink : sinks) {
    EXPECT_GT(sink->done_us, 4 * alone_us * 9 / 10);
    EXPECT_LT(sink->done_us, 4 * alone_us * 11 / 10);
  }
}

TEST_F(TurnsTest, ANewcomerNeitherCatchesUpNorWaits) {
  Start();
  Add(WithProgress(Prompt(32'768, 1, 1)));
  for (int i = 0; i < 200; ++i) Step();
  const auto newcomer = Add(WithProgress(Prompt(32'768, 1, 2)));
  // In the next 100 slices each has about half of the time.
  int64_t newcomer_us = 0;
  int64_t total_us = 0;
  for (int i = 0; i < 100; ++i) {
    const int64_t us = Step();
    ASSERT_EQ(last_plan_prefill_.size(), 1u);
    total_us += us;
    if (last_plan_prefill_[0].tokens[0] == Prompt(1, 1, 2).prompt[0] ||
        newcomer->progress.back().first == now_us_) {
      newcomer_us += us;
    }
  }
  EXPECT_NEAR(static_cast<double>(newcomer_us), 0.5 * static_cast<double>(total_us),
              0.05 * static_cast<double>(total_us));
}

TEST_F(TurnsTest, PriorityGoesFirst) {
  Start();
  const auto low = Add(WithPriority(Prompt(8'192, 1, 1), 5));
  const auto low_too = Add(WithPriority(Prompt(8'192, 1, 3), 5));
  for (int i = 0; i < 20; ++i) Step();
  const auto high = Add(WithPriority(Prompt(8'192, 1, 2), -1));
  RunUntilIdle();
  EXPECT_LT(high->done_us, low->done_us * 5 / 10);
  // Those that gave way go on alike.
  EXPECT_GT(low->done_us, low_too->done_us * 9 / 10);
  EXPECT_GT(low_too->done_us, low->done_us * 9 / 10);
}

TEST_F(TurnsTest, AShortPromptOfWorsePriorityWaits) {
  Start();
  const auto high = Add(Prompt(8'192, 1, 1));
  Step();
  const auto low = Add(WithPriority(Prompt(100, 1, 2), 1));
  RunUntilIdle();
  EXPECT_GT(low->first_token_us, high->first_token_us);
}

TEST_F(TurnsTest, DecodeRowsRideWithEverySlice) {
  Start();
  const auto answer = Add(Prompt(64, 100));
  Step();
  Add(Prompt(8'192, 1));
  int64_t longest_us = 0;
  int64_t n_steps = 0;
  while (!answer->done.has_value()) {
    const int64_t us = Step();
    if (++n_steps > 20) longest_us = std::max(longest_us, us);
    EXPECT_EQ(n_last_decode_, 1u);
  }
  EXPECT_FALSE(last_plan_prefill_.empty());
  // Between two tokens: one slice and one decode step.
  EXPECT_LE(longest_us, config_.slice_us * 12 / 10 + 105);
}

TEST_F(TurnsTest, ALayerLongerThanTheSliceGoesAlone) {
  config_.slice_us = 100;  // a layer of an epoch takes 150 and more
  Start();
  const auto answer = Add(Prompt(64, 400));
  while (answer->tokens.empty()) Step();
  std::vector<std::shared_ptr<Sink>> sinks;
  for (int32_t text = 1; text <= 3; ++text) sinks.push_back(Add(Prompt(1'024, 1, text)));
  while (std::any_of(sinks.begin(), sinks.end(), [](const auto& s) { return !s->done; })) {
    const bool decodes = !answer->done.has_value();
    Step();
    EXPECT_EQ(n_last_decode_, decodes ? 1u : 0u);
    ASSERT_LE(last_plan_prefill_.size(), 1u);
    for (const PrefillSlice& slice : last_plan_prefill_) {
      EXPECT_EQ(slice.layer_end - slice.layer_begin, 1);
    }
  }
  RunUntilIdle();
}

TEST_F(TurnsTest, AfterACancelTheNextShortPromptIsServedAtOnce) {
  Start();
  std::mt19937 random(5);
  for (int32_t trial = 0; trial < 10; ++trial) {
    const auto sink = Add(Prompt(16'384, 1, trial + 1));
    const int n_steps = 20 + static_cast<int>(random() % 200);
    for (int i = 0; i < n_steps; ++i) Step();
    const int64_t begin_us = now_us_;
    const int64_t in_flight_us = Step();
    sink->cancel = true;
    const auto next = Add(Prompt(100, 1, trial + 20));
    while (!next->done.has_value()) Step();
    EXPECT_LE(now_us_ - begin_us, in_flight_us + 3 * 130);
    EXPECT_TRUE(absl::IsCancelled(sink->done->status));
    const CacheStats stats = scheduler_->cache_stats();
    EXPECT_EQ(stats.n_pages_used, 0);
    EXPECT_EQ(stats.n_pages_reserved, 0);
  }
}

TEST_F(TurnsTest, ChoicesShareThePromptsPages) {
  for (int64_t n_prompt : {8'192 + 10, 8'192}) {
    Start();
    Request request = Prompt(n_prompt, 70);
    request.n = 8;
    request.sampling.temperature = 1;  // eight different answers
    request.sampling.seed = 3;
    const auto sink = Add(std::move(request));
    int64_t most_used = 0;
    size_t n_copies = 0;
    while (!scheduler_->idle()) {
      Step();
      n_copies += n_last_copies_;
      most_used = std::max(most_used, scheduler_->cache_stats().n_pages_used);
    }
    EXPECT_EQ(sink->done->output_tokens, 8 * 70);
    // Of the prompt 128 full pages; each choice has two of its own: 10 + 69 tokens, or 69. The
    // partial page is copied for all but one.
    EXPECT_EQ(most_used, 128 + 8 * 2);
    EXPECT_EQ(n_copies, n_prompt % kPageTokens != 0 ? 7u : 0u);
    EXPECT_EQ(scheduler_->cache_stats().n_pages_used, 0);
  }
}

}  // namespace
}  // namespace longhaul
