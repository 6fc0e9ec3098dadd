#include "kernels/cpu/attention_tile.h"

#include <algorithm>
#include <cmath>

// SSSE3 and AVX3_DL add nothing to these loops and double the compile time.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_tile.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

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

// The part of the prefetch that belongs to rows [begin, begin + n) of the call.
HWY_INLINE void PrefetchPart(const TileQueries& in, int64_t begin, int64_t n) {
  const TilePrefetch& next = in.next;
  const int64_t row_end = (begin + n) * next.n_rows / in.n_rows;
  for (int64_t row = begin * next.n_rows / in.n_rows; row < row_end; ++row) {
    const char* p = static_cast<const char*>(next.rows[row]);
    for (int64_t i = 0; i < next.row_bytes; i += 64) __builtin_prefetch(p + i, 0, /*L2*/ 2);
  }
}

// Scores of rows [begin, begin + n) of the call, minus infinity where not visible.
HWY_INLINE void Scores(const TileQueries& in, int64_t begin, int64_t n, float* HWY_RESTRICT s) {
  const F32 d;
  PrefetchPart(in, begin, n);
  Product<false>(n, in.q + begin * in.head_dim, in.head_dim, in.kt, kTileKeys, in.head_dim, s,
                 kTileKeys, kTileKeys);
  if (in.visible == nullptr) return;
  const Vec hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t r = 0; r < n; ++r) {
    const uint64_t visible = in.visible[begin + r];
    if (visible == kAllKeys) continue;
    for (size_t v = 0; v < kTileVecs; ++v) {
      float* at = s + r * kTileKeys + v * kLanes;
      hn::Store(hn::IfThenElse(MaskOf(visible, v), hn::Load(d, at), hidden), d, at);
    }
  }
}

// The factor by which a row's sums shrink when its reference moves to the maximum of `top`.
HWY_NOINLINE float MoveReference(Vec top, float* max, float* sum) {
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

void AttendTile(const AttendTileArgs& args) {
  HWY_ALIGN float s[kChunkRows * kTileKeys];
  const int64_t dim = PaddedDim(args.in.head_dim);
  for (int64_t begin = 0; begin < args.in.n_rows; begin += kChunkRows) {
    const int64_t n = std::min(kChunkRows, args.in.n_rows - begin);
    Scores(args.in, begin, n, s);
    float* o = args.o + begin * dim;
    for (int64_t r = 0; r < n; ++r) {
      SoftmaxRow<true>(s + r * kTileKeys, args.states.max + begin + r,
                       args.states.sum + (begin + r) * kPadFloats, o + r * dim, dim);
    }
    Product<true>(n, s, kTileKeys, args.v, args.v_stride, args.n_keys, o, dim, dim);
  }
}

void LseTile(const LseTileArgs& args) {
  HWY_ALIGN float s[kChunkRows * kTileKeys];
  for (int64_t begin = 0; begin < args.in.n_rows; begin += kChunkRows) {
    const int64_t n = std::min(kChunkRows, args.in.n_rows - begin);
    Scores(args.in, begin, n, s);
    for (int64_t r = 0; r < n; ++r) {
      SoftmaxRow<false>(s + r * kTileKeys, args.states.max + begin + r,
                        args.states.sum + (begin + r) * kPadFloats, nullptr, 0);
    }
  }
}

// Adds one row's weights to the two bands that it meets in this tile. Sums stay vectors: horizontal
// sums here made the whole pass a fifth slower.
HWY_INLINE void AddToBands(const Vec* p, uint64_t split, float* far) {
  const F32 d;
  float* near = far + kPadFloats;
  Vec near_sum = hn::LoadU(d, near);
  Vec far_sum = hn::LoadU(d, far);
  HWY_UNROLL(16)
  for (size_t v = 0; v < kTileVecs; ++v) {
    const auto mask = MaskOf(split, v);
    near_sum = hn::Add(near_sum, hn::IfThenElseZero(mask, p[v]));
    far_sum = hn::Add(far_sum, hn::IfThenZeroElse(mask, p[v]));
  }
  hn::StoreU(near_sum, d, near);
  hn::StoreU(far_sum, d, far);
}

void MassTile(const MassTileArgs& args) {
  const F32 d;
  HWY_ALIGN float s[kChunkRows * kTileKeys];
  Vec sum[kTileVecs];
  Vec max[kTileVecs];
  HWY_UNROLL(16)
  for (size_t v = 0; v < kTileVecs; ++v) {
    sum[v] = hn::Zero(d);
    max[v] = hn::Zero(d);
  }
  for (int64_t begin = 0; begin < args.in.n_rows; begin += kChunkRows) {
    const int64_t n = std::min(kChunkRows, args.in.n_rows - begin);
    Scores(args.in, begin, n, s);
    for (int64_t r = 0; r < n; ++r) {
      const Vec lse2 = hn::Set(d, args.lse2[begin + r]);
      Vec p[kTileVecs];
      HWY_UNROLL(16)
      for (size_t v = 0; v < kTileVecs; ++v) {
        p[v] = Exp2(hn::Sub(hn::Load(d, s + r * kTileKeys + v * kLanes), lse2));
        sum[v] = hn::Add(sum[v], p[v]);
        max[v] = hn::Max(max[v], p[v]);
      }
      if (args.band_split != nullptr) {
        AddToBands(p, args.band_split[begin + r], args.bands + args.band[begin + r] * kPadFloats);
      }
    }
  }
  HWY_UNROLL(16)
  for (size_t v = 0; v < kTileVecs; ++v) {
    hn::StoreU(sum[v], d, args.mass_sum + v * kLanes);
    hn::StoreU(max[v], d, args.mass_max + v * kLanes);
  }
}

#if HWY_TARGET != HWY_SCALAR
using F32x4 = hn::FixedTag<float, 4>;

HWY_INLINE hn::Vec<F32x4> Load4(const float* p) { return hn::LoadU(F32x4(), p); }
HWY_INLINE hn::Vec<F32x4> Load4(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32x4(), hn::LoadU(hn::FixedTag<hwy::bfloat16_t, 4>(), p));
}

