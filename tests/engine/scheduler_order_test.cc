// One prompt layer by layer: the same answers and the same published pages as epoch by epoch; in
// virtual time against a fake model.
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/scheduler_fixture.h"

namespace longhaul {
namespace {

using testing::SchedulerTest;
using testing::Sink;

class OrderTest : public SchedulerTest {
 protected:
  OrderTest() { config_.prefill_order = PrefillOrder::kLayer; }
  int32_t layer_store() const { return static_cast<int32_t>(model_.max_prefills); }
};

TEST_F(OrderTest, AnswersAndPublishedPagesAreThoseOfTheOtherOrder) {
  for (bool sparse : {false, true}) {
    SCOPED_TRACE(sparse ? "sparse" : "dense");
    Request request = Prompt(8'192 + 77, 5);
    Request longer = Prompt(12'000, 5);  // extends it
    if (sparse) {
      request = Sparse(std::move(request));
      longer = Sparse(std::move(longer));
    }
    config_.prefill_order = PrefillOrder::kEpoch;
    Start();
    const auto expected = Add(request);
    RunUntilIdle();
    const auto expected_longer = Add(longer);
    RunUntilIdle();

    config_.prefill_order = PrefillOrder::kLayer;
    Start();
    const auto sink = Add(request);
    Step();
    ASSERT_EQ(last_plan_prefill_[0].hidden_slot, layer_store());
    RunUntilIdle();
    ExpectTokensOf(expected->tokens, *sink);
    EXPECT_EQ(executor_->prefilled_tokens(), 8'192 + 77);
    const auto sink_longer = Add(longer);
    RunUntilIdle();
    EXPECT_GT(sink_longer->done->cached_tokens, 8'000);
    EXPECT_EQ(sink_longer->done->cached_tokens, expected_longer->done->cached_tokens);
    ExpectTokensOf(expected_longer->tokens, *sink_longer);
  }
}

TEST_F(OrderTest, AStepHoldsAsManyEpochsAsFit) {
  config_.slice_us = 4'000;
  Start();
  const auto sink = Add(WithProgress(Prompt(4'096, 1)));
  for (int i = 0; i < 5; ++i) Step();
  int64_t n_several = 0, n_over = 0, n_steps = 0;
  while (!scheduler_->idle()) {
    const int64_t us = Step();
    ++n_steps;
    n_several += last_plan_prefill_.size() > 2;
    n_over += us > config_.slice_us * 11 / 10;
    for (size_t i = 1; i < last_plan_prefill_.size(); ++i) {
      EXPECT_EQ(last_plan_prefill_[i].layer_end - last_plan_prefill_[i].layer_begin, 1);
    }
  }
  EXPECT_GT(n_several, n_steps / 2);
  EXPECT_LE(n_over, n_steps / 10);
  for (size_t i = 1; i < sink->progress.size(); ++i) {
    EXPECT_GE(sink->progress[i].second.processed_tokens,
              sink->progress[i - 1].second.processed_tokens);
    EXPECT_GE(sink->progress[i].first, sink->progress[i - 1].first);
  }
}

TEST_F(OrderTest, OnePromptAtATimeTheOthersGoByEpoch) {
  Start();
  const auto a = Add(Prompt(8'192, 3, 1));
  const auto b = Add(Sparse(Prompt(8'192, 3, 2)));
  const auto c = Add(Prompt(100, 3, 3));
  int64_t n_by_layer = 0, n_by_epoch = 0;
  while (!scheduler_->idle()) {
    Step();
    for (const PrefillSlice& slice : last_plan_prefill_) {
      (slice.hidden_slot == layer_store() ? n_by_layer : n_by_epoch) += 1;
    }
  }
  EXPECT_GT(n_by_layer, 100);
  EXPECT_GT(n_by_epoch, 100);
  for (const auto& [sink, request] :
       {std::pair{a, Prompt(8'192, 3, 1)}, std::pair{b, Sparse(Prompt(8'192, 3, 2))},
        std::pair{c, Prompt(100, 3, 3)}}) {
    config_.prefill_order = PrefillOrder::kEpoch;
    TimeAlone(request);
    ExpectTokensOf(alone_tokens_, *sink);
  }
}

TEST_F(OrderTest, AnEqualPromptDoesNotWaitForOneThatPublishesLate) {
  Start();
  const Request request = Prompt(8'192, 3);
  const auto a = Add(request);
  Step();
  const auto b = Add(request);
  RunUntilIdle();
  TimeAlone(request);
  ExpectTokensOf(alone_tokens_, *a);
  ExpectTokensOf(alone_tokens_, *b);
}

TEST_F(OrderTest, ACancelLosesTheWorkAndNoPage) {
  Start();
  const auto sink = Add(Prompt(8'192, 1));
  for (int i = 0; i < 30; ++i) Step();
  EXPECT_EQ(scheduler_->cache_stats().n_pages_used, 128);
  sink->cancel = true;
  Step();
  const CacheStats stats = scheduler_->cache_stats();
  EXPECT_EQ(stats.n_pages_used, 0);
  EXPECT_EQ(stats.n_pages_reserved, 0);
  EXPECT_EQ(stats.n_pages_idle, 0) << "nothing had passed all layers";
  // The store is free again.
  Add(Prompt(8'192, 1, 1));
  Step();
  ASSERT_FALSE(last_plan_prefill_.empty());
  EXPECT_EQ(last_plan_prefill_[0].hidden_slot, layer_store());
  RunUntilIdle();
}

}  // namespace
}  // namespace longhaul
