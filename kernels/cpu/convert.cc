#include "kernels/cpu/convert.h"

#include <cstring>

#include "kernels/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/convert.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longhaul::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void WidenBF16(const BF16* HWY_RESTRICT in, int64_t n, float* HWY_RESTRICT out) {
  const hn::ScalableTag<uint32_t> du32;
  const hn::ScalableTag<float> df32;
  const hn::Rebind<uint16_t, decltype(du32)> du16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(du32));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(in + i));
    hn::StoreU(hn::BitCast(df32, hn::ShiftLeft<16>(hn::PromoteTo(du32, bits))), df32, out + i);
  }
  for (; i < n; ++i) out[i] = ToF32(in[i]);
}

void WidenF16(const F16* HWY_RESTRICT in, int64_t n, float* HWY_RESTRICT out) {
  const hn::ScalableTag<float> df32;
  const hn::Rebind<hwy::float16_t, decltype(df32)> df16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df32));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto half = hn::LoadU(df16, reinterpret_cast<const hwy::float16_t*>(in + i));
    hn::StoreU(hn::PromoteTo(df32, half), df32, out + i);
  }
  for (; i < n; ++i) out[i] = ToF32(in[i]);
}

// Not Highway's DemoteTo: on most targets it truncates.
void RoundBF16(const float* HWY_RESTRICT in, int64_t n, BF16* HWY_RESTRICT out) {
  const hn::ScalableTag<float> df32;
  const hn::RebindToUnsigned<decltype(df32)> du32;
  const hn::Rebind<uint16_t, decltype(du32)> du16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df32));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto x = hn::LoadU(df32, in + i);
    const auto bits = hn::BitCast(du32, x);
    const auto top = hn::ShiftRight<16>(bits);
    const auto odd = hn::And(top, hn::Set(du32, 1u));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du32, 0x7fffu))));
    const auto is_nan = hn::RebindMask(du32, hn::IsNaN(x));
    const auto result = hn::IfThenElse(is_nan, hn::Or(top, hn::Set(du32, 0x40u)), rounded);
    hn::StoreU(hn::TruncateTo(du16, result), du16, reinterpret_cast<uint16_t*>(out + i));
  }
  for (; i < n; ++i) out[i] = ToBF16(in[i]);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace longhaul::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul {

HWY_EXPORT(WidenBF16);
HWY_EXPORT(WidenF16);
HWY_EXPORT(RoundBF16);
HWY_EXPORT(TargetName);

void WidenToF32(const void* in, DType dtype, int64_t n, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, in, n * sizeof(float));
      return;
    case DType::kBF16:
      HWY_DYNAMIC_DISPATCH(WidenBF16)(static_cast<const BF16*>(in), n, out);
      return;
    case DType::kF16:
      HWY_DYNAMIC_DISPATCH(WidenF16)(static_cast<const F16*>(in), n, out);
      return;
    case DType::kF8E4M3:
    case DType::kI32:
    case DType::kU8:
      break;
  }
  LH_CHECK(dtype == DType::kF32);
}

void RoundToBF16(const float* in, int64_t n, BF16* out) {
  HWY_DYNAMIC_DISPATCH(RoundBF16)(in, n, out);
}

const char* SimdTargetName() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace longhaul
#endif  // HWY_ONCE
