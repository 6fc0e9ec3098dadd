// SIMD pieces that the attention tiles share, compiled once per instruction set by the files that
// include this: register-blocked products, exp2 and the online softmax of one row. What a tile is:
// attention_tile.h. Internal to kernels/cpu; include after foreach_target.h, as Highway asks.
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

// Register block of the two matrix products: with 32 registers 6 x 4 accumulators (two FMA units of
// latency 4 want at least 8 chains; 24 leave room for 4 columns of B and a broadcast), with 16 6
// x 2.
inline constexpr int kBlockRows = 6;
inline constexpr int kBlockVecs = HWY_TARGET == HWY_AVX3 ? 4 : 2;
// Rows whose scores are held between the two products. 24 x 64 floats leave most of L1 to the tile.
inline constexpr int64_t kChunkRows = 24;

// c[r, n] (+)= sum_k a[r, k] * b[k, n] for kRows rows and kVecs vectors of columns.
template <int kRows, int kVecs, bool kAccumulate>
HWY_INLINE void Block(const float* HWY_RESTRICT a, size_t lda, const float* HWY_RESTRICT b,
                      size_t ldb, size_t n_k, float* HWY_RESTRICT c, size_t ldc) {
  const F32 d;
  Vec acc[kRows][kVecs];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = kAccumulate ? hn::LoadU(d, c + r * ldc + v * kLanes) : hn::Zero(d);
    }
  }
  for (size_t k = 0; k < n_k; ++k, b += ldb) {
    Vec column[kVecs];
    HWY_UNROLL(8)
    for (int v = 0; v < kVecs; ++v) column[v] = hn::LoadU(d, b + v * kLanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const Vec broadcast = hn::Set(d, a[r * lda + k]);
      HWY_UNROLL(8)
      for (int v = 0; v < kVecs; ++v) acc[r][v] = hn::MulAdd(broadcast, column[v], acc[r][v]);
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[r][v], d, c + r * ldc + v * kLanes);
  }
}

template <int kVecs, bool kAccumulate>
HWY_INLINE void BlockRows(int64_t n_rows, const float* a, size_t lda, const float* b, size_t ldb,
                          size_t n_k, float* c, size_t ldc) {
  int64_t r = 0;
  for (; r + kBlockRows <= n_rows; r += kBlockRows) {
    Block<kBlockRows, kVecs, kAccumulate>(a + r * lda, lda, b, ldb, n_k, c + r * ldc, ldc);
  }
  if (r + 4 <= n_rows) {
    Block<4, kVecs, kAccumulate>(a + r * lda, lda, b, ldb, n_k, c + r * ldc, ldc);
    r += 4;
  }
  if (r + 2 <= n_rows) {
    Block<2, kVecs, kAccumulate>(a + r * lda, lda, b, ldb, n_k, c + r * ldc, ldc);
    r += 2;
  }
  if (r < n_rows) Block<1, kVecs, kAccumulate>(a + r * lda, lda, b, ldb, n_k, c + r * ldc, ldc);
}

// c [n_rows, n_columns] (+)= a [n_rows, n_k] b [n_k, n_columns]; n_columns is a multiple of 16.
template <bool kAccumulate>
HWY_NOINLINE void Product(int64_t n_rows, const float* a, size_t lda, const float* b, size_t ldb,
                          size_t n_k, float* c, size_t ldc, size_t n_columns) {
  size_t n = 0;
  for (; n + kBlockVecs * kLanes <= n_columns; n += kBlockVecs * kLanes) {
    BlockRows<kBlockVecs, kAccumulate>(n_rows, a, lda, b + n, ldb, n_k, c + n, ldc);
  }
  for (; n < n_columns; n += kLanes) {
    BlockRows<1, kAccumulate>(n_rows, a, lda, b + n, ldb, n_k, c + n, ldc);
  }
}

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
// accumulator of `dim` floats, rescaled when the reference moves; null for a log-sum-exp alone.
template <bool kStoreWeights>
HWY_INLINE void SoftmaxRow(float* HWY_RESTRICT s, float* max, float* HWY_RESTRICT sum, float* o,
                           size_t dim) {
  const F32 d;
  Vec score[kTileVecs];
  HWY_UNROLL(16)
  for (size_t v = 0; v < kTileVecs; ++v) score[v] = hn::Load(d, s + v * kLanes);
  Vec top = score[0];
  HWY_UNROLL(16)
  for (size_t v = 1; v < kTileVecs; ++v) top = hn::Max(top, score[v]);
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Le(top, hn::Set(d, *max + kMaxSlack))))) {
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
