// Who is taken, who is refused, who waits, and what a request that broke off leaves for its retry:
// in virtual time against a fake model.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/retry_after.h"
#include "engine/scheduler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/scheduler_fixture.h"

namespace longhaul {
namespace {

using ::testing::HasSubstr;
using testing::Sink;

using SinkPtr = std::shared_ptr<Sink>;

class AdmissionTest : public testing::SchedulerTest {
 protected:
  AdmissionTest() { model_.n_pages = 600; }

  // Lets it measure a few slices.
  void StartLearned() {
    Start();
    Add(Prompt(4'096, 900));
    RunUntilIdle();
  }

  static Request Prompt(int64_t n_tokens, int32_t text, int64_t max_tokens = 1) {
    Request request = testing::SchedulerTest::Prompt(n_tokens, max_tokens, text);
    // Every text is another one from its first page on.
    request.prompt[0] = text % 61;
    if (n_tokens > 1) request.prompt[1] = text / 61 % 61;
    request.report_progress = true;
    return request;
  }
  Request WithDeadline(Request request, int64_t in_us) const {
    request.deadline = Clock::time_point(std::chrono::microseconds(now_us_ + in_us));
    return request;
  }
  void Step() {
    if (testing::SchedulerTest::Step() == 0) now_us_ += 100;
    ASSERT_FALSE(HasFailure());
    ASSERT_LE(static_cast<double>(n_pinned()), config_.retry_keep_share * model_.n_pages);
  }
  template <typename Condition>
  void StepUntil(const Condition& condition) {
    for (int step = 0; !condition(); ++step) {
      ASSERT_LT(step, 100'000);
      ASSERT_NO_FATAL_FAILURE(Step());
    }
  }
  void RunUntilIdle() {
    StepUntil([this] { return scheduler_->idle(); });
  }
  // Until so many tokens of its prompt are computed.
  void RunUntil(const Sink& sink, int64_t n_tokens) {
    StepUntil([&] { return sink.processed_tokens() >= n_tokens; });
  }
  // Prompts that finish, together five times the pool.
  void FillThePool() {
    for (int32_t i = 0; i < 50; ++i) {
      Add(Prompt(model_.n_pages * kPageTokens / 10, 100 + i));
      RunUntilIdle();
    }
  }

  int64_t n_pinned() const { return scheduler_->cache_stats().n_pages_pinned; }
};

// ---- acceptance ----

TEST_F(AdmissionTest, AcceptedComesFirstAndSaysWhatIsKnown) {
  Start();
  const SinkPtr cold = Add(Prompt(8'192, 1));
  ASSERT_TRUE(cold->accepted.has_value());
  EXPECT_EQ(cold->accepted->cached_tokens, 0);
  EXPECT_EQ(cold->accepted->predicted_ttft_us, -1) << "nothing was measured yet";
  RunUntilIdle();

  const SinkPtr warm = Add(Prompt(8'192, 1));
  EXPECT_EQ(warm->accepted->cached_tokens, 8'128) << "the last page is always computed";
  const SinkPtr other = Add(Prompt(8'192, 2));
  EXPECT_EQ(other->accepted->cached_tokens, 0);
  EXPECT_GT(other->accepted->predicted_ttft_us, 10 * warm->accepted->predicted_ttft_us);
  const int64_t begin_us = now_us_;
  RunUntilIdle();
  EXPECT_EQ(warm->done->cached_tokens, 8'128);
  const auto took_us = static_cast<double>(other->first_token_us - begin_us);
  EXPECT_NEAR(static_cast<double>(other->accepted->predicted_ttft_us), took_us, 0.25 * took_us);
}

TEST_F(AdmissionTest, WaitingTokensAreThoseOfPromptsNotAdmitted) {
  config_.max_num_seqs = 1;
  Start();
  EXPECT_EQ(scheduler_->n_waiting_tokens(), 0);
  Add(Prompt(1'000, 1, 50));
  const SinkPtr second = Add(Prompt(300, 2));
  Add(Prompt(20, 3));
  EXPECT_EQ(scheduler_->n_waiting_tokens(), 1'320);
  Step();
  EXPECT_EQ(scheduler_->n_waiting_tokens(), 320);
  second->cancel = true;
  Step();
  EXPECT_EQ(scheduler_->n_waiting_tokens(), 20);
  RunUntilIdle();
  EXPECT_EQ(scheduler_->n_waiting_tokens(), 0);
}

TEST_F(AdmissionTest, TimeInTheInboxCountsAsQueueTime) {
  Start();
  now_us_ = 50'000;
  const auto sink = std::make_shared<Sink>(&now_us_);
  scheduler_->Add(Prompt(64, 1), sink, now_us_, 7'000);
  RunUntilIdle();
  EXPECT_EQ(sink->done->queue_us, 7'000);
}

// ---- deadlines ----

TEST_F(AdmissionTest, APromptTooLongForItsDeadlineIsRefusedAtOnce) {
  StartLearned();
  const SinkPtr sink = Add(WithDeadline(Prompt(32'768, 1), 20'000));
  ASSERT_TRUE(sink->done.has_value());
  EXPECT_EQ(sink->n_events, 1) << "nothing before the refusal";
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->done->status)) << sink->done->status.ToString();
  EXPECT_EQ(RetryAfterUs(sink->done->status), std::nullopt) << "waiting does not help";
  const std::string text(sink->done->status.message());
  EXPECT_THAT(text, HasSubstr("32768 tokens"));
  EXPECT_THAT(text, HasSubstr("longer timeout"));
  EXPECT_THAT(text, HasSubstr("sparse"));
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(scheduler_->counters().n_refused_deadline, 1);
  EXPECT_EQ(scheduler_->counters().n_cancelled, 0);
}

TEST_F(AdmissionTest, AQueueTooLongForADeadlineSaysWhenToComeBack) {
  StartLearned();
  Add(Prompt(16'384, 1));
  Step();
  const Request request = WithPriority(Prompt(4'096, 2), 1);
  const SinkPtr refused = Add(WithDeadline(request, 100'000));
  ASSERT_TRUE(refused->done.has_value());
  EXPECT_EQ(refused->n_events, 1);
  EXPECT_TRUE(absl::IsResourceExhausted(refused->done->status)) << refused->done->status.ToString();
  const std::optional<int64_t> retry_after_us = RetryAfterUs(refused->done->status);
  ASSERT_TRUE(retry_after_us.has_value());
  EXPECT_GT(*retry_after_us, 0);
  EXPECT_EQ(scheduler_->counters().n_refused_deadline, 1);

  // Then it fits (the prediction may be a little off), and its deadline is kept.
  const int64_t again_us = now_us_ + *retry_after_us * 5 / 4;
  StepUntil([&] { return now_us_ >= again_us; });
  const SinkPtr accepted = Add(WithDeadline(request, 100'000));
  EXPECT_TRUE(accepted->accepted.has_value());
  RunUntilIdle();
  EXPECT_TRUE(accepted->done->status.ok()) << accepted->done->status.ToString();
}

TEST_F(AdmissionTest, ACachedPromptMeetsADeadlineThatAColdOneMisses) {
  StartLearned();
  Add(Prompt(16'384, 1));
  RunUntilIdle();
  const SinkPtr cold = Add(WithDeadline(Prompt(16'384, 2), 10'000));
  EXPECT_TRUE(absl::IsDeadlineExceeded(cold->done->status));
  const SinkPtr cached = Add(WithDeadline(Prompt(16'384, 1), 10'000));
  ASSERT_TRUE(cached->accepted.has_value());
  RunUntilIdle();
  EXPECT_TRUE(cached->done->status.ok()) << cached->done->status.ToString();
}

TEST_F(AdmissionTest, NobodyIsRefusedOnAGuess) {
  Start();
  const SinkPtr sink = Add(WithDeadline(Prompt(32'768, 1), 20'000));
  EXPECT_TRUE(sink->accepted.has_value());
  RunUntilIdle();
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->done->status));
  EXPECT_GE(sink->done_us, 20'000) << "it had all its time";
  EXPECT_EQ(scheduler_->counters().n_refused_deadline, 0);
  EXPECT_EQ(scheduler_->counters().n_cancelled, 1);
}

TEST_F(AdmissionTest, ADeadlineInThePastIsRefused) {
  Start();
  now_us_ = 1'000;
  const SinkPtr sink = Add(WithDeadline(Prompt(64, 1), 0));
  ASSERT_TRUE(sink->done.has_value());
  EXPECT_EQ(sink->n_events, 1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->done->status));
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(AdmissionTest, OnceAcceptedOnlyTheDeadlineItselfEndsARequest) {
  StartLearned();
  const SinkPtr sink = Add(WithDeadline(Prompt(4'096, 1), 100'000));
  ASSERT_TRUE(sink->accepted.has_value());
  const int64_t deadline_us = now_us_ + 100'000;
  Step();
  // Better ones come and take all the time.
  for (int32_t i = 0; i < 3; ++i) Add(WithPriority(Prompt(8'192, 10 + i), -1));
  RunUntilIdle();
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->done->status)) << sink->done->status.ToString();
  EXPECT_GE(sink->done_us, deadline_us);
  EXPECT_LT(sink->done_us, deadline_us + 2 * config_.slice_us);
}

// ---- retry ----

class Retry : public AdmissionTest, public ::testing::WithParamInterface<SparseMode> {
 protected:
  static Request TheRequest(int64_t max_tokens = 1) {
    Request request = Prompt(16'384, 1, max_tokens);
    request.sparse->mode = GetParam();
    return request;
  }
};

TEST_P(Retry, FindsWhatWasComputedAlthoughOthersFilledThePool) {
  StartLearned();
  const SinkPtr first = Add(TheRequest());
  RunUntil(*first, 16'384 * 8 / 10);
  first->cancel = true;
  Step();
  ASSERT_TRUE(absl::IsCancelled(first->done->status));
  EXPECT_GT(n_pinned(), 0);
  FillThePool();
  const SinkPtr retry = Add(TheRequest());
  EXPECT_GE(retry->accepted->cached_tokens, 16'384 * 75 / 100);
  RunUntilIdle();
  EXPECT_TRUE(retry->done->status.ok());
  EXPECT_GE(retry->done->cached_tokens, 16'384 * 75 / 100);
}

TEST_P(Retry, FindsNothingWhereNothingIsKept) {
  config_.retry_keep_us = 0;
  StartLearned();
  const SinkPtr first = Add(TheRequest());
  RunUntil(*first, 16'384 * 8 / 10);
  first->cancel = true;
  Step();
  EXPECT_EQ(n_pinned(), 0);
  FillThePool();
  const SinkPtr retry = Add(TheRequest());
  EXPECT_EQ(retry->accepted->cached_tokens, 0);
}

TEST_P(Retry, WorksAfterADeadlineAndAFailedStep) {
  Start();  // not learned: the deadline is not refused
  const SinkPtr late = Add(WithDeadline(TheRequest(), 150'000));
  RunUntilIdle();
  ASSERT_TRUE(absl::IsDeadlineExceeded(late->done->status));
  const int64_t n_first = n_pinned();
  EXPECT_GT(n_first, 10);
  const SinkPtr failing = Add(TheRequest());
  RunUntil(*failing, 16'384 * 8 / 10);
  executor_->FailStep(executor_->n_steps() + 1);
  RunUntilIdle();
  ASSERT_TRUE(absl::IsInternal(failing->done->status));
  EXPECT_GT(n_pinned(), n_first);
  FillThePool();
  const SinkPtr retry = Add(TheRequest());
  EXPECT_GE(retry->accepted->cached_tokens, 16'384 * 75 / 100);
}

TEST_P(Retry, AnAnswerThatBrokeOffKeepsItsPrompt) {
  StartLearned();
  Request request = TheRequest(500);
  request.n = 3;
  const SinkPtr first = Add(request);
  StepUntil([&] { return first->first_token_us >= 0; });
  for (int i = 0; i < 100; ++i) Step();
  first->cancel = true;
  Step();
  EXPECT_GE(n_pinned(), 250);
  FillThePool();
  const SinkPtr retry = Add(request);
  EXPECT_GE(retry->accepted->cached_tokens, 16'384 * 95 / 100);
}

TEST_P(Retry, ThatBreaksOffAgainIsKeptAnew) {
  config_.retry_keep_us = 1'000'000;
  StartLearned();
  for (int i = 0; i < 3; ++i) {
    const SinkPtr attempt = Add(TheRequest());
    RunUntil(*attempt, 16'384 * (6 + i) / 10);
    attempt->cancel = true;
    Step();
    now_us_ += 800'000;  // the pin of the attempt before is over by now
    Step();
    EXPECT_GE(n_pinned() * kPageTokens, 16'384 * (5 + i) / 10) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Retry,
                         ::testing::Values(SparseMode::kDense, SparseMode::kSample),
                         [](const auto& info) { return std::string(SparseModeName(info.param)); });

TEST_F(AdmissionTest, APromptThatFinishedIsNotPinned) {
  StartLearned();
  Add(Prompt(8'192, 1, 10));
  RunUntilIdle();
  EXPECT_EQ(n_pinned(), 0);
  EXPECT_GT(scheduler_->cache_stats().n_pages_idle, 128);
}

TEST_F(AdmissionTest, PinsEndInTime) {
  config_.retry_keep_us = 3'000'000;
  StartLearned();
  const SinkPtr first = Add(Prompt(8'192, 1));
  RunUntil(*first, 6'000);
  first->cancel = true;
  const int64_t broke_off_us = now_us_;
  Step();
  const int64_t n_kept = n_pinned();
  EXPECT_GE(n_kept, 90);
  now_us_ = broke_off_us + 2'999'999;
  Step();
  EXPECT_EQ(n_pinned(), n_kept);
  now_us_ = broke_off_us + 3'000'000;
  Step();
  EXPECT_EQ(n_pinned(), 0);
  EXPECT_GE(Add(Prompt(8'192, 1))->accepted->cached_tokens, 5'900) << "still cached, like others";
  RunUntilIdle();
  FillThePool();
  EXPECT_EQ(Add(Prompt(8'192, 1))->accepted->cached_tokens, 0);
}

TEST_F(AdmissionTest, ManyThatBreakOffKeepTheLatestWithinTheShare) {
  config_.retry_keep_share = 0.3;  // 180 pages; Step checks the bound
  StartLearned();
  for (int32_t text = 1; text <= 4; ++text) {
    const SinkPtr sink = Add(Prompt(6'400, text));
    RunUntil(*sink, 5'120);
    sink->cancel = true;
    Step();
    now_us_ += 1'000;
  }
  EXPECT_EQ(n_pinned(), 180);
  FillThePool();
  EXPECT_GE(Add(Prompt(6'400, 4))->accepted->cached_tokens, 5'120);
  EXPECT_GE(Add(Prompt(6'400, 3))->accepted->cached_tokens, 5'120);
  EXPECT_EQ(Add(Prompt(6'400, 1))->accepted->cached_tokens, 0);
}

TEST_F(AdmissionTest, PinnedPagesNeverMakeARequestWait) {
  config_.retry_keep_share = 1;
  StartLearned();
  for (int32_t text = 1; text <= 2; ++text) {
    const SinkPtr sink = Add(Prompt(19'200, text));
    RunUntil(*sink, 17'000);
    sink->cancel = true;
    Step();
  }
  EXPECT_GT(n_pinned(), 500);
  Add(Prompt(model_.n_pages * kPageTokens, 7));
  Step();
  EXPECT_EQ(scheduler_->n_running(), 1) << "it gets the whole pool";
  RunUntilIdle();
  EXPECT_EQ(n_pinned(), 0);
  EXPECT_GT(scheduler_->cache_stats().n_evictions, 500);
}

// ---- order ----

TEST_F(AdmissionTest, ABetterRequestThatDoesNotFitIsNotStarvedByOthers) {
  model_.n_pages = 64;
  config_.max_prefills = model_.max_prefills = 8;
  Start();
  int32_t text = 10;
  for (int i = 0; i < 3; ++i) Add(WithPriority(Prompt(64, text++, 400), 5));
  Step();
  const SinkPtr better = Add(WithPriority(Prompt(60 * kPageTokens, 1), 0));
  int64_t n_admitted = 0;
  while (better->processed_tokens() == 0) {
    ASSERT_LT(text, 2'000);
    while (scheduler_->n_waiting() < 3) Add(WithPriority(Prompt(64, text++, 400), 5));
    const int64_t n_running = scheduler_->n_running();
    Step();
    n_admitted += std::max<int64_t>(0, scheduler_->n_running() - n_running);
  }
  EXPECT_GT(n_admitted, 3) << "meanwhile small ones use the room";
  EXPECT_LE(n_admitted, Scheduler::kMaxOvertakes + 1);
}

TEST_F(AdmissionTest, EqualsAreAdmittedInOrderAndBetterOnesFirst) {
  config_.max_num_seqs = 1;
  Start();
  const SinkPtr running = Add(Prompt(640, 1));
  Step();
  const SinkPtr a = Add(WithPriority(Prompt(640, 2), 1));
  const SinkPtr b = Add(WithPriority(Prompt(640, 3), 1));
  const SinkPtr better = Add(WithPriority(Prompt(640, 4), 0));
  RunUntilIdle();
  EXPECT_LT(running->done_us, better->done_us);
  EXPECT_LT(better->done_us, a->done_us);
  EXPECT_LT(a->done_us, b->done_us);
}

TEST_F(AdmissionTest, LongPromptsLeaveAPlaceForAShortOne) {
  config_.max_prefills = model_.max_prefills = 2;
  StartLearned();
  const SinkPtr running = Add(Prompt(8'192, 1));
  Step();
  const SinkPtr better_long = Add(WithPriority(Prompt(8'192, 2), -1));
  const SinkPtr shorter = Add(Prompt(64, 3));
  Step();
  EXPECT_EQ(scheduler_->n_waiting(), 1) << "one place is for short prompts: they do not wait";
  RunUntilIdle();
  EXPECT_LT(shorter->done_us, running->done_us);
  EXPECT_GT(better_long->done_us, running->done_us) << "nobody is preempted";
}

TEST_F(AdmissionTest, WhoWouldGetNoTimeTakesNoPlaceYet) {
  StartLearned();
  const SinkPtr better = Add(WithPriority(Prompt(8'192, 1), -1));
  Step();
  const SinkPtr worse_long = Add(Prompt(8'192, 2));
  std::vector<SinkPtr> worse;
  for (int32_t i = 0; i < 8; ++i) worse.push_back(Add(Prompt(64, 10 + i)));
  Step();
  EXPECT_EQ(scheduler_->n_waiting(), 9);
  const SinkPtr better_short = Add(WithPriority(Prompt(64, 3), -1));
  StepUntil([&] { return better_short->done.has_value(); });
  EXPECT_FALSE(better->done.has_value());
  RunUntilIdle();
  for (const SinkPtr& sink : worse) EXPECT_LT(sink->done_us, worse_long->done_us);
}

TEST_F(AdmissionTest, AShortPromptInThePlaceThatABetterOneNeedsIsServed) {
  config_.max_prefills = model_.max_prefills = 3;
  StartLearned();
  Add(Prompt(16'384, 1));
  Step();
  // A short prompt that was admitted while a long one has its turn.
  SinkPtr worse;
  int32_t text = 100;
  StepUntil([&] {
    if (worse != nullptr && !worse->done.has_value()) return scheduler_->n_waiting() == 0;
    worse = Add(Prompt(256, text++));
    return false;
  });
  const SinkPtr better_long = Add(WithPriority(Prompt(16'384, 2), -1));
  Step();
  ASSERT_EQ(scheduler_->n_waiting(), 0);
  ASSERT_FALSE(worse->done.has_value());
  const SinkPtr better_short = Add(WithPriority(Prompt(64, 3), -1));
  const int64_t begin_us = now_us_;
  StepUntil([&] { return better_short->done.has_value(); });
  EXPECT_TRUE(worse->done.has_value());
  EXPECT_LT(better_short->done_us - begin_us, 4 * config_.slice_us);
  EXPECT_FALSE(better_long->done.has_value());
}

TEST_F(AdmissionTest, ABetterLongPromptTakesOverOnceItHasAPlace) {
  config_.max_prefills = model_.max_prefills = 3;
  StartLearned();
  const SinkPtr running = Add(Prompt(8'192, 1));
  Step();
  const SinkPtr better = Add(WithPriority(Prompt(8'192, 2), -1));
  Step();
  const int64_t processed_tokens = running->processed_tokens();
  StepUntil([&] { return better->done.has_value(); });
  EXPECT_EQ(running->processed_tokens(), processed_tokens);
  RunUntilIdle();
  EXPECT_TRUE(running->done->status.ok());
}

// ---- statistics ----

TEST_F(AdmissionTest, HitsAndEvictionsAreCounted) {
  StartLearned();
  const SchedulerCounters before = scheduler_->counters();
  Add(Prompt(1'024, 1));
  RunUntilIdle();
  Add(Prompt(1'024, 1));
  RunUntilIdle();
  const SchedulerCounters& after = scheduler_->counters();
  EXPECT_EQ(after.prefix_queried_tokens - before.prefix_queried_tokens, 2'048);
  EXPECT_EQ(after.prefix_hit_tokens - before.prefix_hit_tokens, 960);
  EXPECT_EQ(scheduler_->cache_stats().n_evictions, 0);
  FillThePool();
  EXPECT_GT(scheduler_->cache_stats().n_evictions, 2'000);
}

}  // namespace
}  // namespace longhaul
