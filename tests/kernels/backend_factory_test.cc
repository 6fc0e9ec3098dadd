#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/backend.h"

namespace longhaul {
namespace {

TEST(BackendFactoryTest, ParsesItsNames) {
  EXPECT_EQ(ParseBackendKind("auto").value(), BackendKind::kAuto);
  EXPECT_EQ(ParseBackendKind("ref").value(), BackendKind::kRef);
  EXPECT_EQ(ParseBackendKind("cpu").value(), BackendKind::kCpu);
  EXPECT_EQ(ParseBackendKind("cuda").value(), BackendKind::kCuda);
  EXPECT_EQ(ParseBackendKind("cuda-mma").value(), BackendKind::kCudaMma);
  for (const char* bad : {"", "CPU", "gpu", "cpu "}) {
    const absl::Status status = ParseBackendKind(bad).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
    EXPECT_NE(std::string(status.message()).find("auto, ref, cpu or cuda"), std::string::npos);
  }
}

TEST(BackendFactoryTest, AutoAlwaysFindsABackend) {
  std::string why_cpu;
  const auto backend = CreateBackend(BackendKind::kAuto, 1, &why_cpu);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_FALSE((*backend)->Description().empty());
  const bool fell_back = (*backend)->is_host();
  EXPECT_EQ(fell_back, why_cpu.find("--backend cpu") != std::string::npos) << why_cpu;
}

TEST(BackendFactoryTest, CpuNamesItsThreads) {
  const auto backend = CreateBackend(BackendKind::kCpu, 3).value();
  EXPECT_NE(backend->Description().find("3 threads"), std::string::npos);
}

TEST(BackendFactoryTest, MissingCudaSaysHowToGetIt) {
  const auto backend = CreateBackend(BackendKind::kCuda, 0);
  if (backend.ok()) GTEST_SKIP() << "this build has CUDA and a GPU";
  EXPECT_TRUE(absl::IsUnavailable(backend.status())) << backend.status();
  EXPECT_NE(std::string(backend.status().message()).find("--backend cpu"), std::string::npos);
}

class AllocateTest : public ::testing::TestWithParam<BackendKind> {};

INSTANTIATE_TEST_SUITE_P(Backends, AllocateTest,
                         ::testing::Values(BackendKind::kRef, BackendKind::kCpu));

TEST_P(AllocateTest, MemoryIsZeroedAndAligned) {
  const auto backend = CreateBackend(GetParam(), 1).value();
  for (int64_t n_bytes : {int64_t{1}, int64_t{1000}, int64_t{1} << 20, (int64_t{3} << 20) + 5}) {
    const Buffer buffer = backend->Allocate(n_bytes).value();
    EXPECT_EQ(buffer.n_bytes(), static_cast<size_t>(n_bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    const auto* bytes = static_cast<const unsigned char*>(buffer.data());
    for (int64_t i = 0; i < n_bytes; i += 97) ASSERT_EQ(bytes[i], 0);
    std::memset(buffer.data(), 1, n_bytes);
  }
  EXPECT_TRUE(backend->Allocate(0).ok());
}

TEST_P(AllocateTest, TooMuchIsAnErrorThatNamesTheSize) {
  const auto backend = CreateBackend(GetParam(), 1).value();
  const absl::Status status = backend->Allocate(int64_t{1} << 60).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_NE(std::string(status.message()).find("1152921504606846976"), std::string::npos);
  EXPECT_FALSE(backend->Allocate(-1).ok());
}

}  // namespace
}  // namespace longhaul
