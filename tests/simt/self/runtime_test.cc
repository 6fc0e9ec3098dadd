// The stand-ins for the CUDA runtime and cuBLASLt: what is asynchronous must look asynchronous, and
// every failure that the backend has to handle can be had.
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/simt/emulator.h"
#include "tests/simt/kernel_test.h"
#include "tests/testing/compare.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using ::testing::HasSubstr;

struct AddParams {
  Global<int32_t> values;
  int32_t amount = 0;
};
LH_KERNEL(32, 1) AddKernel(AddParams p) {
  if (ThreadId() == 0) p.values[0] += p.amount;
}

cudaError_t Add(int32_t* values, int32_t amount, cudaStream_t stream) {
  return Launch({.name = "add", .block = 32, .stream = stream}, AddKernel,
                {.values = values, .amount = amount});
}

class RuntimeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    simt::SetSeed(0);  // nothing runs before somebody waits
    EXPECT_EQ(cudaStreamCreateWithFlags(&work_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    simt::Reset();
    simt::SetDeviceCount(1);
    simt::SetDeviceMemoryBytes(int64_t{1} << 30);
    EXPECT_EQ(cudaStreamDestroy(work_), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(copies_), cudaSuccess);
  }
  cudaStream_t work_ = nullptr;
  cudaStream_t copies_ = nullptr;
};

