#include "kernels/cpu/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/testing/compare.h"

namespace longhaul {
namespace {

// An odd length leaves a tail on every vector width.
TEST(ConvertTest, WidensEveryHalfValue) {
  std::vector<F16> half(65536 + 7);
  std::vector<float> wide(half.size());
  for (size_t i = 0; i < half.size(); ++i) half[i].bits = static_cast<uint16_t>(i);
  WidenToF32(half.data(), DType::kF16, wide.size(), wide.data());
  for (size_t i = 0; i < wide.size(); ++i) {
    const float expected = ToF32(half[i]);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), std::bit_cast<uint32_t>(expected)) << i;
    }
  }
}

TEST(ConvertTest, HalfValuesThatAreKnown) {
  const std::vector<std::pair<uint16_t, float>> known = {
      {0x3c00, 1.0f},     {0xc000, -2.0f},    {0x7bff, 65504.0f},
      {0x0400, 0x1p-14f}, {0x0001, 0x1p-24f}, {0x83ff, -1023 * 0x1p-24f},
      {0x7c00, INFINITY}, {0x8000, -0.0f}};
  for (const auto& [bits, value] : known) EXPECT_EQ(ToF32(F16{bits}), value) << bits;
}

TEST(ConvertTest, BF16RoundTripIsExact) {
  std::vector<BF16> in(65536 + 3);
  for (size_t i = 0; i < in.size(); ++i) in[i].bits = static_cast<uint16_t>(i);
  std::vector<float> wide(in.size());
  std::vector<BF16> back(in.size());
  WidenToF32(in.data(), DType::kBF16, wide.size(), wide.data());
  RoundToBF16(wide.data(), wide.size(), back.data());
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(wide[i])) {
      ASSERT_TRUE(std::isnan(ToF32(back[i]))) << i;
    } else {
      ASSERT_EQ(back[i].bits, in[i].bits) << i;
    }
  }
}

TEST(ConvertTest, BF16RoundsToNearestEven) {
  // 1 + 2^-8 lies between 1 and 1 + 2^-7: a tie, the even one is 1. 1 + 3 * 2^-8 ties upwards.
  EXPECT_EQ(ToBF16(1 + 0x1p-8f).bits, 0x3f80);
  EXPECT_EQ(ToBF16(1 + 3 * 0x1p-8f).bits, 0x3f82);
  EXPECT_EQ(ToBF16(1 + 0x1p-8f + 0x1p-20f).bits, 0x3f81);
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::max()).bits, 0x7f80);  // infinity

  testing::Random random(5);
  std::vector<float> in = random.Normals(1000, 1e3f);
  in[3] = NAN;
  in[20] = -INFINITY;
  in[21] = 1e-40f;  // subnormal
  std::vector<BF16> out(in.size());
  RoundToBF16(in.data(), in.size(), out.data());
  for (size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i].bits, ToBF16(in[i]).bits) << in[i];
}

}  // namespace
}  // namespace longhaul
