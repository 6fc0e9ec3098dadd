// Comparison of tensors and deterministic random data for tests.
//
// Metric: error <= 2 x the error of the reference rounded to the dtype in question, plus a floor
// for what f32 arithmetic loses on the way. Stateless but for Random, which is a value.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/fp8.h"
#include "kernels/base/tensor.h"

namespace longhaul::testing {

// SplitMix64: the same numbers on every machine, unlike the distributions of <random>.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, n).
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
  // In (0, 1).
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1p-53; }
  // Standard normal (Box-Muller).
  float Normal() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return static_cast<float>(radius * std::cos(2 * std::numbers::pi * Uniform()));
  }
  std::vector<float> Normals(int64_t n, float scale = 1) {
    std::vector<float> values(n);
    for (float& value : values) value = scale * Normal();
    return values;
  }

 private:
  uint64_t state_;
};

// Of kF8E4M3: as the largest number of its row.
inline float RoundTo(DType dtype, float x) {
  if (dtype == DType::kBF16) return ToF32(ToBF16(x));
  if (dtype != DType::kF8E4M3) return x;
  F8E4M3 rounded;
  const uint8_t scale = RoundRowF8(&x, 1, &rounded);
  return ToF32(rounded) * RowFactorF8(scale);
}

// Every element within 2 x the largest rounding error of `expected` in `dtype`, plus `floor`.
// Not-a-number never passes; equal infinities do.
inline ::testing::AssertionResult IsClose(const std::vector<float>& actual,
                                          const std::vector<float>& expected, DType dtype,
                                          double floor) {
  if (actual.size() != expected.size()) {
    return ::testing::AssertionFailure() << actual.size() << " elements, not " << expected.size();
  }
  double rounding = 0;
  for (float e : expected) {
    if (std::isfinite(e)) rounding = std::max<double>(rounding, std::abs(RoundTo(dtype, e) - e));
  }
  const double tolerance = 2 * rounding + floor;
  double worst = -1;
  size_t worst_at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    const double error = std::abs(double{actual[i]} - double{expected[i]});
    if (!(error <= worst)) {  // also when it is not a number
      worst = error;
      worst_at = i;
    }
    if (std::isnan(error)) break;
  }
  if (worst <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "element " << worst_at << " of " << actual.size() << " is " << actual[worst_at]
         << ", not " << expected[worst_at] << ": error " << worst << " > " << tolerance;
}

inline TensorView View(std::vector<float>& values, std::initializer_list<int64_t> shape) {
  const TensorView view(values.data(), DType::kF32, shape);
  LH_CHECK(view.NumElements() == static_cast<int64_t>(values.size()));
  return view;
}

}  // namespace longhaul::testing
