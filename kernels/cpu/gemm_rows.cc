#include "kernels/cpu/gemm_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "kernels/weight_format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_rows.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longhaul::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of 16 elements at most: one stage of the transform per line of signs below.
using RotationTag = hn::CappedTag<float, 16>;

// The stages of the transform whose pairs lie within one vector: each element gets its partner, and
// itself with the sign of its place.
template <class V>
V RotateInVector(V v) {
#if HWY_TARGET != HWY_SCALAR
  alignas(64) static constexpr float kSigns[4][16] = {
      {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
      {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
      {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
      {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}};
  const RotationTag d;
  v = hn::MulAdd(v, hn::Load(d, kSigns[0]), hn::Shuffle2301(v));
  v = hn::MulAdd(v, hn::Load(d, kSigns[1]), hn::Shuffle1032(v));
  if constexpr (hn::MaxLanes(d) >= 8) {
    v = hn::MulAdd(v, hn::Load(d, kSigns[2]), hn::SwapAdjacentBlocks(v));
  }
  if constexpr (hn::MaxLanes(d) >= 16) {
    v = hn::MulAdd(v, hn::Load(d, kSigns[3]), hn::ConcatLowerUpper(d, v, v));
  }
#endif
  return v;
}

// out = x rotated; block: a multiple of the vector. The stages across vectors go two at a time.
void RotateVectors(const float* x, int64_t block, float* out) {
  const RotationTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, RotationScale(block));
  for (int64_t i = 0; i < block; i += lanes) {
    hn::StoreU(RotateInVector(hn::Mul(hn::LoadU(d, x + i), scale)), d, out + i);
  }
  int64_t distance = lanes;
  for (; 4 * distance <= block; distance *= 4) {
    for (int64_t begin = 0; begin < block; begin += 4 * distance) {
      for (float* at = out + begin; at < out + begin + distance; at += lanes) {
        const auto a = hn::LoadU(d, at);
        const auto b = hn::LoadU(d, at + distance);
        const auto c = hn::LoadU(d, at + 2 * distance);
        const auto e = hn::LoadU(d, at + 3 * distance);
        const auto ab = hn::Add(a, b), a_b = hn::Sub(a, b);
        const auto ce = hn::Add(c, e), c_e = hn::Sub(c, e);
        hn::StoreU(hn::Add(ab, ce), d, at);
        hn::StoreU(hn::Add(a_b, c_e), d, at + distance);
        hn::StoreU(hn::Sub(ab, ce), d, at + 2 * distance);
        hn::StoreU(hn::Sub(a_b, c_e), d, at + 3 * distance);
      }
    }
  }
  if (distance == block) return;
  for (float* at = out; at < out + distance; at += lanes) {
    const auto a = hn::LoadU(d, at);
    const auto b = hn::LoadU(d, at + distance);
    hn::StoreU(hn::Add(a, b), d, at);
    hn::StoreU(hn::Sub(a, b), d, at + distance);
  }
}

void RotateBlocks(const float* x, int64_t n, float* out) {
  for (int64_t begin = 0, block; begin < n; begin += block) {
    block = RotationBlock(n - begin);
    if (block >= static_cast<int64_t>(hn::Lanes(RotationTag()))) {
      RotateVectors(x + begin, block, out + begin);
      continue;
    }
    if (out != x) std::copy_n(x + begin, block, out + begin);
    RotateBlock(out + begin, block);
  }
}

// The largest bit pattern of |x|.
uint32_t MaxAbsBits(const float* HWY_RESTRICT x, int64_t n) {
  const hn::ScalableTag<int32_t> d;
  const auto no_sign = hn::Set(d, 0x7fffffff);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto* bits = reinterpret_cast<const int32_t*>(x);
  auto max0 = hn::Zero(d);
  auto max1 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    max0 = hn::Max(max0, hn::And(hn::LoadU(d, bits + i), no_sign));
    max1 = hn::Max(max1, hn::And(hn::LoadU(d, bits + i + lanes), no_sign));
  }
  auto result = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(d, hn::Max(max0, max1))));
  for (; i < n; ++i) result = std::max(result, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  return result;
}

// q = nearest(x * inverse) + offset. A row whose inverse is 0 has infinities or NaN in it at most:
// their q is 0 too.
template <typename Q>
void QuantizeElements(const float* HWY_RESTRICT x, int64_t n, float inverse, int32_t offset,
                      Q* HWY_RESTRICT out) {
  if (inverse == 0) {
    std::fill_n(out, n, static_cast<Q>(offset));
    return;
  }
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<Q, decltype(df)> dq;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto inverse_v = hn::Set(df, inverse);
  const auto offset_v = hn::Set(di, offset);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto q = hn::NearestInt(hn::Mul(hn::LoadU(df, x + i), inverse_v));
    const auto moved = hn::Add(q, offset_v);
    if constexpr (std::is_same_v<Q, float>) {
      hn::StoreU(hn::ConvertTo(df, moved), df, out + i);
    } else {
      hn::StoreU(hn::DemoteTo(dq, moved), dq, out + i);
    }
  }
  for (; i < n; ++i) {
    out[i] = static_cast<Q>(static_cast<int32_t>(std::nearbyint(x[i] * inverse)) + offset);
  }
}

