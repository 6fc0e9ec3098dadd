// The scheduler's promises one by one, in virtual time against a fake model.
#include "engine/scheduler.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/scheduler_fixture.h"

namespace longhaul {
namespace {

using testing::SchedulerTest;
using testing::Sink;

TEST_F(SchedulerTest, SlicesFitTheBudgetOnceTheModelIsLearned) {
  model_.shape.n_layers = 12;
  config_.slice_us = 6'000;
  Start();
  Add(Prompt(16'384, 1));
  std::vector<int64_t> steps;
  while (!scheduler_->idle()) steps.push_back(Step());
  // 12 layers of an epoch take from 2 to 50 ms here, so most slices are a few layers.
  int64_t n_over = 0;
  for (size_t i = 10; i < steps.size(); ++i) n_over += steps[i] > config_.slice_us * 11 / 10;
  const double last_layer_us = model_.cell_us + 128 + model_.pair_us * 128 * 16'384;
  ASSERT_LT(last_layer_us, static_cast<double>(config_.slice_us));
  EXPECT_LE(n_over, static_cast<int64_t>(steps.size()) / 10);
  EXPECT_GT(steps.size(), 200u);
}

TEST_F(SchedulerTest, AtLeastOneLayerWhateverTheBudget) {
  config_.slice_us = 1;
  Start();
  const auto sink = Add(Prompt(300, 2));
  RunUntilIdle();
  EXPECT_TRUE(sink->done->status.ok());
  EXPECT_EQ(executor_->n_steps(), 3 * model_.shape.n_layers + 1);
}

TEST_F(SchedulerTest, ALargeRequestIsNotOvertakenForEver) {
  model_.n_pages = 64;
  Start();
  int32_t text = 10;
  for (int i = 0; i < 3; ++i) Add(Prompt(64, 400, text++));
  Step();
  const auto large = Add(Prompt(63 * 64, 1));  // nearly the whole pool
  for (int step = 0; !large->done.has_value(); ++step) {
    ASSERT_LT(step, 20'000);
    while (scheduler_->n_waiting() < 3) Add(Prompt(64, 400, text++));
    Step();
  }
  EXPECT_TRUE(large->done->status.ok());
}

TEST_F(SchedulerTest, AKnownPromptComputesItsLastPageOnly) {
  Start();
  const auto cold = Add(Prompt(1'024, 4));
  RunUntilIdle();
  const int64_t before = executor_->prefilled_tokens();
  const auto warm = Add(Prompt(1'024, 4));
  RunUntilIdle();
  EXPECT_EQ(executor_->prefilled_tokens() - before, 64);
  EXPECT_EQ(warm->done->cached_tokens, 960);
  ASSERT_EQ(warm->tokens.size(), cold->tokens.size());
  for (size_t i = 0; i < warm->tokens.size(); ++i) {
    EXPECT_EQ(warm->tokens[i].token, cold->tokens[i].token);
  }
  EXPECT_EQ(scheduler_->counters().prefix_hit_tokens, 960);
}

TEST_F(SchedulerTest, AnAnswerIsPartOfTheNextPrompt) {
  Start();
  const auto first = Add(Prompt(200, 100));
  RunUntilIdle();
  Request next = Prompt(200, 4);
  for (const TokenEvent& token : first->tokens) next.prompt.push_back(token.token);
  const auto second = Add(std::move(next));
  RunUntilIdle();
  EXPECT_EQ(second->done->cached_tokens, 256) << "the last token was never fed, so 299 are known";
}

TEST_F(SchedulerTest, ASparsePromptIsSharedInWholeEpochsBeforeItsTail) {
  Start();
  Request request = Prompt(1'024 + 63, 1);
  request.sparse->mode = SparseMode::kSample;
  Add(request);
  RunUntilIdle();
  const auto again = Add(request);
  RunUntilIdle();
  EXPECT_EQ(again->done->cached_tokens, 896) << "[896, 1024) ends 63 tokens before the end";
  Request longer = Prompt(2'048, 1);
  longer.sparse->mode = SparseMode::kSample;
  const auto extended = Add(longer);
  RunUntilIdle();
  EXPECT_EQ(extended->done->cached_tokens, 896);
  const auto dense = Add(Prompt(1'024, 1));
  RunUntilIdle();
  EXPECT_EQ(dense->done->cached_tokens, 0) << "sparse keys and values are never served to dense";
}

TEST_F(SchedulerTest, CancelFreesPagesAtTheNextPlan) {
  Start();
  const auto sink = Add(Prompt(8'192, 1));
  for (int i = 0; i < 30; ++i) Step();
  EXPECT_GT(scheduler_->cache_stats().n_pages_used, 0);
  sink->cancel = true;
  EXPECT_EQ(Step(), 0);
  EXPECT_TRUE(absl::IsCancelled(sink->done->status));
  EXPECT_EQ(scheduler_->cache_stats().n_pages_used, 0);
  EXPECT_EQ(scheduler_->cache_stats().n_pages_reserved, 0);
  EXPECT_GT(scheduler_->cache_stats().n_pages_idle, 0) << "what was computed stays for a retry";

  const int64_t before = executor_->prefilled_tokens();
  const auto retry = Add(Prompt(8'192, 1));
  RunUntilIdle();
  EXPECT_GT(retry->done->cached_tokens, 0);
  EXPECT_LT(executor_->prefilled_tokens() - before, 8'192);
}

TEST_F(SchedulerTest, DeadlinesEndPrefillAndQueue) {
  config_.max_num_seqs = 1;
  Start();
  Request request = Prompt(32'768, 1);
  request.deadline = Clock::time_point(std::chrono::microseconds(20'000));
  const auto running = Add(request);
  const auto queued = Add(request);
  RunUntilIdle();
  EXPECT_TRUE(absl::IsDeadlineExceeded(running->done->status));
  EXPECT_TRUE(absl::IsDeadlineExceeded(queued->done->status));
  EXPECT_LT(now_us_, 20'000 + 3 * config_.slice_us);
  EXPECT_EQ(scheduler_->counters().n_cancelled, 2);
}

TEST_F(SchedulerTest, AFailedStepEndsOnlyItsRequests) {
  config_.max_num_seqs = 1;
  Start();
  const auto first = Add(Prompt(100, 50));
  const auto second = Add(Prompt(100, 3, 1));
  executor_->FailStep(3);
  RunUntilIdle();
  EXPECT_TRUE(absl::IsInternal(first->done->status));
  EXPECT_TRUE(second->done->status.ok());
  EXPECT_EQ(scheduler_->counters().n_failed, 1);
}

TEST_F(SchedulerTest, NanLogitsEndTheRequest) {
  for (int64_t step : {1, 2}) {  // in the prefill, in the decode
    Start();
    const auto sink = Add(Prompt(20, 5));
    executor_->NanStep(step);
    RunUntilIdle();
    EXPECT_TRUE(absl::IsInternal(sink->done->status)) << sink->done->status.ToString();
    const auto next = Add(Prompt(20, 5));
    RunUntilIdle();
    EXPECT_TRUE(next->done->status.ok());
  }
}

TEST_F(SchedulerTest, StopTokensLengthsAndPrefillOnly) {
  Start();
  const auto free_run = Add(Prompt(50, 20));
  RunUntilIdle();
  ASSERT_EQ(free_run->tokens.size(), 20u);
  EXPECT_EQ(free_run->tokens.back().finish, FinishReason::kLength);

  Request stopped = Prompt(50, 20);
  stopped.stop_token_ids = {free_run->tokens[5].token};
  const auto first = std::find_if(
      free_run->tokens.begin(), free_run->tokens.end(),
      [&](const TokenEvent& token) { return token.token == stopped.stop_token_ids[0]; });
  const auto stop_sink = Add(stopped);
  RunUntilIdle();
  EXPECT_EQ(stop_sink->tokens.size(), static_cast<size_t>(first - free_run->tokens.begin()) + 1);
  EXPECT_EQ(stop_sink->tokens.back().finish, FinishReason::kStop);

  stopped.sampling.min_tokens = 15;
  const auto min_sink = Add(stopped);
  RunUntilIdle();
  EXPECT_GT(min_sink->tokens.size(), 15u);

  stopped.sampling.min_tokens = 0;
  stopped.stop_token_ids.clear();
  const auto ignore_sink = Add(stopped);
  RunUntilIdle();
  EXPECT_EQ(ignore_sink->tokens.size(), 20u);

  const auto prefill_only = Add(Prompt(50, 0));
  RunUntilIdle();
  ASSERT_EQ(prefill_only->tokens.size(), 1u);
  EXPECT_EQ(prefill_only->tokens[0].token, -1);
  EXPECT_EQ(prefill_only->tokens[0].finish, FinishReason::kLength);
  EXPECT_EQ(prefill_only->done->output_tokens, 0);
}

TEST_F(SchedulerTest, EtaIsRightFromATenthOn) {
  Start();
  Request request = Prompt(32'768, 1);
  request.report_progress = true;
  const auto sink = Add(std::move(request));
  RunUntilIdle();
  ASSERT_GT(sink->progress.size(), 100u);
  EXPECT_EQ(sink->progress.front().second.phase, Phase::kQueued);
  EXPECT_EQ(sink->progress.front().second.eta_us, -1) << "nothing was measured yet";
  EXPECT_EQ(sink->progress.back().second.phase, Phase::kDecode);
  EXPECT_EQ(sink->progress.back().second.processed_tokens, 32'768);
  for (const auto& [at_us, progress] : sink->progress) {
    if (progress.processed_tokens < 3'277 || progress.phase != Phase::kPrefill) continue;
    const auto left_us = static_cast<double>(sink->first_token_us - at_us);
    if (left_us < 10'000) break;  // about a layer; only now is there a pass of a single row
    EXPECT_NEAR(static_cast<double>(progress.eta_us), left_us, 0.25 * left_us) << at_us;
  }
}

}  // namespace
}  // namespace longhaul
