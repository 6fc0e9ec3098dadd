// Prompts in flight that begin alike compute what they share once; in virtual time against a fake
// model, whose answers show that the pages taken over are the right ones.
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/scheduler_fixture.h"

namespace longhaul {
namespace {

using testing::SchedulerTest;
using testing::Sink;

class JoinTest : public SchedulerTest {
 protected:
  JoinTest() { model_.n_pages = 2100; }  // room for two of the longest
  // `common` tokens of text 0, the rest of text `text`.
  static Request Branch(int64_t n_tokens, int64_t common, int32_t text) {
    Request request = Prompt(n_tokens, 3, text);
    const Request trunk = Prompt(common, 3, 0);
    std::copy(trunk.prompt.begin(), trunk.prompt.end(), request.prompt.begin());
    return request;
  }
  int64_t joined_tokens() const { return scheduler_->counters().joined_tokens; }
};

TEST_F(JoinTest, TwoEqualLongPromptsCostOne) {
  for (bool sparse : {false, true}) {
    SCOPED_TRACE(sparse ? "sparse" : "dense");
    Request request = Prompt(65'536, 3);
    if (sparse) request = Sparse(std::move(request));
    const int64_t alone_us = TimeAlone(request);
    Start();
    now_us_ = 0;
    const auto a = Add(request);
    const auto b = Add(request);
    RunUntilIdle();
    EXPECT_LT(now_us_, alone_us * 11 / 10);
    ExpectTokensOf(alone_tokens_, *a);
    ExpectTokensOf(alone_tokens_, *b);
    EXPECT_GT(joined_tokens(), 65'536 - 3 * model_.epoch_tokens);
    EXPECT_EQ(a->done->cached_tokens + b->done->cached_tokens, joined_tokens());
  }
}

TEST_F(JoinTest, AllOfACrowdJoin) {
  const Request request = Prompt(8'192, 3);
  const int64_t alone_us = TimeAlone(request);
  Start();
  std::vector<std::shared_ptr<Sink>> sinks;
  for (int i = 0; i < 12; ++i) sinks.push_back(Add(request));  // more than there are slots
  RunUntilIdle();
  EXPECT_LT(now_us_, alone_us * 13 / 10);
  for (const auto& sink : sinks) ExpectTokensOf(alone_tokens_, *sink);
}

TEST_F(JoinTest, ALatecomerCatchesUpAndFollows) {
  const Request request = Prompt(16'384, 3);
  const int64_t alone_us = TimeAlone(request);
  Start();
  const auto a = Add(request);
  while (now_us_ < alone_us / 2) Step();
  const auto b = Add(request);
  RunUntilIdle();
  EXPECT_LT(now_us_, alone_us * 11 / 10);
  EXPECT_LT(b->done_us, a->done_us * 11 / 10);
}

TEST_F(JoinTest, TheyPartWhereTheirTextsDo) {
  for (int64_t common : {4'096, 4'096 + 100}) {  // on the grid of epochs and off it
    Start();
    const Request x = Branch(8'192, common, 1);
    const Request y = Branch(8'192, common, 2);
    const auto a = Add(x);
    const auto b = Add(y);
    RunUntilIdle();
    EXPECT_EQ(joined_tokens(), common / kPageTokens * kPageTokens);
    TimeAlone(x);
    ExpectTokensOf(alone_tokens_, *a);
    TimeAlone(y);
    ExpectTokensOf(alone_tokens_, *b);
  }
}

TEST_F(JoinTest, AFollowerComputesOnWhenItsLeaderEnds) {
  const Request request = Sparse(Prompt(8'192, 3));
  const int64_t alone_us = TimeAlone(request);
  for (int how = 0; how < 3; ++how) {
    SCOPED_TRACE(how);
    Start();
    now_us_ = 0;
    Request doomed = request;
    if (how == 1) doomed.deadline = Clock::time_point(std::chrono::microseconds(alone_us / 2));
    const auto a = Add(doomed);
    const auto b = Add(request);
    while (now_us_ < alone_us / 2) Step();
    if (how == 0) a->cancel = true;
    if (how == 2) executor_->FailStep(executor_->n_steps() + 1);
    RunUntilIdle();
    EXPECT_FALSE(a->done->status.ok());
    ASSERT_TRUE(b->done->status.ok()) << b->done->status.ToString();
    ExpectTokensOf(alone_tokens_, *b);
    EXPECT_LT(now_us_, alone_us * 11 / 10) << "nothing was computed twice";
  }
}

TEST_F(JoinTest, ALeaderInheritsThePriorityOfWhoWaitsForIt) {
  Start();
  const auto leader = Add(WithPriority(Prompt(8'192, 1, 1), 5));
  for (int i = 0; i < 10; ++i) Step();
  const auto middle = Add(WithPriority(Prompt(8'192, 1, 2), 3));
  const auto urgent = Add(WithPriority(Prompt(8'192, 1, 1), 0));
  RunUntilIdle();
  EXPECT_LT(urgent->first_token_us, middle->first_token_us);
  EXPECT_LT(leader->first_token_us, middle->first_token_us) << "it was nearly done, too";
  EXPECT_GT(joined_tokens(), 6'500);
}

TEST_F(JoinTest, AShortPromptDoesNotWaitForALongOne) {
  Start();
  Add(Prompt(16'384, 1, 5));
  RunUntilIdle();
  Add(Prompt(32'768, 1, 0));
  Add(Prompt(32'768, 1, 3));
  Step();  // one of them is in its first epoch now, the other one's turn comes
  const Request request = Branch(200, 150, 1);
  const int64_t alone_us = TimeAlone(request);
  const int64_t begin_us = now_us_;
  const auto sink = Add(request);
  while (sink->tokens.empty()) Step();
  EXPECT_LE(now_us_ - begin_us, alone_us);
}

TEST_F(JoinTest, OnlyWhatIsReallyEqualJoins) {
  const Request request = Prompt(4'096, 1);
  Request salted = request;
  salted.cache_salt = "another tenant";
  Request sparse = Sparse(request);
  Start();
  Add(request);
  Add(salted);
  Add(sparse);
  RunUntilIdle();
  EXPECT_EQ(joined_tokens(), 0);
  EXPECT_EQ(executor_->prefilled_tokens(), 3 * 4'096);

  config_.enable_prefix_caching = false;
  Start();
  Add(request);
  Add(request);
  RunUntilIdle();
  EXPECT_EQ(executor_->prefilled_tokens(), 2 * 4'096);
}

}  // namespace
}  // namespace longhaul
