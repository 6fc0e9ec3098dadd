// The check of the Hopper kernel that a backend makes when it starts.
#include "kernels/cuda/hopper_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "tests/simt/hopper_fixture.h"
#include "tests/simt/kernel_test.h"

namespace longhaul::cuda {
namespace {

using ::testing::HasSubstr;

constexpr DeviceLimits kLimits = {.n_multiprocessors = 2, .shared_bytes = 228 * 1024};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const AttentionResult kExpected = {.out = {1.0f, -4.0f, 0.25f, 0.125f}, .lse = {2.0f, 3.0f}};

TEST(HopperCheck, RoundingsPass) {
  EXPECT_EQ(CompareAttention(kExpected, kExpected), "");
  AttentionResult actual = kExpected;
  actual.out[0] += 0.03f;  // of a row whose largest is 4
  actual.out[3] -= 0.001f;
  actual.lse[1] += 0.0005f;
  EXPECT_EQ(CompareAttention(actual, kExpected), "");
}

TEST(HopperCheck, DifferencesAreSaid) {
  AttentionResult actual = kExpected;
  actual.out[2] = 0.26f;
  EXPECT_EQ(CompareAttention(actual, kExpected), "output 2 is 0.26, not 0.25");
  actual.out[2] = kNan;
  EXPECT_THAT(CompareAttention(actual, kExpected), HasSubstr("output 2 is"));
  actual = kExpected;
  actual.lse[1] = 3.01f;
  EXPECT_EQ(CompareAttention(actual, kExpected), "log-sum-exp of row 1 is 3.01, not 3");
  actual.lse[0] = kNan;
  EXPECT_THAT(CompareAttention(actual, kExpected), HasSubstr("log-sum-exp of row 0 is"));
}

class HopperCheckOnDevice : public testing::OnHopper {};

TEST_F(HopperCheckOnDevice, TheKernelsAgree) {
  EXPECT_EQ(WhyNotDenseHopper(kLimits, nullptr), "");
  EXPECT_EQ(WhyNotSparseHopper(kLimits, nullptr), "");
}

#if !defined(__CUDACC__)
TEST(HopperCheck, ErrorsAreSaid) {
  simt::FailLaunch(1, cudaErrorLaunchFailure);  // the second: that of the Hopper kernel
  EXPECT_EQ(WhyNotDenseHopper(kLimits, nullptr), "at head_dim 64: cudaErrorLaunchFailure");
  simt::Reset();
  simt::FailLaunch(3, cudaErrorLaunchFailure);  // each sparse call launches two
  EXPECT_EQ(WhyNotSparseHopper(kLimits, nullptr), "at head_dim 64: cudaErrorLaunchFailure");
  simt::Reset();
  simt::SetDeviceMemoryBytes(1 << 16);
  EXPECT_EQ(WhyNotDenseHopper(kLimits, nullptr), "at head_dim 64: cudaErrorMemoryAllocation");
  simt::SetDeviceMemoryBytes(int64_t{1} << 30);
  simt::Reset();
}
#endif

}  // namespace
}  // namespace longhaul::cuda
