// The fixture of tests of kernels for Hopper: on a GPU of another generation they are skipped; the
// emulator runs them all.
#pragma once

#include "tests/simt/kernel_test.h"

namespace longhaul::testing {

class OnHopper : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__CUDACC__)
    int major = 0;
    ASSERT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), cudaSuccess);
    if (major != 9) GTEST_SKIP() << "needs compute capability 9.0";
#endif
  }
};

}  // namespace longhaul::testing
