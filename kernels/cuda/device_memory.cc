#include "kernels/cuda/device_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/cuda/errors.h"

namespace longhaul::cuda {
namespace {

constexpr int64_t kAlignment = 64;

double GiB(size_t n_bytes) { return static_cast<double>(n_bytes) / (1 << 30); }

absl::Status PinnedMemoryError(cudaError_t error) {
  return absl::ResourceExhaustedError(fmt::format(
      "cannot allocate pinned host memory for copies to the GPU: {}. Raise the limit of "
      "locked memory (ulimit -l), or free memory on this machine",
      cudaGetErrorString(error)));
}

}  // namespace

absl::StatusOr<Buffer> AllocateDevice(int64_t n_bytes, cudaStream_t stream) {
  if (n_bytes < 0) {
    return absl::InvalidArgumentError(fmt::format("cannot allocate {} bytes", n_bytes));
  }
  const size_t size = static_cast<size_t>(std::max<int64_t>(n_bytes, 1));
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, size);
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is reported here, and is not the next op's
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return absl::ResourceExhaustedError(fmt::format(
        "cannot allocate {} bytes ({:.2f} GiB) of GPU memory: {}; {:.2f} of {:.2f} GiB are free. "
        "Lower --gpu-memory-utilization, --kv-cache-memory or the maximum model length, or end "
        "what else uses this GPU",
        n_bytes, GiB(size), cudaGetErrorString(error), GiB(free_bytes), GiB(total_bytes)));
  }
  CheckCuda(cudaMemsetAsync(data, 0, size, stream), "Allocate");
  return Buffer(data, static_cast<size_t>(n_bytes), [](void* block, size_t) { cudaFree(block); });
}

std::byte* DeviceScratch::Ensure(int64_t n_bytes, const char* op) {
  if (static_cast<int64_t>(buffer_.n_bytes()) < n_bytes) {
    CheckCuda(cudaStreamSynchronize(stream_), op);
    buffer_ = Buffer();
    absl::StatusOr<Buffer> larger = AllocateDevice(n_bytes, stream_);
    CheckCuda(larger.ok() ? cudaSuccess : cudaErrorMemoryAllocation, op);
    buffer_ = *std::move(larger);
    ++n_grown_;
  }
  return static_cast<std::byte*>(buffer_.data());
}

absl::StatusOr<std::unique_ptr<StagingCopies>> StagingCopies::Create(cudaStream_t stream) {
  std::unique_ptr<StagingCopies> copies(new StagingCopies(stream));
  cudaError_t error = cudaMallocHost(&copies->uploads_, kSlots * kSlotBytes);
  if (error != cudaSuccess) return PinnedMemoryError(error);
  error = cudaMallocHost(&copies->downloads_, kDownloadBytes);
  if (error != cudaSuccess) return PinnedMemoryError(error);
  for (cudaEvent_t& event : copies->sent_) {
    CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "StagingCopies");
  }
  return copies;
}

StagingCopies::~StagingCopies() {
  for (cudaEvent_t event : sent_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (uploads_ != nullptr) cudaFreeHost(uploads_);
  if (downloads_ != nullptr) cudaFreeHost(downloads_);
}

std::byte* StagingCopies::TakeUpload(int64_t n_bytes) {
  LH_CHECK(n_bytes <= kSlotBytes);
  if (slot_used_bytes_ + n_bytes > kSlotBytes) {
    CheckCuda(cudaEventRecord(sent_[slot_], stream_), "Upload");
    slot_ = (slot_ + 1) % kSlots;
    // Returns at once for a slot that was never left.
    CheckCuda(cudaEventSynchronize(sent_[slot_]), "Upload");
    slot_used_bytes_ = 0;
  }
  std::byte* taken = uploads_ + slot_ * kSlotBytes + slot_used_bytes_;
  slot_used_bytes_ = std::min(slot_used_bytes_ + RoundUp(n_bytes, kAlignment), kSlotBytes);
  return taken;
}

void StagingCopies::SendUpload(const std::byte* taken, void* to, int64_t n_bytes) {
  CheckCuda(
      cudaMemcpyAsync(to, taken, static_cast<size_t>(n_bytes), cudaMemcpyHostToDevice, stream_),
      "Upload");
}

void StagingCopies::Upload(const void* from, void* to, int64_t n_bytes) {
  for (int64_t done = 0; done < n_bytes;) {
    const int64_t n = std::min(n_bytes - done, kSlotBytes);
    std::byte* taken = TakeUpload(n);
    std::memcpy(taken, static_cast<const std::byte*>(from) + done, static_cast<size_t>(n));
    SendUpload(taken, static_cast<std::byte*>(to) + done, n);
    done += n;
  }
}

void StagingCopies::Download(const void* from, void* to, int64_t n_bytes) {
  for (int64_t done = 0; done < n_bytes;) {
    if (download_used_bytes_ == kDownloadBytes) FinishDownloads();
    const int64_t n = std::min(n_bytes - done, kDownloadBytes - download_used_bytes_);
    std::byte* pinned = downloads_ + download_used_bytes_;
    CheckCuda(cudaMemcpyAsync(pinned, static_cast<const std::byte*>(from) + done,
                              static_cast<size_t>(n), cudaMemcpyDeviceToHost, stream_),
              "Download");
    pending_.push_back({pinned, static_cast<std::byte*>(to) + done, n});
    download_used_bytes_ = std::min(download_used_bytes_ + RoundUp(n, kAlignment), kDownloadBytes);
    done += n;
  }
}

void StagingCopies::FinishDownloads() {
  CheckCuda(cudaStreamSynchronize(stream_), "Synchronize");
  for (const Pending& copy : pending_) {
    std::memcpy(copy.to, copy.pinned, static_cast<size_t>(copy.n_bytes));
  }
  pending_.clear();
  download_used_bytes_ = 0;
}

}  // namespace longhaul::cuda
