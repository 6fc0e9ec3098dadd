// The scheduler driven step by step in virtual time against the fake model. Test code only.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/scheduler.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_executor.h"

namespace longhaul::testing {

struct Sink : EventSink {
  explicit Sink(const int64_t* clock_us) : now_us(clock_us) {}
  void Emit(StreamEvent event) override {
    EXPECT_FALSE(done.has_value()) << "an event after the last one";
    ++n_events;
    if (auto* a = std::get_if<AcceptedEvent>(&event)) {
      EXPECT_EQ(n_events, 1) << "accepted first, and once";
      accepted = *a;
    } else if (auto* token = std::get_if<TokenEvent>(&event)) {
      if (first_token_us < 0) first_token_us = *now_us;
      tokens.push_back(*token);
    } else if (auto* p = std::get_if<ProgressEvent>(&event)) {
      progress.push_back({*now_us, *p});
    } else {
      done = std::get<DoneEvent>(std::move(event));
      done_us = *now_us;
    }
  }
  bool cancelled() const override { return cancel; }
  int64_t processed_tokens() const {
    return progress.empty() ? 0 : progress.back().second.processed_tokens;
  }

  const int64_t* now_us;
  bool cancel = false;
  int n_events = 0;
  std::optional<AcceptedEvent> accepted;
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
    n_last_copies_ = plan.copies.size();
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

  static Request WithPriority(Request request, int32_t priority) {
    request.priority = priority;
    return request;
  }
  static Request Sparse(Request request) {
    request.sparse->mode = SparseMode::kSample;
    return request;
  }
  static Request WithProgress(Request request) {
    request.report_progress = true;
    return request;
  }

  // Virtual time of one request on an idle scheduler of its own, already learned.
  int64_t TimeAlone(const Request& request) {
    FakeExecutor executor(model_);
    EngineConfig config = config_;
    config.enable_prefix_caching = false;
    Scheduler scheduler(config, executor.shape(), executor.n_pages());
    auto sink = std::make_shared<Sink>(&now_us_);
    scheduler.Add(request, sink, 0);
    int64_t now_us = 0;
    while (!sink->done.has_value()) {
      absl::StatusOr<StepResult> result = executor.Execute(scheduler.Plan(now_us));
      now_us += result->decode_us;
      for (const SliceResult& slice : result->slices) now_us += slice.elapsed_us;
      scheduler.Complete(*result, now_us);
    }
    alone_tokens_ = sink->tokens;
    return now_us;
  }

  void ExpectTokensOf(const std::vector<TokenEvent>& expected, const Sink& sink) {
    ASSERT_EQ(sink.tokens.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(sink.tokens[i].token, expected[i].token) << i;
    }
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
  size_t n_last_copies_ = 0;
  std::vector<TokenEvent> alone_tokens_;  // of TimeAlone
};

}  // namespace longhaul::testing
