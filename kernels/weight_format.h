// How a backend holds the weight matrices of linear layers, and the arithmetic of 8-bit rows that
// all backends agree on. Stateless.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

namespace longhaul {

// What one product x w computes; all sums are f32 or wider.
enum class WeightFormat : uint8_t {
  kF32,   // x and w as they are
  kBF16,  // x and w rounded to bf16
  kInt8,  // rows of x and of w rotated, then rounded to whole multiples of a scale per row
};

constexpr std::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "float32";
    case WeightFormat::kBF16:
      return "bfloat16";
    case WeightFormat::kInt8:
      return "int8";
  }
  return "?";
}

// Rows are rotated in blocks of so many elements before they become 8-bit: an element that is far
// larger than the others would leave few of the 127 steps to them, and is spread over its block
// instead. Both rows of a product are rotated alike, so it stays what it is.
inline constexpr int64_t kRotationBlock = 256;

// Size of the block that begins where n elements are left: the largest power of four, whose
// transform has a power of two as its factor, which rounds nothing.
constexpr int64_t RotationBlock(int64_t n) {
  const int exponent = std::bit_width(static_cast<uint64_t>(std::min(n, kRotationBlock))) - 1;
  return int64_t{1} << (exponent & ~1);
}
inline float RotationScale(int64_t block) { return 1 / std::sqrt(static_cast<float>(block)); }

// Rotates one block: the Walsh-Hadamard transform, in place, stage by stage. Others may compute it
// as they like as long as each stage's sums are these.
inline void RotateBlock(float* x, int64_t block) {
  const float scale = RotationScale(block);
  for (int64_t i = 0; i < block; ++i) x[i] *= scale;
  for (int64_t distance = 1; distance < block; distance *= 2) {
    for (int64_t begin = 0; begin < block; begin += 2 * distance) {
      for (int64_t i = begin; i < begin + distance; ++i) {
        const float a = x[i];
        const float b = x[i + distance];
        x[i] = a + b;
        x[i + distance] = a - b;
      }
    }
  }
}

// Symmetric 8-bit form of a row: element x becomes q = nearest(x * inverse), ties to even, in
// [-127, 127], and stands for q * scale.
struct Int8Scale {
  float scale = 0;
  float inverse = 0;
};

// max_abs_bits: the largest bit pattern of |x| in the row, which orders NaN above everything. A row
// that is not finite is all NaN afterwards: q = 0, scale NaN. A row below 1e-30 is all 0.
inline Int8Scale Int8ScaleOf(uint32_t max_abs_bits) {
  const float max_abs = std::bit_cast<float>(max_abs_bits);
  if (!std::isfinite(max_abs)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  if (max_abs < 1e-30f) return {0, 0};
  return {max_abs / 127, 127 / max_abs};
}

// One row x [n] becomes its 8-bit form, in place: whole numbers -127 to 127. Returns their scale.
inline float QuantizeRow(float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += RotationBlock(n - begin)) {
    RotateBlock(x + begin, RotationBlock(n - begin));
  }
  uint32_t max_abs_bits = 0;
  for (int64_t i = 0; i < n; ++i) {
    max_abs_bits = std::max(max_abs_bits, std::bit_cast<uint32_t>(std::abs(x[i])));
  }
  const Int8Scale scale = Int8ScaleOf(max_abs_bits);
  for (int64_t i = 0; i < n; ++i) {
    x[i] = scale.inverse == 0 ? 0 : std::nearbyint(x[i] * scale.inverse);
  }
  return scale.scale;
}

}  // namespace longhaul
