// Recorded steps as CUDA graphs: what was issued once is launched again with one call. A decode
// step of a small model is a few hundred kernels of some microseconds each; issued one by one, the
// host is what limits it.
//
// Used by the CUDA backend, on its thread. A key is issued plainly the first time, so that whatever
// is chosen or allocated at the first use of a shape is there when it is recorded, the second time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <map>

namespace longhaul::cuda {

class Graphs {
 public:
  explicit Graphs(cudaStream_t stream) : stream_(stream) {}
  ~Graphs();
  Graphs(const Graphs&) = delete;
  Graphs& operator=(const Graphs&) = delete;

  // memory_version: of the memory that the ops use and `issue` does not choose; another one makes
  // the key's recording void. It must not change while `issue` runs for the second time.
  void Replay(int64_t key, int64_t memory_version, const std::function<void()>& issue);
  bool is_recording() const { return is_recording_; }

 private:
  struct Recording {
    cudaGraphExec_t exec = nullptr;
    int64_t memory_version = 0;
  };

  void Record(Recording& recording, int64_t memory_version, const std::function<void()>& issue);

  cudaStream_t stream_;
  std::map<int64_t, Recording> recordings_;
  bool is_recording_ = false;
};

}  // namespace longhaul::cuda
