// The scheduler's promises one by one, in virtual time against a fake model.
#include "engine/scheduler.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "tests/testing/fake_executor.h"

namespace longhaul {
namespace {

using testing::FakeExecutor;
using testing::FakeModel;

struct Sink : EventSink {
  explicit Sink(const int64_t* clock_us) : now_us(clock_us) {}
  void Emit(StreamEvent event) override {
    if (auto* token = std::get_if<TokenEvent>(&event)) {
      if (first_token_us < 0) first_token_us = *now_us;
      tokens.push_back(*token);
    } else if (auto* p = std::get_if<ProgressEvent>(&event)) {
      progress.push_back({*now_us, *p});
    } else if (std::holds_alternative<DoneEvent>(event)) {
      done = std::get<DoneEvent>(std::move(event));
      done_us = *now_us;
    }
  }
  bool cancelled() const override { return cancel; }

  const int64_t* now_us;
  bool cancel = false;
  std::vector<TokenEvent> tokens;
  std::vector<std::pair<int64_t, ProgressEvent>> progress;
  std::optional<DoneEvent> done;
  int64_t first_token_us = -1;
  int64_t done_us = -1;
};

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() {
    model_.n_pages = 2048;
    config_.max_model_len = 1 << 20;
    config_.epoch_tokens = model_.epoch_tokens;
    config_.max_prefills = model_.max_prefills;
    config_.slice_us = 2'000;
  }

  void Start() {
    executor_ = std::make_unique<FakeExecutor>(model_);
    scheduler_ = std::make_unique<Scheduler>(config_, executor_->shape(), executor_->n_pages());
  }

  static Request Prompt(int64_t n_tokens, int64_t max_tokens, int32_t text = 0) {
    Request request;
    for (int64_t i = 0; i < n_tokens; ++i) {
      request.prompt.push_back(static_cast<int32_t>((i * 13 + i / 61 + text) % 61));
    }
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    SparseOptions dense;
    dense.mode = SparseMode::kDense;
    request.sparse = dense;
    request.accepted = Clock::time_point(std::chrono::microseconds(0));
    return request;
  }

  std::shared_ptr<Sink> Add(Request request) {
    auto sink = std::make_shared<Sink>(&now_us_);
    scheduler_->Add(std::move(request), sink, now_us_);
    return sink;
  }

  // One step; its virtual duration. 0 when there was nothing to do.
  int64_t Step() {
    const StepPlan& plan = scheduler_->Plan(now_us_);
    last_plan_prefill_ = plan.prefill;
    n_last_decode_ = plan.decode.size();
    if (plan.empty()) return 0;
    absl::StatusOr<StepResult> result = executor_->Execute(plan);
    const int64_t begin_us = now_us_;
    if (result.ok()) {
      now_us_ += result->decode_us;
      for (const SliceResult& slice : result->slices) now_us_ += slice.elapsed_us;
      scheduler_->Complete(*result, now_us_);
    } else {
      scheduler_->Fail(result.status(), now_us_);
    }
    EXPECT_TRUE(executor_->violations().empty()) << executor_->violations().front();
    const absl::Status integrity = scheduler_->CheckIntegrity();
    EXPECT_TRUE(integrity.ok()) << integrity.ToString();
    return now_us_ - begin_us;
  }

