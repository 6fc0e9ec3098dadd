#include "tests/simt/runtime.h"

#include <gtest/gtest.h>

#include <utility>

#include "tests/simt/device_memory.h"
#include "tests/simt/emulator.h"

namespace longhaul::simt {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxSharedBytes = 227 * 1024;  // of a block on sm_90; sm_80 has 163 KiB
constexpr int kMaxGridYZ = 65535;

}  // namespace

Runtime& Runtime::Get() {
  static Runtime runtime;
  return runtime;
}

cudaError_t Runtime::Return(cudaError_t error) {
  if (sticky_ != cudaSuccess) return sticky_;
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error_ = error;
  return error;
}

cudaError_t Runtime::TakeLastError() {
  if (sticky_ != cudaSuccess) return sticky_;
  return std::exchange(last_error_, cudaSuccess);
}

void Runtime::Fail(const std::string& message) {
  if (sticky_ != cudaSuccess) return;
  sticky_ = cudaErrorIllegalAddress;
  if (captured_fault != nullptr) {
    *captured_fault = message;
  } else {
    ADD_FAILURE() << message;
  }
}

void Runtime::Reset() {
  sticky_ = last_error_ = cudaSuccess;
  n_launches_to_failure = -1;
  default_stream_->Clear();
  for (const cudaStream_t stream : streams_) {
    stream->stream->Clear();
    stream->stream->capture.reset();
  }
}

std::shared_ptr<Stream> Runtime::Resolve(cudaStream_t stream) {
  return stream == nullptr ? default_stream_ : stream->stream;
}

cudaStream_t Runtime::Create(bool is_blocking) {
  auto* stream = new CUstream_st{std::make_shared<Stream>(is_blocking)};
  streams_.insert(stream);
  return stream;
}

void Runtime::Destroy(cudaStream_t stream) {
  stream->stream->RunTo(stream->stream->ticket());
  streams_.erase(stream);
  delete stream;
}

bool Runtime::IsCapturing() const {
  for (const cudaStream_t stream : streams_) {
    if (stream->stream->capture != nullptr) return true;
  }
  return false;
}

Moment Runtime::Now(cudaStream_t stream) {
  std::shared_ptr<Stream> at = Resolve(stream);
  const int64_t ticket = at->ticket();
  return Moment{std::move(at), ticket};
}

cudaError_t Runtime::Enqueue(cudaStream_t stream, Command command) {
  if (sticky_ != cudaSuccess) return sticky_;
  const std::shared_ptr<Stream> to = Resolve(stream);
  if (to->capture != nullptr) {
    to->capture->push_back(std::move(command));
    return cudaSuccess;
  }
  // The default stream comes after all blocking streams, and they after it.
  if (stream == nullptr) {
    for (const cudaStream_t other : streams_) {
      if (!other->stream->is_blocking()) continue;
      const Moment before = Now(other);
      if (!before.IsDone()) to->Append([before] { before.Wait(); });
    }
  } else if (to->is_blocking()) {
    const Moment before = Now(nullptr);
    if (!before.IsDone()) to->Append([before] { before.Wait(); });
  }
  to->Append([this, command = std::move(command)] {
    if (sticky_ == cudaSuccess) command();
  });
  // What goes wrong here is told by the next call.
  if (runs_early && order.OneIn(2)) to->RunTo(to->ticket());
  return cudaSuccess;
}

void Stream::RunTo(int64_t ticket) {
  while (n_done_ < ticket && !commands_.empty()) {
    const Command command = std::move(commands_.front());
    commands_.pop_front();
    ++n_done_;
    command();
  }
}

void Runtime::RunAll() {
  default_stream_->RunTo(default_stream_->ticket());
  for (const cudaStream_t stream : streams_) stream->stream->RunTo(stream->stream->ticket());
}

void Runtime::Pin(void* pointer, size_t n_bytes) {
  pinned_[static_cast<const std::byte*>(pointer)] = n_bytes;
}

bool Runtime::Unpin(void* pointer) {
  return pinned_.erase(static_cast<const std::byte*>(pointer)) != 0;
}

bool Runtime::IsPinned(const void* pointer, size_t n_bytes) const {
  const auto* begin = static_cast<const std::byte*>(pointer);
  auto found = pinned_.upper_bound(begin);
  if (found == pinned_.begin()) return false;
  --found;
  return begin + n_bytes <= found->first + found->second;
}

cudaError_t Runtime::CheckPlannedFailure() {
  if (n_launches_to_failure < 0 || n_launches_to_failure-- > 0) return cudaSuccess;
  return planned_error;
}

void Runtime::RunKernel(const LaunchShape& shape, const std::function<void()>& body) {
  const std::string fault = grid_.Run(shape, body, &order, &statistics);
  if (!fault.empty()) Fail(fault);
}

cudaError_t LaunchEmulated(const LaunchShape& shape, cudaStream_t stream,
                           std::function<void()> body) {
  Runtime& runtime = Runtime::Get();
  const cudaError_t planned = runtime.CheckPlannedFailure();
  if (planned != cudaSuccess) return runtime.Return(planned);
  const bool is_grid_fine = shape.grid[0] > 0 && shape.grid[1] > 0 && shape.grid[2] > 0 &&
                            shape.grid[1] <= kMaxGridYZ && shape.grid[2] <= kMaxGridYZ;
  if (!is_grid_fine || shape.n_threads <= 0 || shape.n_threads > kMaxThreads ||
      shape.n_threads % 32 != 0) {
    return runtime.Return(cudaErrorInvalidConfiguration);
  }
  if (shape.smem_bytes < 0 || shape.smem_bytes > kMaxSharedBytes) {
    return runtime.Return(cudaErrorInvalidValue);
  }
  return runtime.Enqueue(
      stream, [shape, body = std::move(body)] { Runtime::Get().RunKernel(shape, body); });
}

void SetSeed(uint64_t seed) {
  Runtime::Get().order = RandomOrder(seed);
  Runtime::Get().runs_early = seed % 2 != 0;
}

void Reset() { Runtime::Get().Reset(); }

std::string FaultOf(const std::function<void()>& body) {
  Runtime& runtime = Runtime::Get();
  std::string fault;
  runtime.captured_fault = &fault;
  body();
  runtime.RunAll();
  runtime.captured_fault = nullptr;
  runtime.Reset();
  return fault;
}

void SetDeviceCount(int n_devices) { Runtime::Get().n_devices = n_devices; }
void SetDeviceIsHopper(bool is_hopper) { Runtime::Get().is_hopper = is_hopper; }
void SetDeviceMemoryBytes(int64_t n_bytes) { DeviceMemory::Get().SetCapacity(n_bytes); }
void FailLaunch(int n_more, cudaError_t error) {
  Runtime::Get().n_launches_to_failure = n_more;
  Runtime::Get().planned_error = error;
}
Statistics TakeStatistics() { return std::exchange(Runtime::Get().statistics, {}); }

}  // namespace longhaul::simt