float QuantizeU8(const float* x, int64_t n, uint8_t* out) {
  const Int8Scale scale = Int8ScaleOf(MaxAbsBits(x, n));
  QuantizeElements(x, n, scale.inverse, 128, out);
  return scale.scale;
}

float QuantizeS8(const float* x, int64_t n, int8_t* out) {
  const Int8Scale scale = Int8ScaleOf(MaxAbsBits(x, n));
  QuantizeElements(x, n, scale.inverse, 0, out);
  return scale.scale;
}

float QuantizeF32(const float* x, int64_t n, float* out) {
  const Int8Scale scale = Int8ScaleOf(MaxAbsBits(x, n));
  QuantizeElements(x, n, scale.inverse, 0, out);
  return scale.scale;
}

void WidenS8Row(const int8_t* HWY_RESTRICT in, int64_t n, float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> dq;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(dq, in + i))), df, out + i);
  }
  for (; i < n; ++i) out[i] = in[i];
}

// y = values (+ bias) (+ y).
template <class Values>
void Store(int64_t n, const cpu::Epilogue& e, float* HWY_RESTRICT y, const Values& values) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto store = [&](auto tag, int64_t i) HWY_ATTR {
    auto value = values(tag, i);
    if (e.bias != nullptr) value = hn::Add(value, hn::LoadU(tag, e.bias + i));
    if (e.accumulate) value = hn::Add(value, hn::LoadU(tag, y + i));
    hn::StoreU(value, tag, y + i);
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(d, i);
  for (; i < n; ++i) store(d1, i);
}

void StoreF32(const float* sums, int64_t n, const cpu::Epilogue& e, float* y) {
  if (e.scales == nullptr) {
    Store(n, e, y, [&](auto d, int64_t i) HWY_ATTR { return hn::LoadU(d, sums + i); });
    return;
  }
  Store(n, e, y, [&](auto d, int64_t i) HWY_ATTR {
    const auto scale = hn::Mul(hn::Set(d, e.row_scale), hn::LoadU(d, e.scales + i));
    return hn::Mul(hn::LoadU(d, sums + i), scale);
  });
}

void StoreI32(const int32_t* sums, int64_t n, const cpu::Epilogue& e, float* y) {
  Store(n, e, y, [&](auto d, int64_t i) HWY_ATTR {
    const hn::RebindToSigned<decltype(d)> di;
    const auto scale = hn::Mul(hn::Set(d, e.row_scale), hn::LoadU(d, e.scales + i));
    const auto sum = hn::Sub(hn::LoadU(di, sums + i), hn::LoadU(di, e.zeros + i));
    return hn::Mul(hn::ConvertTo(d, sum), scale);
  });
}

void RoundBF16Row(const float* HWY_RESTRICT x, int64_t n, float* HWY_RESTRICT out) {
  for (int64_t i = 0; i < n; ++i) out[i] = ToF32(ToBF16(x[i]));
}

void NarrowS8Row(const float* HWY_RESTRICT in, int64_t n, int8_t* HWY_RESTRICT out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int8_t>(in[i]);
}

}  // namespace longhaul::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::cpu {

HWY_EXPORT(RotateBlocks);
HWY_EXPORT(QuantizeU8);
HWY_EXPORT(QuantizeS8);
HWY_EXPORT(QuantizeF32);
HWY_EXPORT(WidenS8Row);
HWY_EXPORT(StoreF32);
HWY_EXPORT(StoreI32);
HWY_EXPORT(RoundBF16Row);
HWY_EXPORT(NarrowS8Row);

void RotateRow(const float* x, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(RotateBlocks)(x, n, out);
}
float QuantizeRowU8(const float* x, int64_t n, uint8_t* out) {
  return HWY_DYNAMIC_DISPATCH(QuantizeU8)(x, n, out);
}
float QuantizeRowS8(const float* x, int64_t n, int8_t* out) {
  return HWY_DYNAMIC_DISPATCH(QuantizeS8)(x, n, out);
}
float QuantizeRowF32(const float* x, int64_t n, float* out) {
  return HWY_DYNAMIC_DISPATCH(QuantizeF32)(x, n, out);
}
void RoundRowToBF16(const float* x, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(RoundBF16Row)(x, n, out);
}
void WidenS8(const int8_t* in, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenS8Row)(in, n, out);
}
void NarrowToS8(const float* in, int64_t n, int8_t* out) {
  HWY_DYNAMIC_DISPATCH(NarrowS8Row)(in, n, out);
}
void StoreRow(const float* sums, int64_t n, const Epilogue& epilogue, float* y) {
  HWY_DYNAMIC_DISPATCH(StoreF32)(sums, n, epilogue, y);
}
void StoreRow(const int32_t* sums, int64_t n, const Epilogue& epilogue, float* y) {
  HWY_DYNAMIC_DISPATCH(StoreI32)(sums, n, epilogue, y);
}

}  // namespace longhaul::cpu
#endif  // HWY_ONCE
