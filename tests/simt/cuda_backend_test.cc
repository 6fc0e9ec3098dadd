// How the CUDA backend starts on the emulated device: with and without a GPU, on Hopper, without
// memory; and what it copies.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/runner.h"
#include "kernels/backend.h"
#include "tests/simt/device_plan.h"
#include "tests/simt/device_problem.h"
#include "tests/simt/kernel_test.h"

namespace longhaul {
namespace {

TEST(CudaMemoryTest, LargeCopiesPassTheStagingMemory) {
  const std::unique_ptr<Backend> backend = CreateCudaBackend().value();
  const int64_t n = (int64_t{37} << 20) + 13;
  std::vector<uint8_t> sent(n), received(n);
  for (int64_t i = 0; i < n; ++i) sent[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  const Buffer buffer = backend->Allocate(n).value();
  const std::vector<uint8_t> copy = sent;
  backend->Upload(sent.data(), buffer.data(), n);
  std::fill(sent.begin(), sent.end(), 0);  // may change as soon as Upload returned
  backend->Download(buffer.data(), received.data(), n);
  backend->Synchronize();
  EXPECT_EQ(received, copy);
}

class CudaStartTest : public ::testing::Test {
 protected:
  void TearDown() override {
    simt::SetDeviceCount(1);
    simt::SetDeviceIsHopper(false);
    simt::SetDeviceMemoryBytes(int64_t{1} << 30);
    simt::Reset();
  }
};

// The products of warp groups that a prefill large enough for them is made of.
int64_t WarpGroupProducts(Backend& backend, DType kv_dtype = DType::kBF16) {
  testing::DeviceProblem problem({.n_tokens = 70,
                                  .q_begin = 60,
                                  .n_heads = 8,
                                  .n_kv_heads = 2,
                                  .head_dim = 64,
                                  .kv_dtype = kv_dtype},
                                 /*seed=*/5);
  const testing::DeviceTensor<BF16> out({70, 8, 64});
  simt::TakeStatistics();
  backend.AttendDense({.q = problem.device_q(),
                       .q_begin = 60,
                       .kv = problem.device_kv(),
                       .scale = problem.scale(),
                       .out = out.view()});
  EXPECT_FALSE(std::isnan(out.Floats()[0]));
  return simt::TakeStatistics().n_wgmma;
}

// The same of a sparse call.
int64_t SparseWarpGroupProducts(Backend& backend) {
  testing::DeviceProblem problem({.n_tokens = 20, .q_begin = 60, .n_heads = 1, .head_dim = 64},
                                 /*seed=*/6);
  testing::PlanOwner plan(1, {.sink = 4, .window = kBandWidth}, /*stripe_width=*/1,
                          /*max_stripes=*/1, /*max_bands=*/0);
  plan.Set(0, HeadKind::kStreaming);
  const testing::DevicePlan device_plan = testing::DevicePlan::CopyOf(1, plan.plan());
  const testing::DeviceTensor<BF16> out({20, 1, 64});
  const testing::DeviceTensor<> lse({20, 1});
  simt::TakeStatistics();
  backend.AttendSparse({.q = problem.device_q(),
                        .q_begin = 60,
                        .kv = problem.device_kv(),
                        .scale = problem.scale(),
                        .plan = device_plan.plan(),
                        .out = out.view(),
                        .lse = lse.view()});
  EXPECT_FALSE(std::isnan(out.Floats()[0]));
  return simt::TakeStatistics().n_wgmma;
}

TEST_F(CudaStartTest, HopperHasKernelsOfItsOwn) {
  const auto ampere = CreateBackend(BackendKind::kCuda, 1).value();
  EXPECT_EQ(ampere->Description().find("mma"), std::string::npos) << ampere->Description();
  EXPECT_EQ(WarpGroupProducts(*ampere), 0);
  simt::SetDeviceIsHopper(true);
  const auto hopper = CreateBackend(BackendKind::kCuda, 1).value();
  EXPECT_NE(hopper->Description().find("dense prefill by wgmma; sparse prefill by wgmma"),
            std::string::npos)
      << hopper->Description();
  EXPECT_GT(WarpGroupProducts(*hopper), 0);
  EXPECT_GT(WarpGroupProducts(*hopper, DType::kF8E4M3), 0);
  EXPECT_GT(SparseWarpGroupProducts(*hopper), 0);
  const auto mma = CreateBackend(BackendKind::kCudaMma, 1).value();
  EXPECT_NE(mma->Description().find("by mma, as asked"), std::string::npos) << mma->Description();
  EXPECT_EQ(WarpGroupProducts(*mma), 0);
  EXPECT_EQ(SparseWarpGroupProducts(*mma), 0);
}

// The check of the dense kernels launches two at each of two head sizes, that of the sparse ones
// four; the last of each row is the one for Hopper.
TEST_F(CudaStartTest, AHopperKernelThatFailsItsCheckIsLeftOut) {
  simt::SetDeviceIsHopper(true);
  simt::FailLaunch(1, cudaErrorLaunchFailure);
  auto backend = CreateBackend(BackendKind::kCuda, 1).value();
  std::string text = backend->Description();
  EXPECT_NE(
      text.find("dense prefill by mma: the kernel for Hopper failed its check at head_dim 64"),
      std::string::npos)
      << text;
  EXPECT_NE(text.find("sparse prefill by wgmma"), std::string::npos) << text;
  EXPECT_EQ(WarpGroupProducts(*backend), 0);
  simt::Reset();
  simt::FailLaunch(4 + 3, cudaErrorLaunchFailure);
  backend = CreateBackend(BackendKind::kCuda, 1).value();
  text = backend->Description();
  EXPECT_NE(
      text.find("dense prefill by wgmma; sparse prefill by mma: the kernel for Hopper failed"),
      std::string::npos)
      << text;
  EXPECT_EQ(SparseWarpGroupProducts(*backend), 0);
}

TEST_F(CudaStartTest, WithoutAGpuTheCpuServes) {
  simt::SetDeviceCount(0);
  const absl::Status status = CreateBackend(BackendKind::kCuda, 1).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  std::string why_cpu;
  const auto backend = CreateBackend(BackendKind::kAuto, 1, &why_cpu);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_TRUE((*backend)->is_host());
  EXPECT_NE(why_cpu.find("GPU"), std::string::npos) << why_cpu;
}

TEST_F(CudaStartTest, AutoTakesTheGpu) {
  std::string why_cpu;
  const auto backend = CreateBackend(BackendKind::kAuto, 1, &why_cpu);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_FALSE((*backend)->is_host());
  EXPECT_EQ(why_cpu, "");
}

TEST_F(CudaStartTest, AModelThatDoesNotFitIsRefusedWithNumbers) {
  simt::SetDeviceMemoryBytes(int64_t{64} << 20);
  EngineConfig config;
  config.max_model_len = 1 << 20;
  const auto runner = LoadRunner("models/lookup", CreateCudaBackend().value(), config, nullptr);
  ASSERT_FALSE(runner.ok());
  const std::string text(runner.status().message());
  EXPECT_TRUE(absl::IsResourceExhausted(runner.status())) << text;
  EXPECT_NE(text.find("--gpu-memory-utilization"), std::string::npos) << text;
}

TEST_F(CudaStartTest, AllocationThatFailsIsAStatus) {
  const std::unique_ptr<Backend> backend = CreateCudaBackend().value();
  const absl::Status status = backend->Allocate(int64_t{1} << 50).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_NE(std::string(status.message()).find("1125899906842624"), std::string::npos);
  EXPECT_TRUE(backend->Allocate(1024).ok());
}

TEST_F(CudaStartTest, KvCachesThatNoKernelReadsAreRefused) {
  const std::unique_ptr<Backend> backend = CreateCudaBackend().value();
  KvLayout layout{.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .dtype = DType::kBF16};
  EXPECT_TRUE(backend->CheckKvLayout(layout).ok());
  layout.head_dim = 72;
  EXPECT_TRUE(absl::IsUnimplemented(backend->CheckKvLayout(layout)));
  layout.head_dim = 64;
  layout.dtype = DType::kF32;
  EXPECT_TRUE(absl::IsUnimplemented(backend->CheckKvLayout(layout)));
}

}  // namespace
}  // namespace longhaul
