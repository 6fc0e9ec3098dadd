// The vectorised row passes around a matrix product: activations into the type that the product
// reads, its sums back into f32. Stateless; any thread.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"

namespace longhaul::cpu {

// out [n] = x [n] rotated, bit for bit as kernels/weight_format.h has it; out may be x.
void RotateRow(const float* x, int64_t n, float* out);

// The 8-bit form of a rotated row of n activations (kernels/weight_format.h), moved by 128 into u8,
// which is what VNNI multiplies with signed weights. Returns the scale.
float QuantizeRowU8(const float* x, int64_t n, uint8_t* out);

// The same as whole numbers -127 to 127 in i8 and in f32.
float QuantizeRowS8(const float* x, int64_t n, int8_t* out);
float QuantizeRowF32(const float* x, int64_t n, float* out);

// out[i] = x[i] rounded to bf16, as f32.
void RoundRowToBF16(const float* x, int64_t n, float* out);

void WidenS8(const int8_t* in, int64_t n, float* out);
// `in` holds whole numbers -128 to 127.
void NarrowToS8(const float* in, int64_t n, int8_t* out);

// What becomes of one row of sums: y = (sum - zero) * row_scale * scale + bias, or added to y.
struct Epilogue {
  float row_scale = 1;
  const float* scales = nullptr;   // [n]; null: sums are taken as they are, row_scale is not used
  const int32_t* zeros = nullptr;  // [n], of integer sums only
  const float* bias = nullptr;     // [n], or null
  bool accumulate = false;
};
void StoreRow(const float* sums, int64_t n, const Epilogue& epilogue, float* y);
void StoreRow(const int32_t* sums, int64_t n, const Epilogue& epilogue, float* y);

}  // namespace longhaul::cpu