TEST_F(RuntimeTest, ADownloadIsThereAfterTheWaitAndNotBefore) {
  const DeviceArray<int32_t> values(1, 0);
  int32_t seen = -1;
  EXPECT_EQ(Add(values.data(), 7, work_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(&seen, values.data(), 4, cudaMemcpyDeviceToHost, work_), cudaSuccess);
  EXPECT_EQ(seen, -1);
  EXPECT_EQ(cudaStreamSynchronize(work_), cudaSuccess);
  EXPECT_EQ(seen, 7);
}

TEST_F(RuntimeTest, PinnedMemoryIsReadLateAndPageableMemoryAtOnce) {
  const DeviceArray<int32_t> values(2, 0);
  int32_t* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, sizeof(int32_t)), cudaSuccess);
  int32_t pageable = 1;
  *pinned = 1;
  EXPECT_EQ(cudaMemcpyAsync(values.data(), pinned, 4, cudaMemcpyHostToDevice, work_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(values.data() + 1, &pageable, 4, cudaMemcpyHostToDevice, work_),
            cudaSuccess);
  *pinned = 2;  // too early: the copy has not run
  pageable = 2;
  EXPECT_EQ(values.Download(), (std::vector<int32_t>{2, 1}));
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(RuntimeTest, OnlyAnEventOrdersTwoStreams) {
  const DeviceArray<int32_t> values(1, 0);
  cudaEvent_t event = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  int32_t seen = -1;
  EXPECT_EQ(Add(values.data(), 5, work_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(&seen, values.data(), 4, cudaMemcpyDeviceToHost, copies_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
  EXPECT_EQ(seen, 0);  // no event: the other stream has not run
  EXPECT_EQ(cudaEventRecord(event, work_), cudaSuccess);
  EXPECT_EQ(Add(values.data(), 100, work_), cudaSuccess);  // after the event
  EXPECT_EQ(cudaStreamWaitEvent(copies_, event), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(&seen, values.data(), 4, cudaMemcpyDeviceToHost, copies_), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(copies_), cudaSuccess);
  EXPECT_EQ(seen, 5);
  EXPECT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST_F(RuntimeTest, PollingGetsThere) {
  const DeviceArray<int32_t> values(1, 0);
  EXPECT_EQ(Add(values.data(), 5, work_), cudaSuccess);
  int n_polls = 1;
  while (cudaStreamQuery(work_) == cudaErrorNotReady) ++n_polls;
  EXPECT_LT(n_polls, 1000);
  EXPECT_EQ(values.Download()[0], 5);
}

TEST_F(RuntimeTest, TheDefaultStreamWaitsForBlockingStreamsOnly) {
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  const DeviceArray<int32_t> values(2, 0);
  EXPECT_EQ(Add(values.data(), 1, blocking), cudaSuccess);
  EXPECT_EQ(Add(values.data() + 1, 1, work_), cudaSuccess);
  int32_t seen[2] = {};
  EXPECT_EQ(cudaMemcpy(seen, values.data(), 8, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(seen[0], 1);
  EXPECT_EQ(seen[1], 0);
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
}

TEST_F(RuntimeTest, AGraphReplaysWhatWasCaptured) {
  const DeviceArray<int32_t> values(1, 0);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(work_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  EXPECT_EQ(Add(values.data(), 1, work_), cudaSuccess);
  EXPECT_EQ(Add(values.data(), 2, work_), cudaSuccess);
  const int32_t zero = 0;
  EXPECT_EQ(cudaMemcpyAsync(values.data(), &zero, 4, cudaMemcpyHostToDevice, work_),
            cudaErrorStreamCaptureUnsupported);  // pageable
  EXPECT_EQ(cudaStreamSynchronize(work_), cudaErrorStreamCaptureUnsupported);
  ASSERT_EQ(cudaStreamEndCapture(work_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(values.Download()[0], 0);
  EXPECT_EQ(cudaGraphLaunch(exec, work_), cudaSuccess);
  EXPECT_EQ(cudaGraphLaunch(exec, work_), cudaSuccess);
  EXPECT_EQ(values.Download()[0], 6);
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
}

TEST_F(RuntimeTest, MemoryRunsOut) {
  simt::SetDeviceMemoryBytes(1 << 20);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  EXPECT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_EQ(total_bytes, size_t{1} << 20);
  void* first = nullptr;
  void* second = nullptr;
  EXPECT_EQ(cudaMalloc(&first, 700 * 1024), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 700 * 1024), cudaErrorMemoryAllocation);
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cudaFree(first), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&second, 700 * 1024), cudaSuccess);
  EXPECT_EQ(cudaFree(second), cudaSuccess);
  EXPECT_EQ(cudaFree(second), cudaErrorInvalidValue);
}

TEST_F(RuntimeTest, NoDevice) {
  simt::SetDeviceCount(0);
  int n_devices = -1;
  EXPECT_EQ(cudaGetDeviceCount(&n_devices), cudaErrorNoDevice);
  EXPECT_EQ(n_devices, 0);
  EXPECT_EQ(cudaSetDevice(0), cudaErrorNoDevice);
  cublasLtHandle_t handle = nullptr;
  EXPECT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_NOT_INITIALIZED);
}

TEST_F(RuntimeTest, APlannedFailureOfALaunch) {
  const DeviceArray<int32_t> values(1, 0);
  simt::FailLaunch(1, cudaErrorLaunchFailure);
  EXPECT_EQ(Add(values.data(), 1, work_), cudaSuccess);
  EXPECT_EQ(Add(values.data(), 1, work_), cudaErrorLaunchFailure);
  EXPECT_EQ(Add(values.data(), 1, work_), cudaSuccess);
  EXPECT_EQ(values.Download()[0], 2);
}

TEST_F(RuntimeTest, AFaultStaysUntilReset) {
  const DeviceArray<int32_t> values(1, 0);
  const std::string fault = simt::FaultOf([&] {
    EXPECT_EQ(Add(values.data() + 1, 1, work_), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(work_), cudaErrorIllegalAddress);
    EXPECT_EQ(Add(values.data(), 1, work_), cudaErrorIllegalAddress);
    EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  });
  EXPECT_THAT(fault, HasSubstr("kernel add, block (0, 0, 0), thread 0"));
  EXPECT_EQ(values.Download()[0], 0);
}

TEST_F(RuntimeTest, CopiesAreChecked) {
  const DeviceArray<int32_t> values(4, 0);
  int32_t host[8] = {};
  EXPECT_THAT(simt::FaultOf([&] {
                EXPECT_EQ(cudaMemcpyAsync(values.data(), host, 20, cudaMemcpyHostToDevice, work_),
                          cudaSuccess);
              }),
              HasSubstr("cudaMemcpy to out of bounds"));
  EXPECT_THAT(simt::FaultOf([&] {
                EXPECT_EQ(cudaMemsetAsync(values.data() + 1, 0, 16, work_), cudaSuccess);
              }),
              HasSubstr("cudaMemset out of bounds"));
  // The wrong direction.
  EXPECT_EQ(cudaMemcpyAsync(host, values.data(), 16, cudaMemcpyHostToDevice, work_),
            cudaErrorInvalidValue);
  simt::Reset();
}

TEST_F(RuntimeTest, TwoDimensionalCopies) {
  const DeviceArray<int32_t> values(std::vector<int32_t>{0, 1, 2, 3, 4, 5});
  int32_t columns[4] = {};
  EXPECT_EQ(
      cudaMemcpy2DAsync(columns, 8, values.data() + 1, 12, 8, 2, cudaMemcpyDeviceToHost, work_),
      cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(work_), cudaSuccess);
  EXPECT_THAT(columns, ::testing::ElementsAre(1, 2, 4, 5));
}

using RuntimeDeathTest = RuntimeTest;
TEST_F(RuntimeDeathTest, TheHostCannotReadDeviceMemory) {
  const DeviceArray<int32_t> values(1, 0);
  EXPECT_DEATH(*static_cast<volatile int32_t*>(values.data()) = 1,
               "host code touched device memory");
}

// y^T = W^T' x^T as the backend calls it, with a row stride, a bias and a sum.
TEST_F(RuntimeTest, CublasLt) {
  constexpr int64_t kOut = 5;
  constexpr int64_t kIn = 19;
  constexpr int64_t kRows = 3;
  constexpr int64_t kStride = 24;  // of x
  testing::Random random(3);
  const auto fill = [&random](int64_t n) {
    std::vector<BF16> values(static_cast<size_t>(n));
    for (BF16& value : values) value = ToBF16(static_cast<float>(random.Below(9) - 4));
    return values;
  };
  const std::vector<BF16> weight = fill(kOut * kIn);
  const std::vector<BF16> x = fill(kRows * kStride);
  const std::vector<float> bias = {1, 2, 3, 4, 5};
  const std::vector<float> before(kRows * kOut, 100.0f);
  const DeviceArray<BF16> weight_device(weight);
  const DeviceArray<BF16> x_device(x);
  const DeviceArray<float> bias_device(bias);
  const DeviceArray<float> y(before);

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight_layout = nullptr;
  cublasLtMatrixLayout_t x_layout = nullptr;
  cublasLtMatrixLayout_t y_layout = nullptr;
  ASSERT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  const void* bias_pointer = bias_device.data();
  cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                 sizeof(transposed));
  cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue));
  cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias_pointer,
                                 sizeof(bias_pointer));
  cublasLtMatrixLayoutCreate(&weight_layout, CUDA_R_16BF, kIn, kOut, kIn);
  cublasLtMatrixLayoutCreate(&x_layout, CUDA_R_16BF, kIn, kRows, kStride);
  cublasLtMatrixLayoutCreate(&y_layout, CUDA_R_32F, kOut, kRows, kOut);
  const float alpha = 2;
  const float beta = 1;
  EXPECT_EQ(cublasLtMatmul(handle, desc, &alpha, weight_device.data(), weight_layout,
                           x_device.data(), x_layout, &beta, y.data(), y_layout, y.data(), y_layout,
                           nullptr, nullptr, 0, work_),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(
      cublasLtMatmul(handle, desc, &alpha, x_device.data(), x_layout, x_device.data(), x_layout,
                     &beta, y.data(), y_layout, y.data(), y_layout, nullptr, nullptr, 0, work_),
      CUBLAS_STATUS_INVALID_VALUE);  // shapes that do not fit
  const std::vector<float> result = y.Download();
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t out = 0; out < kOut; ++out) {
      float sum = 0;
      for (int64_t i = 0; i < kIn; ++i) {
        sum += ToF32(weight[static_cast<size_t>(out * kIn + i)]) *
               ToF32(x[static_cast<size_t>(row * kStride + i)]);
      }
      EXPECT_EQ(result[static_cast<size_t>(row * kOut + out)],
                2 * sum + 100 + bias[static_cast<size_t>(out)]);
    }
  }
  cublasLtMatrixLayoutDestroy(weight_layout);
  cublasLtMatrixLayoutDestroy(x_layout);
  cublasLtMatrixLayoutDestroy(y_layout);
  cublasLtMatmulDescDestroy(desc);
  cublasLtDestroy(handle);
}

}  // namespace
}  // namespace longhaul::cuda