HWY_INLINE Vec LoadWide(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE Vec LoadWide(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}

// Four elements each of rows[0], rows[4], ... as the 128-bit blocks of one vector.
template <typename T>
HWY_INLINE Vec LoadBlocks(const T* const* rows, int64_t at) {
  const F32 d;
#if HWY_TARGET == HWY_AVX3
  const hn::FixedTag<float, 8> d8;
  const auto lower = hn::Combine(d8, Load4(rows[4] + at), Load4(rows[0] + at));
  const auto upper = hn::Combine(d8, Load4(rows[12] + at), Load4(rows[8] + at));
  return hn::Combine(d, upper, lower);
#elif HWY_TARGET == HWY_AVX2
  return hn::Combine(d, Load4(rows[4] + at), Load4(rows[0] + at));
#else
  (void)d;
  return Load4(rows[0] + at);
#endif
}

// kLanes keys x 4 dimensions: a 4 x 4 transpose inside each 128-bit block, no lane crossing.
template <typename T>
HWY_INLINE void Transpose4(const T* const* rows, int64_t at, float* HWY_RESTRICT kt) {
  const F32 d;
  const hn::Repartition<double, F32> d64;
  const Vec r0 = LoadBlocks(rows + 0, at);
  const Vec r1 = LoadBlocks(rows + 1, at);
  const Vec r2 = LoadBlocks(rows + 2, at);
  const Vec r3 = LoadBlocks(rows + 3, at);
  const auto a = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
  const auto b = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
  const auto e = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
  const auto f = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, a, b)), d, kt + 0 * kTileKeys);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, a, b)), d, kt + 1 * kTileKeys);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, e, f)), d, kt + 2 * kTileKeys);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, e, f)), d, kt + 3 * kTileKeys);
}
#endif  // HWY_TARGET != HWY_SCALAR

HWY_INLINE float Widen(float x) { return x; }
HWY_INLINE float Widen(hwy::bfloat16_t x) { return ToF32(BF16{x.bits}); }

// Loads one byte of every cache line in address order. The transpose reads 16 rows at once, which
// the hardware's stream detection does not follow: without this, decode from memory runs at 29
// instead of 38 GB/s on two cores.
HWY_INLINE void TouchInOrder(const PackKeysArgs& args, int64_t row_bytes) {
  for (int64_t c = 0; c < args.n_keys; ++c) {
    const volatile char* row = static_cast<const volatile char*>(args.rows[c]);
    for (int64_t i = 0; i < row_bytes; i += 64) (void)row[i];
  }
}

