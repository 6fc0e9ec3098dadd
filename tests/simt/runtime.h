// The state behind the stand-in runtime: streams, the sticky error, pinned host memory, planned
// failures. For runtime.cc, runtime_streams.cc and cublaslt.cc only; tests use emulator.h.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "tests/simt/grid.h"
#include "tests/simt/random_order.h"
#include "tests/simt/stream.h"

namespace longhaul::simt {

class Runtime {
 public:
  // The process is one device.
  static Runtime& Get();

  // ---- Errors ----
  // Remembers a call's error for cudaGetLastError.
  cudaError_t Return(cudaError_t error);
  cudaError_t TakeLastError();
  cudaError_t last_error() const { return sticky_ != cudaSuccess ? sticky_ : last_error_; }
  // What a command on the device did wrong: ends everything until Reset().
  void Fail(const std::string& message);
  cudaError_t sticky() const { return sticky_; }
  void Reset();

  // ---- Streams ----
  std::shared_ptr<Stream> Resolve(cudaStream_t stream);
  cudaStream_t Create(bool is_blocking);
  void Destroy(cudaStream_t stream);
  // Puts a command into the stream, or into the graph that is captured from it.
  cudaError_t Enqueue(cudaStream_t stream, Command command);
  bool IsCapturing() const;
  void RunAll();
  Moment Now(cudaStream_t stream);

  // ---- Host memory ----
  void Pin(void* pointer, size_t n_bytes);
  bool Unpin(void* pointer);
  bool IsPinned(const void* pointer, size_t n_bytes) const;

  cudaError_t CheckPlannedFailure();  // of a launch
  void RunKernel(const LaunchShape& shape, const std::function<void()>& body);

  int n_devices = 1;
  bool is_hopper = false;  // else Ampere
  int n_launches_to_failure = -1;  // -1: none is planned
  cudaError_t planned_error = cudaSuccess;
  std::string* captured_fault = nullptr;  // where FaultOf wants the first fault
  RandomOrder order{0};
  bool runs_early = false;
  Statistics statistics;

 private:
  Runtime() = default;

  std::shared_ptr<Stream> default_stream_ = std::make_shared<Stream>(true);
  std::set<cudaStream_t> streams_;
  std::map<const std::byte*, size_t> pinned_;
  cudaError_t last_error_ = cudaSuccess;
  cudaError_t sticky_ = cudaSuccess;
  Grid grid_;
};

}  // namespace longhaul::simt
