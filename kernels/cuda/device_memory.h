// Memory of the GPU, and copies between it and ordinary host memory through pinned staging memory:
// a copy from pageable memory would stop the host, and the caller's memory may change as soon as an
// upload returns. Used by the CUDA backend, on its thread; everything is in the order of one
// stream.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/status.h"

namespace longhaul::cuda {

// Zeroed in the order of `stream`. ResourceExhausted with the sizes when the GPU has too little.
absl::StatusOr<Buffer> AllocateDevice(int64_t n_bytes, cudaStream_t stream);

// A block that grows when more is asked for, up to what the largest op needs. Its content is lost
// when it grows. Growing waits for the device and ends the process when there is no memory: the
// share of memory that the plan leaves free is there for it.
class DeviceScratch {
 public:
  explicit DeviceScratch(cudaStream_t stream) : stream_(stream) {}
  std::byte* Ensure(int64_t n_bytes, const char* op);
  // How often the block has moved.
  int64_t n_grown() const { return n_grown_; }

 private:
  cudaStream_t stream_;
  int64_t n_grown_ = 0;
  Buffer buffer_;
};

class StagingCopies {
 public:
  static absl::StatusOr<std::unique_ptr<StagingCopies>> Create(cudaStream_t stream);
  ~StagingCopies();
  StagingCopies(const StagingCopies&) = delete;
  StagingCopies& operator=(const StagingCopies&) = delete;

  // Pinned memory of n_bytes <= kSlotBytes that SendUpload copies to the device; for whoever
  // writes the bytes itself.
  std::byte* TakeUpload(int64_t n_bytes);
  void SendUpload(const std::byte* taken, void* to, int64_t n_bytes);

  void Upload(const void* from, void* to, int64_t n_bytes);
  // `to` is written by FinishDownloads.
  void Download(const void* from, void* to, int64_t n_bytes);
  // Waits for the stream.
  void FinishDownloads();

  static constexpr int64_t kSlotBytes = int64_t{4} << 20;

 private:
  static constexpr int kSlots = 4;
  static constexpr int64_t kDownloadBytes = int64_t{16} << 20;

  struct Pending {
    const std::byte* pinned;
    void* to;
    int64_t n_bytes;
  };

  explicit StagingCopies(cudaStream_t stream) : stream_(stream) {}

  cudaStream_t stream_;
  std::byte* uploads_ = nullptr;            // pinned: [kSlots, kSlotBytes]
  std::array<cudaEvent_t, kSlots> sent_{};  // recorded when the host left the slot
  int slot_ = 0;
  int64_t slot_used_bytes_ = 0;
  std::byte* downloads_ = nullptr;  // pinned: [kDownloadBytes]
  int64_t download_used_bytes_ = 0;
  std::vector<Pending> pending_;
};

}  // namespace longhaul::cuda
