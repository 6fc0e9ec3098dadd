// Makes tensor maps for CopyTensorBox (hopper_device.h). Host code; the driver is asked for its
// encoder by name, so that a program that links no libcuda starts without a driver.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/hopper_device.h"

namespace longhaul::cuda {

// bf16, innermost dimension first. A box is [boxes[3], boxes[2], boxes[1], 64] elements.
struct TensorShape {
  int64_t sizes[4] = {};         // elements
  int64_t stride_bytes[4] = {};  // of dimensions 1 to 3; multiples of 16
  int32_t box[4] = {};           // elements; box[0] is 64: a swizzled row
};

// cudaErrorNotSupported if the driver is too old to have tensor maps.
cudaError_t MakeTensorMap(const void* data, const TensorShape& shape, TensorMap* map);

}  // namespace longhaul::cuda