template <typename T>
void PackKeysOf(const PackKeysArgs& args) {
  TouchInOrder(args, args.head_dim * static_cast<int64_t>(sizeof(T)));
  const T* rows[kTileKeys];
  for (int64_t c = 0; c < args.n_keys; ++c) rows[c] = static_cast<const T*>(args.rows[c]);
  int64_t n_simd_keys = 0;
  int64_t n_simd_dims = 0;
#if HWY_TARGET != HWY_SCALAR
  n_simd_keys = args.n_keys / static_cast<int64_t>(kLanes) * static_cast<int64_t>(kLanes);
  n_simd_dims = args.head_dim / 4 * 4;
  for (int64_t c = 0; c < n_simd_keys; c += kLanes) {
    for (int64_t i = 0; i < n_simd_dims; i += 4) {
      Transpose4(rows + c, i, args.kt + i * kTileKeys + c);
    }
  }
#endif
  for (int64_t i = 0; i < args.head_dim; ++i) {
    float* column = args.kt + i * kTileKeys;
    const int64_t begin = i < n_simd_dims ? n_simd_keys : 0;
    for (int64_t c = begin; c < args.n_keys; ++c) column[c] = Widen(rows[c][i]);
    std::fill(column + args.n_keys, column + kTileKeys, 0.0f);
  }
}

void PackKeys(const PackKeysArgs& args) {
  if (args.dtype == DType::kF32) return PackKeysOf<float>(args);
  PackKeysOf<hwy::bfloat16_t>(args);
}

template <typename T>
void PackValuesOf(const PackValuesArgs& args) {
  const int64_t dim = PaddedDim(args.head_dim);
  for (int64_t c = 0; c < args.n_keys; ++c) {
    const T* row = static_cast<const T*>(args.rows[c]);
    float* out = args.v + c * dim;
    int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    for (; i + static_cast<int64_t>(kLanes) <= args.head_dim; i += kLanes) {
      hn::StoreU(LoadWide(row + i), F32(), out + i);
    }
#endif
    for (; i < args.head_dim; ++i) out[i] = Widen(row[i]);
    std::fill(out + args.head_dim, out + dim, 0.0f);
  }
}

void PackValues(const PackValuesArgs& args) {
  if (args.dtype == DType::kF32) return PackValuesOf<float>(args);
  PackValuesOf<hwy::bfloat16_t>(args);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace longhaul::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::cpu {

HWY_EXPORT(AttendTile);
HWY_EXPORT(LseTile);
HWY_EXPORT(MassTile);
HWY_EXPORT(PackKeys);
HWY_EXPORT(PackValues);
HWY_EXPORT(TargetName);

void AttendTile(const AttendTileArgs& args) { HWY_DYNAMIC_DISPATCH(AttendTile)(args); }
void LseTile(const LseTileArgs& args) { HWY_DYNAMIC_DISPATCH(LseTile)(args); }
void MassTile(const MassTileArgs& args) { HWY_DYNAMIC_DISPATCH(MassTile)(args); }
void PackKeys(const PackKeysArgs& args) { HWY_DYNAMIC_DISPATCH(PackKeys)(args); }
void PackValues(const PackValuesArgs& args) { HWY_DYNAMIC_DISPATCH(PackValues)(args); }
const char* TileTargetName() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

float Lse2(float max, const float* sum) {
  float total = 0;
  for (int64_t i = 0; i < kPadFloats; ++i) total += sum[i];
  if (total == 0) return -std::numeric_limits<float>::infinity();
  return max + std::log2(total);
}

float FinishRow(float max, const float* sum, const float* o, int64_t head_dim, float* out) {
  float total = 0;
  for (int64_t i = 0; i < kPadFloats; ++i) total += sum[i];
  const float inverse = total == 0 ? 0.0f : 1.0f / total;
  for (int64_t i = 0; i < head_dim; ++i) out[i] = o[i] * inverse;
  constexpr float kLn2 = 0.693147180559945f;
  return Lse2(max, sum) * kLn2;
}

}  // namespace longhaul::cpu
#endif  // HWY_ONCE
