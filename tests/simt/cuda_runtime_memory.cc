// The calls of the stand-in <cuda_runtime.h> about errors, the device and memory.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/simt/device_memory.h"
#include "tests/simt/runtime.h"

using longhaul::simt::DeviceMemory;
using longhaul::simt::Runtime;

namespace {

cudaError_t Return(cudaError_t error) { return Runtime::Get().Return(error); }

cudaError_t NeedDevice(int device) {
  if (Runtime::Get().n_devices == 0) return cudaErrorNoDevice;
  return device >= 0 && device < Runtime::Get().n_devices ? cudaSuccess : cudaErrorInvalidDevice;
}

// One row of a copy or fill, when the stream comes to it.
struct Rows {
  std::byte* to = nullptr;
  size_t to_pitch = 0;
  const std::byte* from = nullptr;
  size_t from_pitch = 0;
  size_t width_bytes = 0;
  size_t n_rows = 0;
};

// Where the host may touch `address`: itself, or the storage of device memory.
std::byte* Storage(const void* address, size_t n_bytes, const char* call) {
  if (!DeviceMemory::Get().Owns(address)) {
    return const_cast<std::byte*>(static_cast<const std::byte*>(address));
  }
  std::string why;
  std::byte* storage = DeviceMemory::Get().Find(address, n_bytes, &why);
  if (storage == nullptr) Runtime::Get().Fail(std::string(call) + " out of bounds: " + why);
  return storage;
}

void CopyRows(const Rows& rows) {
  for (size_t i = 0; i < rows.n_rows; ++i) {
    std::byte* to = Storage(rows.to + i * rows.to_pitch, rows.width_bytes, "cudaMemcpy to");
    const std::byte* from =
        Storage(rows.from + i * rows.from_pitch, rows.width_bytes, "cudaMemcpy from");
    if (to == nullptr || from == nullptr) return;
    std::memmove(to, from, rows.width_bytes);
  }
}

cudaError_t CheckKind(const void* to, const void* from, cudaMemcpyKind kind) {
  const bool to_device = DeviceMemory::Get().Owns(to);
  const bool from_device = DeviceMemory::Get().Owns(from);
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !to_device && !from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyHostToDevice:
      return to_device && !from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDeviceToHost:
      return !to_device && from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDeviceToDevice:
      return to_device && from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDefault:
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t CopyRowsAsync(Rows rows, cudaMemcpyKind kind, cudaStream_t stream) {
  if (rows.width_bytes == 0 || rows.n_rows == 0) return cudaSuccess;
  const cudaError_t error = CheckKind(rows.to, rows.from, kind);
  if (error != cudaSuccess) return error;
  Runtime& runtime = Runtime::Get();
  const size_t from_bytes = (rows.n_rows - 1) * rows.from_pitch + rows.width_bytes;
  if (DeviceMemory::Get().Owns(rows.from) || runtime.IsPinned(rows.from, from_bytes)) {
    return runtime.Enqueue(stream, [rows] { CopyRows(rows); });
  }
  // Pageable host memory is staged before the call returns.
  if (runtime.Resolve(stream)->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
  auto staged = std::make_shared<std::vector<std::byte>>(rows.from, rows.from + from_bytes);
  rows.from = staged->data();
  return runtime.Enqueue(stream, [rows, staged] { CopyRows(rows); });
}

cudaError_t WaitForDefaultStream() {
  Runtime& runtime = Runtime::Get();
  if (runtime.IsCapturing()) return cudaErrorStreamCaptureUnsupported;
  runtime.Now(nullptr).Wait();
  return runtime.sticky();
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return Runtime::Get().TakeLastError(); }
cudaError_t cudaPeekAtLastError() { return Runtime::Get().last_error(); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = Runtime::Get().n_devices;
  return Return(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaSetDevice(int device) { return Return(NeedDevice(device)); }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return Return(NeedDevice(0));
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  const bool is_hopper = Runtime::Get().is_hopper;
  std::snprintf(properties->name, sizeof(properties->name), "simulated sm_%d", is_hopper ? 90 : 80);
  properties->totalGlobalMem = static_cast<size_t>(DeviceMemory::Get().capacity_bytes());
  properties->sharedMemPerBlockOptin = (is_hopper ? 227 : 163) * 1024;
  properties->sharedMemPerMultiprocessor = (is_hopper ? 228 : 164) * 1024;
  properties->major = is_hopper ? 9 : 8;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->l2CacheSize = 1 << 20;
  return Return(NeedDevice(device));
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return error;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return error;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return error;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return error;
  }
  return Return(cudaErrorInvalidValue);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = Runtime::Get().n_devices == 0 ? 0 : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  if (Runtime::Get().IsCapturing()) return Return(cudaErrorStreamCaptureUnsupported);
  Runtime::Get().RunAll();
  return Return(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const DeviceMemory& memory = DeviceMemory::Get();
  *total_bytes = static_cast<size_t>(memory.capacity_bytes());
  *free_bytes = static_cast<size_t>(memory.capacity_bytes() - memory.used_bytes());
  return Return(NeedDevice(0));
}

cudaError_t cudaMalloc(void** pointer, size_t n_bytes) {
  *pointer = nullptr;
  if (Runtime::Get().IsCapturing()) return Return(cudaErrorStreamCaptureUnsupported);
  if (NeedDevice(0) != cudaSuccess) return Return(cudaErrorNoDevice);
  if (n_bytes == 0) return Return(cudaSuccess);
  *pointer = DeviceMemory::Get().Allocate(n_bytes);
  return Return(*pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return Return(cudaSuccess);
  Runtime::Get().RunAll();  // cudaFree waits for the device
  return Return(DeviceMemory::Get().Free(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void** pointer, size_t n_bytes) {
  constexpr size_t kAlign = 256;
  *pointer =
      std::aligned_alloc(kAlign, (std::max<size_t>(n_bytes, 1) + kAlign - 1) / kAlign * kAlign);
  if (*pointer == nullptr) return Return(cudaErrorMemoryAllocation);
  Runtime::Get().Pin(*pointer, n_bytes);
  return Return(cudaSuccess);
}

cudaError_t cudaHostAlloc(void** pointer, size_t n_bytes, unsigned) {
  return cudaMallocHost(pointer, n_bytes);
}

cudaError_t cudaFreeHost(void* pointer) {
  if (pointer == nullptr) return Return(cudaSuccess);
  Runtime::Get().RunAll();
  if (!Runtime::Get().Unpin(pointer)) return Return(cudaErrorInvalidValue);
  std::free(pointer);
  return Return(cudaSuccess);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, n_bytes, from, n_bytes, n_bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width_bytes, size_t n_rows, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (width_bytes > to_pitch || width_bytes > from_pitch) return Return(cudaErrorInvalidValue);
  const Rows rows{.to = static_cast<std::byte*>(to),
                  .to_pitch = to_pitch,
                  .from = static_cast<const std::byte*>(from),
                  .from_pitch = from_pitch,
                  .width_bytes = width_bytes,
                  .n_rows = n_rows};
  return Return(CopyRowsAsync(rows, kind, stream));
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t n_bytes, cudaMemcpyKind kind) {
  const cudaError_t error = cudaMemcpyAsync(to, from, n_bytes, kind, nullptr);
  return Return(error != cudaSuccess ? error : WaitForDefaultStream());
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t n_bytes, cudaStream_t stream) {
  if (n_bytes == 0) return Return(cudaSuccess);
  if (!DeviceMemory::Get().Owns(to)) return Return(cudaErrorInvalidValue);
  return Return(Runtime::Get().Enqueue(stream, [to, value, n_bytes] {
    std::byte* storage = Storage(to, n_bytes, "cudaMemset");
    if (storage != nullptr) std::memset(storage, value, n_bytes);
  }));
}

cudaError_t cudaMemset(void* to, int value, size_t n_bytes) {
  const cudaError_t error = cudaMemsetAsync(to, value, n_bytes, nullptr);
  return Return(error != cudaSuccess ? error : WaitForDefaultStream());
}
