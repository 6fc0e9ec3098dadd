// Predictions of the scheduler against a machine whose times it has to learn, in virtual time:
// times of first tokens of prompts that run, share the machine, or wait.
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/scheduler.h"
#include "engine/self_measure.h"
#include "gtest/gtest.h"
#include "tests/testing/timed_executor.h"

namespace longhaul {
namespace {

using testing::TimedExecutor;
using testing::TimedMachine;

struct Recorded {
  int64_t at_us = 0;
  ProgressEvent event;
};

class Recorder : public EventSink {
 public:
  explicit Recorder(const int64_t* now_us) : now_us_(now_us) {}
  void Emit(StreamEvent event) override {
    if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
      accepted_us = *now_us_;
      predicted_ttft_us = accepted->predicted_ttft_us;
    } else if (const auto* progress = std::get_if<ProgressEvent>(&event)) {
      progressed.push_back({*now_us_, *progress});
    } else if (std::holds_alternative<TokenEvent>(event) && first_token_us < 0) {
      first_token_us = *now_us_;
    } else if (std::holds_alternative<DoneEvent>(event)) {
      done = true;
    }
  }
  bool cancelled() const override { return false; }

  int64_t accepted_us = -1;
  int64_t predicted_ttft_us = -1;
  int64_t first_token_us = -1;
  bool done = false;
  std::vector<Recorded> progressed;

 private:
  const int64_t* now_us_;
};

class SchedulerEtaTest : public ::testing::Test {
 protected:
  SchedulerEtaTest() {
    config_.max_model_len = 1 << 20;
    config_.epoch_tokens = 4'096;
    config_.slice_us = 100'000;
    config_.max_num_seqs = 16;
  }

  // A fresh server: nothing learned from what ran before.
  void Start() {
    executor_.emplace(machine_);
    scheduler_ = std::make_unique<Scheduler>(config_, executor_->shape(), executor_->n_pages());
    CostModel model(executor_->shape());
    ASSERT_TRUE(SelfMeasure(config_, *executor_, model).ok());
    scheduler_->SetCostModel(model);
  }

  std::shared_ptr<Recorder> Add(int64_t n_tokens, SparseMode mode, int64_t max_tokens = 1,
                                int32_t priority = 0) {
    Request request;
    request.prompt.assign(n_tokens, 1);
    request.prompt[0] = ++n_added_;  // nothing in common
    request.max_tokens = max_tokens;
    request.report_progress = true;
    request.priority = priority;
    request.accepted = Clock::time_point(std::chrono::microseconds(now_us_));
    request.sparse = SparseOptions{.mode = mode};
    request.cache_salt = std::to_string(n_added_);
    auto recorder = std::make_shared<Recorder>(&now_us_);
    scheduler_->Add(std::move(request), recorder, now_us_);
    return recorder;
  }

  void Step() {
    const StepPlan& plan = scheduler_->Plan(now_us_);
    if (plan.empty()) return;
    const int64_t before_us = executor_->total_us();
    const absl::StatusOr<StepResult> result = executor_->Execute(plan);
    now_us_ += executor_->total_us() - before_us;
    scheduler_->Complete(*result, now_us_);
  }

  void RunUntilIdle() {
    while (!scheduler_->idle()) Step();
  }

  // Of the events after a tenth of the prompt, as a share of the time left, a tenth of all at
  // least.
  static double WorstError(const Recorder& recorder) {
    double worst = 0;
    const auto all_us = static_cast<double>(recorder.first_token_us - recorder.accepted_us);
    for (const auto& [at_us, event] : recorder.progressed) {
      if (event.phase != Phase::kPrefill) continue;
      if (event.processed_tokens * 10 < event.total_tokens) continue;
      const auto left_us = static_cast<double>(recorder.first_token_us - at_us);
      const double error_us = std::abs(static_cast<double>(event.eta_us) - left_us);
      worst = std::max(worst, error_us / std::max(left_us, 0.1 * all_us));
    }
    return worst;
  }

