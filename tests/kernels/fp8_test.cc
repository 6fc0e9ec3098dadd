// Numbers, rows and pages of fp8.
#include "kernels/base/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/kv_layout.h"
#include "tests/testing/compare.h"

namespace longhaul {
namespace {

// By the format's definition.
float Decode(int bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>((bits & 0x80) != 0 ? -magnitude : magnitude);
}

TEST(F8E4M3Test, ReadsAndRoundsEveryNumber) {
  for (int bits = 0; bits < 256; ++bits) {
    const F8E4M3 x{static_cast<uint8_t>(bits)};
    EXPECT_EQ(ToF32(x), Decode(bits)) << bits;
    if ((bits & 0x7f) != 0x7f) {
      EXPECT_EQ(ToF8E4M3(Decode(bits)).bits, bits);
    }
  }
  // To nearest, ties to even: halfway between two neighbours of any magnitude.
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float middle = (Decode(bits) + Decode(bits + 1)) / 2;
    EXPECT_EQ(ToF8E4M3(middle).bits, bits % 2 == 0 ? bits : bits + 1) << bits;
    EXPECT_EQ(ToF8E4M3(std::nextafter(middle, 0.0f)).bits, bits) << bits;
    EXPECT_EQ(ToF8E4M3(-std::nextafter(middle, 1000.0f)).bits, 0x80 | (bits + 1)) << bits;
  }
  EXPECT_EQ(ToF8E4M3(1e9f).bits, 0x7e);
  EXPECT_EQ(ToF8E4M3(-std::numeric_limits<float>::infinity()).bits, 0xfe);
  EXPECT_EQ(ToF8E4M3(std::numeric_limits<float>::quiet_NaN()).bits & 0x7f, 0x7f);
}

std::vector<float> RoundTrip(const std::vector<float>& x) {
  std::vector<F8E4M3> row(x.size());
  const uint8_t scale = RoundRowF8(x.data(), static_cast<int64_t>(x.size()), row.data());
  std::vector<float> out;
  for (const F8E4M3 element : row) out.push_back(ToF32(element) * RowFactorF8(scale));
  return out;
}

// Over all magnitudes that a model has, and beyond: within 2^-4 of each number, or within 2^-17 of
// the largest of its row.
TEST(F8E4M3Test, RowsKeepTheirPrecisionAtEveryScale) {
  testing::Random random(5);
  for (int exponent = -100; exponent <= 12; ++exponent) {
    std::vector<float> x = random.Normals(64, std::ldexp(1.0f, exponent));
    x[7] *= 1e-3f;
    x[8] = 0;
    float largest = 0;
    for (const float e : x) largest = std::max(largest, std::abs(e));
    const std::vector<float> rounded = RoundTrip(x);
    for (size_t i = 0; i < x.size(); ++i) {
      const float step = std::max(std::abs(x[i]) / 16, largest * 0x1p-17f);
      EXPECT_LE(std::abs(rounded[i] - x[i]), step) << x[i] << " beside " << largest;
      EXPECT_EQ(rounded[i], ToF32(ToBF16(rounded[i]))) << "not a bf16 number";
    }
  }
}

TEST(F8E4M3Test, RowsAtTheLimits) {
  EXPECT_EQ(RoundTrip({0.0f, -0.0f}), (std::vector<float>{0.0f, 0.0f}));
  EXPECT_EQ(RoundTrip({1e-40f, 0.0f}), (std::vector<float>{0.0f, 0.0f}));
  EXPECT_EQ(RoundTrip({32768.0f, -1.0f}), (std::vector<float>{32768.0f, -1.0f}));
  EXPECT_EQ(RoundTrip({1e9f, -40960.0f}), (std::vector<float>{57344.0f, -40960.0f}));
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(RoundTrip({-infinity, 128.0f}), (std::vector<float>{-57344.0f, 128.0f}));
  for (const float largest : {0.0f, 1e-38f, 1.0f, 3e38f, infinity}) {
    EXPECT_GE(RowScaleF8(largest), 130);
    EXPECT_LE(RowScaleF8(largest), 254);
  }
}

// Every key and value of a page has bytes of its own, and so has every scale.
TEST(F8E4M3Test, PagesHaveRoomForRowsAndScales) {
  const KvLayout layout = {.n_layers = 2, .n_kv_heads = 3, .head_dim = 80, .dtype = DType::kF8E4M3};
  EXPECT_EQ(layout.PageBytes(), 2 * 3 * 2 * 64 * (80 + 1));
  std::vector<std::byte> pool(2 * layout.PageBytes());
  const int32_t pages[] = {1, 0};
  for (int layer = 0; layer < 2; ++layer) {
    const KvView kv = layout.View(pool.data(), pages, 128, layer);
    for (int64_t page = 0; page < 2; ++page) {
      for (int64_t head = 0; head < 3; ++head) {
        for (std::byte* block : {kv.Keys(page, head), kv.Values(page, head)}) {
          for (int64_t i = 0; i < 64 * 80; ++i) block[i] = std::byte{1} | block[i] << 1;
          for (int64_t i = 0; i < 64; ++i) {
            kv.RowScales(block)[i] = static_cast<uint8_t>(1 | kv.RowScales(block)[i] << 1);
          }
        }
      }
    }
  }
  for (const std::byte byte : pool) ASSERT_EQ(byte, std::byte{1});
}

}  // namespace
}  // namespace longhaul
