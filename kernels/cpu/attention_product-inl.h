// The two matrix products of an attention tile, of f32 or of pairs of bf16 (TileWord in
// attention_tile.h), blocked for registers and compiled once per instruction set by the file that
// includes this. Internal to kernels/cpu; include after foreach_target.h, as Highway asks.
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/attention_tile-inl.h"

// Once per target, not once per file: the usual guard of Highway's -inl.h files.
#if defined(LONGHAUL_KERNELS_CPU_ATTENTION_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGHAUL_KERNELS_CPU_ATTENTION_PRODUCT_INL_H_
#undef LONGHAUL_KERNELS_CPU_ATTENTION_PRODUCT_INL_H_
#else
#define LONGHAUL_KERNELS_CPU_ATTENTION_PRODUCT_INL_H_
#endif

// Highway 1.0 knows no target with AVX512-BF16, so AVX-512 code may use it from here on, and does
// where pairs are multiplied: compilers emit its instructions for intrinsics alone. Which words a
// tile has is decided at run time, by TileWordFor.
#undef LONGHAUL_TILE_PAIRS
#if HWY_TARGET == HWY_AVX3
#define LONGHAUL_TILE_PAIRS 1
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
#else
#define LONGHAUL_TILE_PAIRS 0
HWY_BEFORE_NAMESPACE();
#endif
namespace longhaul::cpu {
namespace HWY_NAMESPACE {

// Register block: with 32 registers 6 x 4 accumulators (two FMA units of latency 4 want at least 8
// chains, of latency 6 as for pairs 12; 24 leave room for 4 columns of B and a broadcast), with 16
// 6 x 2.
inline constexpr int kBlockRows = 6;
inline constexpr int kBlockVecs = HWY_TARGET == HWY_AVX3 ? 4 : 2;

HWY_INLINE Vec LoadWords(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE Vec BroadcastWord(const float* p) { return hn::Set(F32(), *p); }
HWY_INLINE Vec MulAddWords(Vec a, Vec b, Vec sum) { return hn::MulAdd(a, b, sum); }

#if LONGHAUL_TILE_PAIRS
using PairVec = hn::Vec<hn::RebindToUnsigned<F32>>;
HWY_INLINE PairVec LoadWords(const uint32_t* p) {
  return hn::LoadU(hn::RebindToUnsigned<F32>(), p);
}
HWY_INLINE PairVec BroadcastWord(const uint32_t* p) {
  return hn::Set(hn::RebindToUnsigned<F32>(), *p);
}
// Lane by lane the sum and two products, in f32.
HWY_INLINE Vec MulAddWords(PairVec a, PairVec b, Vec sum) {
  return Vec{_mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(a.raw),
                              reinterpret_cast<__m512bh>(b.raw))};
}

// pairs = x times factor, to nearest even, for n numbers; n is even.
inline HWY_NOINLINE void RoundToPairs(const float* HWY_RESTRICT x, float factor, int64_t n,
                                      uint32_t* HWY_RESTRICT pairs) {
  constexpr int64_t kStep = 2 * kLanes;
  const Vec factors = hn::Set(F32(), factor);
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    const Vec low = hn::Mul(LoadWords(x + i), factors);
    const Vec high = hn::Mul(LoadWords(x + i + kLanes), factors);
    const __m512bh rounded = _mm512_cvtne2ps_pbh(high.raw, low.raw);
    hn::StoreU(PairVec{reinterpret_cast<__m512i>(rounded)}, hn::RebindToUnsigned<F32>(),
               pairs + i / 2);
  }
  for (; i < n; i += 2) {
    pairs[i / 2] = ToBF16(x[i] * factor).bits | uint32_t{ToBF16(x[i + 1] * factor).bits} << 16;
  }
}
#endif  // LONGHAUL_TILE_PAIRS

// c[r, n] (+)= sum_k a[r, k] * b[k, n] for kRows rows and kVecs vectors of columns; k counts words.
template <int kRows, int kVecs, bool kAccumulate, typename Word>
HWY_INLINE void Block(const Word* HWY_RESTRICT a, size_t lda, const Word* HWY_RESTRICT b,
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
    decltype(LoadWords(b)) column[kVecs];
    HWY_UNROLL(8)
    for (int v = 0; v < kVecs; ++v) column[v] = LoadWords(b + v * kLanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const auto broadcast = BroadcastWord(a + r * lda + k);
      HWY_UNROLL(8)
      for (int v = 0; v < kVecs; ++v) acc[r][v] = MulAddWords(broadcast, column[v], acc[r][v]);
    }
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[r][v], d, c + r * ldc + v * kLanes);
  }
}

template <int kVecs, bool kAccumulate, typename Word>
HWY_INLINE void BlockRows(int64_t n_rows, const Word* a, size_t lda, const Word* b, size_t ldb,
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

template <bool kAccumulate, typename Word>
HWY_NOINLINE void ProductOf(int64_t n_rows, const Word* a, size_t lda, const Word* b, size_t ldb,
                            size_t n_k, float* c, size_t ldc, size_t n_columns) {
  size_t n = 0;
  for (; n + kBlockVecs * kLanes <= n_columns; n += kBlockVecs * kLanes) {
    BlockRows<kBlockVecs, kAccumulate>(n_rows, a, lda, b + n, ldb, n_k, c + n, ldc);
  }
  for (; n < n_columns; n += kLanes) {
    BlockRows<1, kAccumulate>(n_rows, a, lda, b + n, ldb, n_k, c + n, ldc);
  }
}

// c [n_rows, n_columns] f32 (+)= a [n_rows, n_k] b [n_k, n_columns] of words; n_columns is a
// multiple of 16.
template <bool kAccumulate>
void Product(TileWord word, int64_t n_rows, const void* a, size_t lda, const void* b, size_t ldb,
             size_t n_k, float* c, size_t ldc, size_t n_columns) {
#if LONGHAUL_TILE_PAIRS
  if (word == TileWord::kBF16Pair) {
    return ProductOf<kAccumulate>(n_rows, static_cast<const uint32_t*>(a), lda,
                                  static_cast<const uint32_t*>(b), ldb, n_k, c, ldc, n_columns);
  }
#endif
  (void)word;
  ProductOf<kAccumulate>(n_rows, static_cast<const float*>(a), lda, static_cast<const float*>(b),
                         ldb, n_k, c, ldc, n_columns);
}

}  // namespace HWY_NAMESPACE
}  // namespace longhaul::cpu
HWY_AFTER_NAMESPACE();

#endif  // LONGHAUL_KERNELS_CPU_ATTENTION_PRODUCT_INL_H_
