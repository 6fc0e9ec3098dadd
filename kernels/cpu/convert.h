// Conversions between storage types and f32, vectorised. Stateless; any thread.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace longhaul {

// out[i] = f32 of element i of `in`, dtype f32, bf16 or f16.
void WidenToF32(const void* in, DType dtype, int64_t n, float* out);

// out[i] = `in[i]` rounded to nearest even; NaN stays NaN. The same bits as ToBF16.
void RoundToBF16(const float* in, int64_t n, BF16* out);

// The instruction set that run-time dispatch chose, as Highway names it: "AVX3".
const char* SimdTargetName();

}  // namespace longhaul