  void RunUntilIdle() {
    for (int step = 0; !scheduler_->idle(); ++step) {
      ASSERT_LT(step, 100'000);
      Step();
    }
  }

  FakeModel model_;
  EngineConfig config_;
  std::unique_ptr<FakeExecutor> executor_;
  std::unique_ptr<Scheduler> scheduler_;
  int64_t now_us_ = 0;
  std::vector<PrefillSlice> last_plan_prefill_;
  size_t n_last_decode_ = 0;
};

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

TEST_F(SchedulerTest, AShortPromptWaitsForTwoSlicesAtMost) {
  Start();
  Add(Prompt(65'536, 1));
  for (int i = 0; i < 200; ++i) Step();
  for (int32_t trial = 0; trial < 20; ++trial) {
    const int64_t begin_us = now_us_;
    const auto sink = Add(Prompt(100, 1, trial + 1));
    int64_t longest_us = 0;
    while (!sink->done.has_value()) longest_us = std::max(longest_us, Step());
    const int64_t own_us = 3 * 130;
    EXPECT_LE(now_us_ - begin_us, 2 * longest_us + own_us) << trial;
    EXPECT_LE(now_us_ - begin_us, 3 * config_.slice_us) << trial;
  }
}

TEST_F(SchedulerTest, ShortPromptsDoNotStarveALongOne) {
  Start();
  const auto long_sink = Add(Prompt(8'192, 1));
  int32_t text = 1;
  int64_t alone_us = 0;
  while (!long_sink->done.has_value()) {
    while (scheduler_->n_waiting() < 4) Add(Prompt(100, 1, text++));
    alone_us += Step();
    ASSERT_LT(alone_us, 5'000'000);
  }
  // A quarter of the time is its own.
  EXPECT_LT(long_sink->done->prefill_us, 4.4 * (64 * 3 * 150 + 3 * 8192 * 8192 / 2 / 500));
}

TEST_F(SchedulerTest, LongPromptsAdvanceTogether) {
  Start();
  const auto a = Add(Prompt(8'192, 1, 1));
  const auto b = Add(Prompt(8'192, 1, 2));
  const auto c = Add(Prompt(8'192, 1, 3));
  RunUntilIdle();
  const int64_t total_us = now_us_;
  for (const auto& sink : {a, b, c}) {
    EXPECT_GT(sink->done_us, total_us * 9 / 10);
  }
}

TEST_F(SchedulerTest, PriorityGoesFirst) {
  Start();
  Request low = Prompt(8'192, 1, 1);
  low.priority = 5;
  const auto low_sink = Add(std::move(low));
  Step();
  Request high = Prompt(8'192, 1, 2);
  high.priority = -1;
  const auto high_sink = Add(std::move(high));
  RunUntilIdle();
  EXPECT_LT(high_sink->done_us, low_sink->done_us * 6 / 10);
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

TEST_F(SchedulerTest, ASecondEqualPromptTakesOverWhatTheFirstPublishes) {
  Start();
  const auto a = Add(Prompt(8'192, 1));
  for (int i = 0; i < 12; ++i) Step();
  const auto b = Add(Prompt(8'192, 1));
  RunUntilIdle();
  EXPECT_GT(b->done->cached_tokens, 0);
  EXPECT_LT(executor_->prefilled_tokens(), 2 * 8'192);
  EXPECT_EQ(a->tokens[0].token, b->tokens[0].token);
}

TEST_F(SchedulerTest, ChoicesShareThePromptsPages) {
  Start();
  Request request = Prompt(640 + 10, 40);
  request.n = 4;
  request.ignore_eos = true;
  Add(std::move(request));
  int64_t most_used = 0;
  while (!scheduler_->idle()) {
    Step();
    most_used = std::max(most_used, scheduler_->cache_stats().n_pages_used);
  }
  EXPECT_EQ(most_used, 10 + 4);
  EXPECT_EQ(scheduler_->cache_stats().n_pages_used, 0);
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
  stopped.ignore_eos = true;
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
    if (left_us < 5'000) break;
    EXPECT_NEAR(static_cast<double>(progress.eta_us), left_us, 0.25 * left_us) << at_us;
  }
}

TEST_F(SchedulerTest, DecodeRowsRideWithEverySlice) {
  Start();
  const auto answer = Add(Prompt(64, 200));
  Step();
  Add(Prompt(32'768, 1));
  while (!answer->done.has_value()) {
    Step();
    EXPECT_EQ(n_last_decode_, 1u);
  }
  EXPECT_FALSE(last_plan_prefill_.empty());
}

}  // namespace
}  // namespace longhaul
