#include "engine/step_watch.h"

#include "gtest/gtest.h"

namespace longhaul {
namespace {

constexpr int64_t kSecond = 1'000'000;

TEST(StepWatch, IdleIsHealthyForEver) {
  StepWatch watch;
  EXPECT_TRUE(watch.Check(0).ok());
  watch.Begin(kSecond, 1'000);
  watch.End(absl::OkStatus());
  EXPECT_TRUE(watch.Check(1'000'000 * kSecond).ok());
}

TEST(StepWatch, AStepIsStuckAfterTenSecondsAndEightPredictions) {
  StepWatch watch;
  watch.Begin(100 * kSecond, 1'000);
  EXPECT_TRUE(watch.Check(110 * kSecond).ok());
  const absl::Status stuck = watch.Check(111 * kSecond);
  EXPECT_TRUE(absl::IsUnavailable(stuck));
  EXPECT_NE(stuck.message().find("11.0 s"), stuck.message().npos) << stuck;
  watch.End(absl::OkStatus());
  EXPECT_TRUE(watch.Check(111 * kSecond).ok()) << "it was only slow";
  watch.Begin(200 * kSecond, 2 * kSecond);
  EXPECT_TRUE(watch.Check(215 * kSecond).ok());
  EXPECT_TRUE(absl::IsUnavailable(watch.Check(217 * kSecond)));
}

TEST(StepWatch, ThreeFailuresInARowAreUnhealthyUntilAStepSucceeds) {
  StepWatch watch;
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(watch.Check(0).ok()) << i;
    watch.Begin(0, 1);
    watch.End(absl::InternalError("the device is gone"));
  }
  const absl::Status failed = watch.Check(0);
  EXPECT_TRUE(absl::IsUnavailable(failed));
  EXPECT_NE(failed.message().find("the device is gone"), failed.message().npos) << failed;
  watch.Begin(0, 1);
  EXPECT_TRUE(absl::IsUnavailable(watch.Check(0)));
  watch.End(absl::OkStatus());
  EXPECT_TRUE(watch.Check(0).ok());
}

}  // namespace
}  // namespace longhaul
