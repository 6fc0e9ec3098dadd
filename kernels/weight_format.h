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
  kInt8,  // x and w rounded to whole multiples of a scale: one per row of x, one per row of w
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

// The same for one row [n], and its elements; q: [n], written, values -127 to 127.
template <typename Q>
float QuantizeRow(const float* x, int64_t n, Q* q) {
  uint32_t max_abs_bits = 0;
  for (int64_t i = 0; i < n; ++i) {
    max_abs_bits = std::max(max_abs_bits, std::bit_cast<uint32_t>(std::abs(x[i])));
  }
  const Int8Scale scale = Int8ScaleOf(max_abs_bits);
  for (int64_t i = 0; i < n; ++i) {
    q[i] = scale.inverse == 0 ? Q{0} : static_cast<Q>(std::nearbyint(x[i] * scale.inverse));
  }
  return scale.scale;
}

}  // namespace longhaul
