// The stand-in for the CUDA driver: cuTensorMapEncodeTiled, with the conditions that its
// documentation states, and the way to it.
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>
#include <string_view>

#include "tests/simt/device_memory.h"
#include "tests/simt/tensor_map.h"

namespace longhaul::simt {
namespace {

CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                     const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                     const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                     CUtensorMapFloatOOBfill fill) {
  constexpr cuuint64_t kElementBytes = 2;
  const auto address_bits = reinterpret_cast<uintptr_t>(address);
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0 || address_bits % 16 != 0 || rank < 1 ||
      rank > 5 || type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ||
      interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || !DeviceMemory::Get().Owns(address) ||
      box[0] * kElementBytes > 128 || box[0] * kElementBytes % 16 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  EncodedTensorMap encoded;
  encoded.magic = EncodedTensorMap::kMagic;
  encoded.rank = rank;
  encoded.base = static_cast<const std::byte*>(address);
  encoded.stride_bytes[0] = kElementBytes;
  for (cuuint32_t i = 0; i < rank; ++i) {
    const cuuint64_t stride = i == 0 ? kElementBytes : strides[i - 1];
    if (sizes[i] == 0 || sizes[i] > UINT32_MAX || box[i] == 0 || box[i] > 256 ||
        element_strides[i] != 1 || (i > 0 && stride % 16 != 0) || stride >= cuuint64_t{1} << 40) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    // Each dimension holds those inside of it.
    if (i > 0 && stride < sizes[i - 1] * static_cast<cuuint64_t>(encoded.stride_bytes[i - 1])) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    encoded.sizes[i] = static_cast<uint32_t>(sizes[i]);
    encoded.box[i] = static_cast<uint16_t>(box[i]);
    encoded.stride_bytes[i] = static_cast<int64_t>(stride);
  }
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}

}  // namespace
}  // namespace longhaul::simt

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool is_known = std::string_view(symbol) == "cuTensorMapEncodeTiled" && version >= 12000;
  *function = is_known ? reinterpret_cast<void*>(&longhaul::simt::EncodeTiled) : nullptr;
  *result = is_known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
