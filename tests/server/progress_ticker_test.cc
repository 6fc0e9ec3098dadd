#include "server/progress_ticker.h"

#include <gtest/gtest.h>

namespace longhaul {
namespace {

using std::chrono::milliseconds;

const Clock::time_point kBegin = Clock::time_point() + std::chrono::hours(1);

ProgressEvent Queued() {
  ProgressEvent progress;
  progress.phase = Phase::kQueued;
  progress.total_tokens = 100;
  progress.processed_tokens = 40;
  progress.time_us = 500'000;
  progress.eta_us = 2'000'000;
  progress.density = 0.5;
  return progress;
}

TEST(ProgressTicker, SilentWithoutProgressOrWhenNotAsked) {
  ProgressTicker asked(true), not_asked(false);
  asked.OnChunk(AcceptedEvent{}, kBegin);
  EXPECT_EQ(asked.due(), Clock::time_point::max());
  not_asked.OnChunk(Queued(), kBegin);
  EXPECT_EQ(not_asked.due(), Clock::time_point::max());
}

TEST(ProgressTicker, TimeGoesOnAndNothingElse) {
  ProgressTicker ticker(true);
  ticker.OnChunk(Queued(), kBegin);
  EXPECT_LE(ticker.due(), kBegin + milliseconds(1000));
  const ProgressEvent first = ticker.Repeat(kBegin + milliseconds(1000));
  EXPECT_EQ(first.time_us, 1'500'000);
  EXPECT_EQ(first.eta_us, 1'000'000);
  EXPECT_EQ(first.phase, Phase::kQueued);
  EXPECT_EQ(first.total_tokens, 100);
  EXPECT_EQ(first.processed_tokens, 40);
  EXPECT_EQ(first.density, 0.5);
  EXPECT_EQ(ticker.due(), kBegin + milliseconds(1000) + ProgressTicker::kInterval);
  const ProgressEvent late = ticker.Repeat(kBegin + milliseconds(9000));
  EXPECT_EQ(late.time_us, 9'500'000);
  EXPECT_EQ(late.eta_us, 0) << "never below";
}

TEST(ProgressTicker, AnUnknownEtaStaysUnknown) {
  ProgressTicker ticker(true);
  ProgressEvent progress = Queued();
  progress.eta_us = -1;
  ticker.OnChunk(progress, kBegin);
  EXPECT_EQ(ticker.Repeat(kBegin + milliseconds(1000)).eta_us, -1);
}

TEST(ProgressTicker, AnythingSentPutsTheNextOneOff) {
  ProgressTicker ticker(true);
  ticker.OnChunk(Queued(), kBegin);
  ticker.OnChunk(api::TextDelta{}, kBegin + milliseconds(800));
  EXPECT_EQ(ticker.due(), kBegin + milliseconds(800) + ProgressTicker::kInterval);
  EXPECT_EQ(ticker.Repeat(kBegin + milliseconds(2000)).time_us, 2'500'000) << "since the report";
}

}  // namespace
}  // namespace longhaul
