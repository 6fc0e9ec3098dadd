// SIMD pieces that the attention tiles share, compiled once per instruction set by the files that
// include this: exp2, the online softmax of one row, and loads that widen. What a tile is:
// attention_tile.h; its matrix products: attention_product-inl.h. Internal to kernels/cpu; include
// after foreach_target.h, as Highway asks.
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attention_tile.h"

// Once per target, not once per file: the usual guard of Highway's -inl.h files.
#if defined(LONGHAUL_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef LONGHAUL_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace longhaul::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using Vec = hn::Vec<F32>;
inline constexpr size_t kLanes = hn::MaxLanes(F32());
inline constexpr size_t kTileVecs = kTileKeys / kLanes;

// Rows whose scores are held between the two products. 24 x 64 floats leave most of L1 to the tile.
inline constexpr int64_t kChunkRows = 24;

// 2^x for x <= 126, zero below -126: x = n + f with |f| <= 1/2, 2^f by a polynomial of degree 5
// (minimax, relative error 9.2e-8), 2^n into the exponent.
HWY_INLINE Vec Exp2(Vec x) {
  const F32 d;
  const I32 di;
  const Vec magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = hn::Add(x, magic);
  const Vec f = hn::Sub(x, hn::Sub(shifted, magic));
  Vec p = hn::Set(d, 1.3264727e-3f);
  p = hn::MulAdd(p, f, hn::Set(d, 9.6715130e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5507336e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022242e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314700e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const Vec result = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(hn::Gt(x, hn::Set(d, -126.0f)), result);
}

// Lanes of vector v of a row mask.
HWY_INLINE hn::Mask<F32> MaskOf(uint64_t visible, size_t v) {
  const uint64_t bits = visible >> (v * kLanes);
  return hn::LoadMaskBits(F32(), reinterpret_cast<const uint8_t*>(&bits));
}

// The factor by which a row's sums shrink when its reference moves to the maximum of `top`.
inline HWY_NOINLINE float MoveReference(Vec top, float* max, float* sum) {
  const F32 d;
  const float new_max = hn::GetLane(hn::MaxOfLanes(d, top));
  const Vec factor = Exp2(hn::Set(d, *max - new_max));
  hn::StoreU(hn::Mul(hn::LoadU(d, sum), factor), d, sum);
  *max = new_max;
  return hn::GetLane(factor);
}

// Turns one row of scores into weights, and adds them to the row's state. o: the row's output
// accumulator of `dim` floats, rescaled when the reference moves, which is when a score exceeds it
// by more than `slack`; null for a log-sum-exp alone.
template <bool kStoreWeights>
HWY_INLINE void SoftmaxRow(float* HWY_RESTRICT s, float slack, float* max, float* HWY_RESTRICT sum,
                           float* o, size_t dim) {
  const F32 d;
  Vec score[kTileVecs];
  HWY_UNROLL(16)
  for (size_t v = 0; v < kTileVecs; ++v) score[v] = hn::Load(d, s + v * kLanes);
  Vec top = score[0];
  HWY_UNROLL(16)
  for (size_t v = 1; v < kTileVecs; ++v) top = hn::Max(top, score[v]);
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Le(top, hn::Set(d, *max + slack))))) {
    const float factor = MoveReference(top, max, sum);
    if (kStoreWeights) {
      for (size_t i = 0; i < dim; i += kLanes) {
        hn::StoreU(hn::Mul(hn::LoadU(d, o + i), hn::Set(d, factor)), d, o + i);
      }
    }
  }
  const Vec reference = hn::Set(d, *max);
  Vec total = hn::Zero(d);
  HWY_UNROLL(16)
  for (size_t v = 0; v < kTileVecs; ++v) {
    const Vec weight = Exp2(hn::Sub(score[v], reference));
    total = hn::Add(total, weight);
    if (kStoreWeights) hn::Store(weight, d, s + v * kLanes);
  }
  hn::StoreU(hn::Add(hn::LoadU(d, sum), total), d, sum);
}

HWY_INLINE Vec LoadWide(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE Vec LoadWide(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}
// Times 2^-8, see TileFactorF8.
template <class D>
HWY_INLINE hn::Vec<D> LoadF8(D d, const F8E4M3* p) {
  const hn::Rebind<int16_t, D> d16;
  const auto bytes = hn::LoadU(hn::Rebind<int8_t, D>(), reinterpret_cast<const int8_t*>(p));
  // Nine copies of the sign, then exponent and mantissa: one sign too many after the shift.
  const auto half = hn::And(hn::ShiftLeft<7>(hn::PromoteTo(d16, bytes)),
                            hn::Set(d16, static_cast<int16_t>(0xbf80)));
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), half));
}
HWY_INLINE Vec LoadWide(const F8E4M3* p) { return LoadF8(F32(), p); }

}  // namespace HWY_NAMESPACE
}  // namespace longhaul::cpu
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_KERNELS_CPU_ATTENTION_TILE_INL_H_
