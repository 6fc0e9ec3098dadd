// What tests of CUDA kernels need, written on the CUDA runtime alone: the same test source runs on
// a GPU and, in tests/simt, on the emulator.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__CUDACC__)
#include "tests/simt/emulator.h"
#endif

namespace longhaul::simt {

// Runs a test body under several orders of threads; once on a GPU, whose order is its own.
inline void ForEachSeed(int n_seeds, const std::function<void()>& body) {
#if defined(__CUDACC__)
  (void)n_seeds;
  body();
#else
  for (int seed = 0; seed < n_seeds && !::testing::Test::HasFatalFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "emulator seed " << seed);
    SetSeed(static_cast<uint64_t>(seed));
    body();
    if (::testing::Test::HasFailure()) break;
  }
  Reset();
#endif
}

// An array in device memory with nothing valid around it. T is trivially copyable.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceArray() = default;
  // Not initialised.
  explicit DeviceArray(int64_t n) : n_(n) {
    if (n > 0) Check(cudaMalloc(reinterpret_cast<void**>(&data_), n_bytes()));
  }
  DeviceArray(int64_t n, int fill_byte) : DeviceArray(n) {
    if (n > 0) Check(cudaMemset(data_, fill_byte, n_bytes()));
  }
  explicit DeviceArray(const std::vector<T>& values)
      : DeviceArray(static_cast<int64_t>(values.size())) {
    if (n_ > 0) Check(cudaMemcpy(data_, values.data(), n_bytes(), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() {
    if (data_ != nullptr) cudaFree(data_);
  }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), n_(std::exchange(other.n_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_, other.n_);
    return *this;
  }

  T* data() const { return data_; }
  int64_t size() const { return n_; }
  size_t n_bytes() const { return static_cast<size_t>(n_) * sizeof(T); }

  // Waits for the device.
  std::vector<T> Download() const {
    std::vector<T> values(static_cast<size_t>(n_));
    Check(cudaDeviceSynchronize());
    if (n_ > 0) Check(cudaMemcpy(values.data(), data_, n_bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  static void Check(cudaError_t error) {
    EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  }
  T* data_ = nullptr;
  int64_t n_ = 0;
};

}  // namespace longhaul::simt
