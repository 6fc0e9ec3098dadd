// fp8 (e4m3) numbers in rows that share a scale: how a KV cache of type kF8E4M3 keeps keys and
// values. Level 0, header only; any thread. The kernels of the GPU write with the same functions,
// and read with WidenFp8x8 of kernels/cuda/device.h.
//
// e4m3: sign, four bits of exponent (bias 7), three of mantissa; the largest number is 448, there
// is no infinity. The byte 0x7f, NaN in the standard, is read as 480: no kernel has time to ask.
//
// A row is x[i] = e4m3[i] * 2^(scale - 247), with `scale` one byte. A power of two costs no
// accuracy, since the numbers float anyway, and makes every product with it exact: a stored number
// is a bf16 number, and kernels that convert to bf16, to f32 or scale later give the same values.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace longhaul {

struct F8E4M3 {
  uint8_t bits;
};

// The exponent and mantissa bits, moved into an f32, are the number times 2^-120.
constexpr float ToF32(F8E4M3 x) {
  const uint32_t magnitude = uint32_t{x.bits & 0x7fu} << 20;
  const uint32_t sign = uint32_t{x.bits & 0x80u} << 24;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p120f) |
                              sign);
}

// To nearest even; what is beyond 448 becomes 448, NaN becomes 0x7f.
constexpr F8E4M3 ToF8E4M3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 24 & 0x80u;
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  uint32_t rounded = 0x7f;
  if (magnitude >= 448.0f) {
    rounded = 0x7e;
  } else if (magnitude < 0x1p-6f) {  // a multiple of 2^-9, which is what the sum rounds to
    rounded = std::bit_cast<uint32_t>(magnitude + 0x1p14f) & 0xfu;
  } else if (magnitude == magnitude) {
    const uint32_t u = std::bit_cast<uint32_t>(magnitude) - (120u << 23);
    rounded = (u + 0x7ffffu + (u >> 20 & 1u)) >> 20;
  }
  return F8E4M3{static_cast<uint8_t>(sign | rounded)};
}

// The scale under which the largest magnitude of a row lies in [128, 256), so that nothing is
// clipped and 2^14 below it is still a normal number. Rows beyond 2^15 are clipped at 57344 (as f16
// would at 65504), and below 2^-110 all are alike: a scale is in [130, 254].
constexpr uint8_t RowScaleF8(float largest_magnitude) {
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest_magnitude) >> 23);
  return static_cast<uint8_t>(std::clamp(exponent + 113, 130, 254));
}
constexpr float RowFactorF8(uint8_t scale) {  // 2^(scale - 247)
  return std::bit_cast<float>(static_cast<uint32_t>(std::max<int>(scale, 121) - 120) << 23);
}

// Rounds x [n] to `row` [n]; returns its scale.
inline uint8_t RoundRowF8(const float* x, int64_t n, F8E4M3* row) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  const uint8_t scale = RowScaleF8(largest);
  const float inverse = 1.0f / RowFactorF8(scale);
  for (int64_t i = 0; i < n; ++i) row[i] = ToF8E4M3(x[i] * inverse);
  return scale;
}

}  // namespace longhaul