  EngineConfig config_;
  TimedMachine machine_;
  std::optional<TimedExecutor> executor_;
  std::unique_ptr<Scheduler> scheduler_;
  int64_t now_us_ = 1'000'000;
  int32_t n_added_ = 0;
};

TEST_F(SchedulerEtaTest, OnAFreshServerFromATenthOn) {
  for (SparseMode mode : {SparseMode::kDense, SparseMode::kSample, SparseMode::kStreaming}) {
    for (int64_t n_tokens : {16'384, 50'000, 131'072}) {
      Start();
      const auto recorder = Add(n_tokens, mode);
      RunUntilIdle();
      ASSERT_TRUE(recorder->done);
      EXPECT_GE(recorder->progressed.size(), 4u);
      EXPECT_LT(WorstError(*recorder), 0.25) << SparseModeName(mode) << " " << n_tokens;
    }
  }
}

TEST_F(SchedulerEtaTest, ManyKeptKeys) {
  machine_.remote_share = 0.1;
  machine_.remote_keys = 800;
  Start();
  const auto recorder = Add(131'072, SparseMode::kSample);
  RunUntilIdle();
  EXPECT_LT(WorstError(*recorder), 0.25);
}

TEST_F(SchedulerEtaTest, TheNextPromptKnowsWhatTheLastOneKept) {
  machine_.remote_share = 0.1;
  machine_.remote_keys = 800;
  Start();
  const auto error = [](const Recorder& recorder) {
    const auto ttft_us = static_cast<double>(recorder.first_token_us - recorder.accepted_us);
    return std::abs(static_cast<double>(recorder.predicted_ttft_us) / ttft_us - 1.0);
  };
  const auto first = Add(65'536, SparseMode::kSample);
  RunUntilIdle();
  EXPECT_GT(error(*first), 0.3) << "a guess";
  const auto second = Add(100'000, SparseMode::kSample);
  RunUntilIdle();
  EXPECT_LT(error(*second), 0.15);
  const auto brief = Add(5'000, SparseMode::kSample);
  RunUntilIdle();
  const auto third = Add(100'000, SparseMode::kSample);
  RunUntilIdle();
  EXPECT_GT(error(*third), 0.3) << "a short one says little of a long one";
}

TEST_F(SchedulerEtaTest, SharedWithOthersAndWithAnswers) {
  Start();
  for (int i = 0; i < 4; ++i) Add(100, SparseMode::kDense, 4'000);
  const auto a = Add(65'536, SparseMode::kDense);
  const auto b = Add(32'768, SparseMode::kDense);
  RunUntilIdle();
  EXPECT_LT(WorstError(*a), 0.25);
  EXPECT_LT(WorstError(*b), 0.25);
}

TEST_F(SchedulerEtaTest, WaitingCountsDown) {
  config_.max_prefills = 2;  // one long prompt at a time
  Start();
  std::vector<std::shared_ptr<Recorder>> all;
  for (int64_t n_tokens : {65'536, 40'000, 65'536, 20'000}) {
    all.push_back(Add(n_tokens, SparseMode::kDense));
  }
  all.push_back(Add(30'000, SparseMode::kDense, 1, /*priority=*/1));
  RunUntilIdle();
  for (const auto& recorder : all) {
    const auto ttft_us = static_cast<double>(recorder->first_token_us - recorder->accepted_us);
    EXPECT_NEAR(static_cast<double>(recorder->predicted_ttft_us) / ttft_us, 1.0, 0.25);
    int64_t last_us = recorder->accepted_us;
    for (const auto& [at_us, event] : recorder->progressed) {
      EXPECT_LE(at_us - last_us, 1'000'000) << "silent for long";
      last_us = at_us;
      if (event.phase != Phase::kQueued || at_us == recorder->accepted_us) continue;
      const auto left_us = static_cast<double>(recorder->first_token_us - at_us);
      EXPECT_NEAR(static_cast<double>(event.eta_us) / left_us, 1.0, 0.25) << "at " << at_us;
    }
  }
}

TEST_F(SchedulerEtaTest, AnAdmissionIsPredicted) {
  config_.max_prefills = 2;
  Start();
  EXPECT_EQ(scheduler_->PredictAdmissionUs(), -1);
  Add(65'536, SparseMode::kDense);
  Step();
  EXPECT_EQ(scheduler_->PredictAdmissionUs(), -1) << "nobody waits";
  const auto waiting = Add(40'000, SparseMode::kDense);
  const int64_t asked_us = now_us_;
  const auto predicted_us = static_cast<double>(scheduler_->PredictAdmissionUs());
  while (scheduler_->n_waiting() > 0) Step();
  EXPECT_NEAR(static_cast<double>(now_us_ - asked_us) / predicted_us, 1.0, 0.2);
  EXPECT_FALSE(waiting->done);
}

TEST_F(SchedulerEtaTest, WithoutASampleNothingIsPredicted) {
  executor_.emplace(machine_);
  scheduler_ = std::make_unique<Scheduler>(config_, executor_->shape(), executor_->n_pages());
  const auto recorder = Add(20'000, SparseMode::kDense);
  EXPECT_EQ(recorder->predicted_ttft_us, -1);
  ASSERT_EQ(recorder->progressed.size(), 1u);
  EXPECT_EQ(recorder->progressed[0].event.eta_us, -1);
}

}  // namespace
}  // namespace longhaul
