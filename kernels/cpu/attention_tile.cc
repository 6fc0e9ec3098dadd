#include "kernels/cpu/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

// SSSE3 and AVX3_DL add nothing to these loops and double the compile time.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_tile.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_product-inl.h"
#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::cpu {
namespace HWY_NAMESPACE {

void PackQuery(const PackQueryArgs& args) {
#if LONGHAUL_TILE_PAIRS
  if (args.word == TileWord::kBF16Pair) {
    return RoundToPairs(args.q, args.factor, args.head_dim, static_cast<uint32_t*>(args.packed));
  }
#endif
  float* out = static_cast<float*>(args.packed);
  for (int64_t i = 0; i < args.head_dim; ++i) out[i] = args.q[i] * args.factor;
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
  const int64_t n_words = WordsOf(in.word, in.head_dim);
  Product<false>(in.word, n, static_cast<const uint32_t*>(in.q) + begin * n_words, n_words, in.kt,
                 kTileKeys, n_words, s, kTileKeys, kTileKeys);
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

void AttendTile(const AttendTileArgs& args) {
  HWY_ALIGN float s[kChunkRows * kTileKeys];
  const TileWord word = args.in.word;
  const float slack = word == TileWord::kF32 ? kMaxSlack : 0.0f;
  const void* weights = s;
#if LONGHAUL_TILE_PAIRS
  HWY_ALIGN uint32_t pairs[kChunkRows * kTileKeys / 2];
  if (word == TileWord::kBF16Pair) weights = pairs;
#endif
  const int64_t dim = PaddedDim(args.in.head_dim);
  for (int64_t begin = 0; begin < args.in.n_rows; begin += kChunkRows) {
    const int64_t n = std::min(kChunkRows, args.in.n_rows - begin);
    Scores(args.in, begin, n, s);
    float* o = args.o + begin * dim;
    for (int64_t r = 0; r < n; ++r) {
      SoftmaxRow<true>(s + r * kTileKeys, slack, args.states.max + begin + r,
                       args.states.sum + (begin + r) * kPadFloats, o + r * dim, dim);
    }
#if LONGHAUL_TILE_PAIRS
    if (word == TileWord::kBF16Pair) RoundToPairs(s, 1.0f, n * kTileKeys, pairs);
#endif
    Product<true>(word, n, weights, WordsOf(word, kTileKeys), args.v, dim,
                  WordsOf(word, args.n_keys), o, dim, dim);
  }
}

void LseTile(const LseTileArgs& args) {
  HWY_ALIGN float s[kChunkRows * kTileKeys];
  for (int64_t begin = 0; begin < args.in.n_rows; begin += kChunkRows) {
    const int64_t n = std::min(kChunkRows, args.in.n_rows - begin);
    Scores(args.in, begin, n, s);
    for (int64_t r = 0; r < n; ++r) {
      SoftmaxRow<false>(s + r * kTileKeys, kMaxSlack, args.states.max + begin + r,
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
HWY_INLINE hn::Vec<F32x4> Load4(const F8E4M3* p) { return LoadF8(F32x4(), p); }
HWY_INLINE hn::Vec<F32x4> Load4(const uint32_t* p) {
  return hn::BitCast(F32x4(), hn::LoadU(hn::FixedTag<uint32_t, 4>(), p));
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

// kLanes keys x 4 words: a 4 x 4 transpose inside each 128-bit block, no lane crossing.
template <typename T, typename Word>
HWY_INLINE void Transpose4(const T* const* rows, int64_t at, Word* HWY_RESTRICT columns) {
  float* HWY_RESTRICT kt = reinterpret_cast<float*>(columns);  // of pairs, only moved
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

HWY_INLINE float WordAt(const float* p) { return *p; }
HWY_INLINE float WordAt(const hwy::bfloat16_t* p) { return ToF32(BF16{p->bits}); }
HWY_INLINE float WordAt(const F8E4M3* p) { return 0x1p-8f * ToF32(*p); }
HWY_INLINE uint32_t WordAt(const uint32_t* p) {  // the row is one of bf16
  uint32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return pair;
}

// Loads one byte of every cache line in address order. The transpose reads 16 rows at once, which
// the hardware's stream detection does not follow: without this, decode from memory runs at 29
// instead of 38 GB/s on two cores.
HWY_INLINE void TouchInOrder(const PackKeysArgs& args, int64_t row_bytes) {
  for (int64_t c = 0; c < args.n_keys; ++c) {
    const volatile char* row = static_cast<const volatile char*>(args.rows[c]);
    for (int64_t i = 0; i < row_bytes; i += 64) (void)row[i];
  }
}

// T: uint32_t for rows of bf16 that become pairs, and stay as they are but for their place.
template <typename T>
void PackKeysOf(const PackKeysArgs& args) {
  using Word = decltype(WordAt(std::declval<const T*>()));
  const int64_t n_words = WordsOf(args.word, args.head_dim);
  TouchInOrder(args, n_words * static_cast<int64_t>(sizeof(T)));
  Word* const kt = static_cast<Word*>(args.kt);
  const T* rows[kTileKeys];
  for (int64_t c = 0; c < args.n_keys; ++c) rows[c] = static_cast<const T*>(args.rows[c]);
  int64_t n_simd_keys = 0;
  int64_t n_simd_words = 0;
#if HWY_TARGET != HWY_SCALAR
  n_simd_keys = args.n_keys / static_cast<int64_t>(kLanes) * static_cast<int64_t>(kLanes);
  n_simd_words = n_words / 4 * 4;
  for (int64_t c = 0; c < n_simd_keys; c += kLanes) {
    for (int64_t i = 0; i < n_simd_words; i += 4) {
      Transpose4(rows + c, i, kt + i * kTileKeys + c);
    }
  }
#endif
  for (int64_t i = 0; i < n_words; ++i) {
    Word* column = kt + i * kTileKeys;
    const int64_t begin = i < n_simd_words ? n_simd_keys : 0;
    for (int64_t c = begin; c < args.n_keys; ++c) column[c] = WordAt(rows[c] + i);
    std::fill(column + args.n_keys, column + kTileKeys, Word{0});
  }
}

// A pass of its own over a tile that lies in L1: less than 1 % of what using the tile takes.
HWY_INLINE void ScaleKeys(const PackKeysArgs& args) {
  const F32 d;
  for (size_t v = 0; v < kTileVecs; ++v) {
    const Vec factor = hn::LoadU(d, args.factors + v * kLanes);
    for (int64_t i = 0; i < args.head_dim; ++i) {
      float* at = static_cast<float*>(args.kt) + i * kTileKeys + v * kLanes;
      hn::StoreU(hn::Mul(hn::LoadU(d, at), factor), d, at);
    }
  }
}

void PackKeys(const PackKeysArgs& args) {
  if (args.word == TileWord::kBF16Pair) return PackKeysOf<uint32_t>(args);
  if (args.dtype == DType::kF8E4M3) {
    PackKeysOf<F8E4M3>(args);
    return ScaleKeys(args);
  }
  if (args.dtype == DType::kF32) return PackKeysOf<float>(args);
  PackKeysOf<hwy::bfloat16_t>(args);
}

template <typename T>
void PackValuesOf(const PackValuesArgs& args) {
  const int64_t dim = PaddedDim(args.head_dim);
  for (int64_t c = 0; c < args.n_keys; ++c) {
    const T* row = static_cast<const T*>(args.rows[c]);
    const float factor = args.dtype == DType::kF8E4M3 ? args.factors[c] : 1.0f;
    float* out = static_cast<float*>(args.v) + c * dim;
    int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    const Vec factors = hn::Set(F32(), factor);
    for (; i + static_cast<int64_t>(kLanes) <= args.head_dim; i += kLanes) {
      hn::StoreU(hn::Mul(LoadWide(row + i), factors), F32(), out + i);
    }
#endif
    for (; i < args.head_dim; ++i) out[i] = factor * WordAt(row + i);
    std::fill(out + args.head_dim, out + dim, 0.0f);
  }
}

// Word i of a row of pairs: element i of two rows.
void PackValuePairs(const PackValuesArgs& args) {
  const int64_t dim = PaddedDim(args.head_dim);
  for (int64_t c = 0; c < args.n_keys; c += 2) {
    const auto* low = static_cast<const uint16_t*>(args.rows[c]);
    const auto* high =
        c + 1 < args.n_keys ? static_cast<const uint16_t*>(args.rows[c + 1]) : nullptr;
    uint32_t* out = static_cast<uint32_t*>(args.v) + c / 2 * dim;
    int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::RebindToUnsigned<F32> d;
    const hn::Rebind<uint16_t, F32> d16;
    for (; high != nullptr && i + static_cast<int64_t>(kLanes) <= args.head_dim; i += kLanes) {
      const auto upper = hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(d16, high + i)));
      hn::StoreU(hn::Or(hn::PromoteTo(d, hn::LoadU(d16, low + i)), upper), d, out + i);
    }
#endif
    for (; i < args.head_dim; ++i) {
      out[i] = low[i] | (high == nullptr ? 0u : uint32_t{high[i]} << 16);
    }
    std::fill(out + args.head_dim, out + dim, 0u);
  }
}

// The upper halves of f32, which hold all bits: a number of fp8 has four.
void WidenF8(const WidenF8Args& args) {
  for (int64_t c = 0; c < args.n_keys; ++c) {
    const auto* row = static_cast<const F8E4M3*>(args.rows[c]);
    BF16* out = args.bf16 + c * args.head_dim;
    int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
    const hn::Rebind<hwy::bfloat16_t, F32> d16;
    const Vec factors = hn::Set(F32(), args.factors[c]);
    for (; i + static_cast<int64_t>(kLanes) <= args.head_dim; i += kLanes) {
      hn::StoreU(hn::DemoteTo(d16, hn::Mul(LoadWide(row + i), factors)), d16,
                 reinterpret_cast<hwy::bfloat16_t*>(out + i));
    }
#endif
    for (; i < args.head_dim; ++i) out[i] = ToBF16(args.factors[c] * WordAt(row + i));
  }
}

void PackValues(const PackValuesArgs& args) {
  if (args.word == TileWord::kBF16Pair) return PackValuePairs(args);
  if (args.dtype == DType::kF8E4M3) return PackValuesOf<F8E4M3>(args);
  if (args.dtype == DType::kF32) return PackValuesOf<float>(args);
  PackValuesOf<hwy::bfloat16_t>(args);
}

bool MultipliesPairs() {
#if LONGHAUL_TILE_PAIRS
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
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
HWY_EXPORT(PackQuery);
HWY_EXPORT(PackKeys);
HWY_EXPORT(PackValues);
HWY_EXPORT(WidenF8);
HWY_EXPORT(MultipliesPairs);
HWY_EXPORT(TargetName);

void AttendTile(const AttendTileArgs& args) { HWY_DYNAMIC_DISPATCH(AttendTile)(args); }
void LseTile(const LseTileArgs& args) { HWY_DYNAMIC_DISPATCH(LseTile)(args); }
void MassTile(const MassTileArgs& args) { HWY_DYNAMIC_DISPATCH(MassTile)(args); }
void PackQuery(const PackQueryArgs& args) { HWY_DYNAMIC_DISPATCH(PackQuery)(args); }
void PackKeys(const PackKeysArgs& args) { HWY_DYNAMIC_DISPATCH(PackKeys)(args); }
void PackValues(const PackValuesArgs& args) { HWY_DYNAMIC_DISPATCH(PackValues)(args); }
void WidenF8(const WidenF8Args& args) { HWY_DYNAMIC_DISPATCH(WidenF8)(args); }
const char* TileTargetName() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

TileWord TileWordFor(DType kv_dtype, int64_t head_dim) {
  const bool pairs = kv_dtype != DType::kF32 && head_dim % 2 == 0;
  return pairs && HWY_DYNAMIC_DISPATCH(MultipliesPairs)() ? TileWord::kBF16Pair : TileWord::kF32;
}

namespace {

float SumOfLanes(const float* sum) {
  float total = 0;
  for (int64_t i = 0; i < kPadFloats; ++i) total += sum[i];
  return total;
}

float Lse2OfTotal(float max, float total) {
  return total == 0 ? -std::numeric_limits<float>::infinity() : max + std::log2(total);
}

}  // namespace

float Lse2(float max, const float* sum) { return Lse2OfTotal(max, SumOfLanes(sum)); }

float FinishRow(float max, const float* sum, const float* o, int64_t head_dim, float* out) {
  const float total = SumOfLanes(sum);
  const float inverse = total == 0 ? 0.0f : 1.0f / total;
  for (int64_t i = 0; i < head_dim; ++i) out[i] = o[i] * inverse;
  constexpr float kLn2 = 0.693147180559945f;
  return Lse2OfTotal(max, total) * kLn2;
}

}  // namespace longhaul::cpu
#endif  // HWY_ONCE
