#include "kernels/cpu/decode_tile.h"

#include <algorithm>
#include <type_traits>

// SSSE3 and AVX3_DL add nothing to these loops and double the compile time.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode_tile.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::cpu {
namespace HWY_NAMESPACE {

// Keys whose scores are summed side by side: 4 sums fill a 128-bit block.
inline constexpr int64_t kBlockKeys = 4;
// Rows that share a loaded key: 4 x 4 sums, 4 keys and a query fit 32 registers.
inline constexpr int kMostRows = HWY_TARGET == HWY_AVX3 ? 4 : 2;
inline constexpr int kValueVecs = HWY_TARGET == HWY_AVX3 ? 4 : 2;
// How far ahead of its use memory is asked for.
inline constexpr int64_t kPrefetchBytes = 4096;

// Walks keys, then values, then the next page, kPrefetchBytes ahead of the reader.
class Prefetcher {
 public:
  Prefetcher(const DecodeTileArgs& args, int64_t row_bytes)
      : at_(static_cast<const char*>(args.keys) + kPrefetchBytes),
        left_(2 * kTileKeys * row_bytes - kPrefetchBytes),
        next_(static_cast<const char*>(args.next_keys)) {}
  // The reader goes on by n_bytes.
  HWY_INLINE void Advance(int64_t n_bytes) {
    for (int64_t i = 0; i < n_bytes; i += 64, at_ += 64, left_ -= 64) {
      if (left_ <= 0) {
        if (next_ == nullptr) return;
        at_ = next_;
        left_ = 2 * kPrefetchBytes;
        next_ = nullptr;
      }
      __builtin_prefetch(at_, 0, 3);
    }
  }

 private:
  const char* at_;
  int64_t left_;
  const char* next_;
};

#if HWY_TARGET != HWY_SCALAR
// Adds the 128-bit blocks of x.
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> SumOfBlocks(D /*tag*/, hn::Vec<D> x) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return x;
  } else {
    const hn::Half<D> half;
    return SumOfBlocks(half, hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
}
#endif

// to[i] = the sum of x[i].
HWY_INLINE void StoreSums(const Vec* x, float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < kBlockKeys; ++i) to[i] = hn::GetLane(x[i]);
#else
  const F32 d;
  const hn::Repartition<double, F32> d64;
  const auto lower = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, x[0], x[1]), hn::InterleaveUpper(d, x[0], x[1])));
  const auto upper = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, x[2], x[3]), hn::InterleaveUpper(d, x[2], x[3])));
  const Vec all = hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, lower, upper)),
                          hn::BitCast(d, hn::InterleaveUpper(d64, lower, upper)));
  hn::StoreU(SumOfBlocks(d, all), hn::FixedTag<float, 4>(), to);
#endif
}

// s[r, 0..4) = q[r] . keys[0..4)
template <int kRows, typename T>
HWY_INLINE void ScoreBlock(const float* HWY_RESTRICT q, const T* HWY_RESTRICT keys, int64_t dim,
                           float* HWY_RESTRICT s) {
  const F32 d;
  Vec sum[kRows][kBlockKeys];
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int c = 0; c < kBlockKeys; ++c) sum[r][c] = hn::Zero(d);
  }
  for (int64_t i = 0; i < dim; i += kLanes) {
    Vec key[kBlockKeys];
    HWY_UNROLL(4)
    for (int c = 0; c < kBlockKeys; ++c) key[c] = LoadWide(keys + c * dim + i);
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      const Vec query = hn::LoadU(d, q + r * dim + i);
      HWY_UNROLL(4)
      for (int c = 0; c < kBlockKeys; ++c) sum[r][c] = hn::MulAdd(query, key[c], sum[r][c]);
    }
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    StoreSums(sum[r], s + r * kTileKeys);
  }
}

// o[r, 0..kVecs * lanes) += sum over c of weights[r, c] * values[c]
template <int kRows, int kVecs, typename T>
HWY_INLINE void ValueBlock(const float* HWY_RESTRICT weights, const T* HWY_RESTRICT values,
                           int64_t n_keys, int64_t dim, float* HWY_RESTRICT o) {
  const F32 d;
  Vec sum[kRows][kVecs];
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::LoadU(d, o + r * dim + v * kLanes);
  }
  for (int64_t c = 0; c < n_keys; ++c) {
    Vec value[kVecs];
    HWY_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) value[v] = LoadWide(values + c * dim + v * kLanes);
    HWY_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = hn::Set(d, weights[r * kTileKeys + c]);
      HWY_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(weight, value[v], sum[r][v]);
    }
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[r][v], d, o + r * dim + v * kLanes);
  }
}

template <int kVecs, typename T>
HWY_INLINE void ValueRows(int64_t n_rows, const float* weights, const T* values, int64_t n_keys,
                          int64_t dim, float* o) {
  int64_t r = 0;
  for (; r + kMostRows <= n_rows; r += kMostRows) {
    ValueBlock<kMostRows, kVecs>(weights + r * kTileKeys, values, n_keys, dim, o + r * dim);
  }
  for (; r < n_rows; ++r) {
    ValueBlock<1, kVecs>(weights + r * kTileKeys, values, n_keys, dim, o + r * dim);
  }
}

// Rows of one call: their scores stay in L1.
inline constexpr int64_t kScoreRows = 16;

// Multiplies column c of s [n, 64] by TileFactorF8(scales[c]). Scores and weights instead of keys
// and values: D times fewer, and powers of two change no bit of the sums. Columns of keys that do
// not exist become anything.
HWY_INLINE void ScaleColumns(const uint8_t* scales, int64_t n, float* HWY_RESTRICT s) {
  const F32 d;
  const I32 di;
  for (size_t v = 0; v < kTileVecs; ++v) {
    const auto scale =
        hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, I32>(), scales + v * kLanes));
    // The exponent of 2^8 * 2^(scale - 247).
    const auto exponent = hn::Sub(scale, hn::Set(di, 247 - 8 - 127));
    const Vec factor = hn::BitCast(d, hn::ShiftLeft<23>(exponent));
    for (int64_t r = 0; r < n; ++r) {
      float* at = s + r * kTileKeys + v * kLanes;
      hn::Store(hn::Mul(hn::Load(d, at), factor), d, at);
    }
  }
}

template <typename T>
HWY_INLINE void ScoreTile(const DecodeTileArgs& args, int64_t begin, int64_t n,
                          Prefetcher& prefetcher, float* HWY_RESTRICT s) {
  const F32 d;
  const int64_t dim = args.head_dim;
  const float* q = args.q + begin * dim;
  const T* keys = static_cast<const T*>(args.keys);
  for (int64_t c = 0; c < args.n_keys; c += kBlockKeys) {
    prefetcher.Advance(kBlockKeys * dim * static_cast<int64_t>(sizeof(T)));
    int64_t r = 0;
    for (; r + kMostRows <= n; r += kMostRows) {
      ScoreBlock<kMostRows>(q + r * dim, keys + c * dim, dim, s + r * kTileKeys + c);
    }
    for (; r < n; ++r) ScoreBlock<1>(q + r * dim, keys + c * dim, dim, s + r * kTileKeys + c);
  }
  if constexpr (std::is_same_v<T, F8E4M3>) ScaleColumns(args.key_scales, n, s);
  if (args.visible == kAllKeys) return;
  const Vec hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t r = 0; r < n; ++r) {
    for (size_t v = 0; v < kTileVecs; ++v) {
      float* at = s + r * kTileKeys + v * kLanes;
      hn::Store(hn::IfThenElse(MaskOf(args.visible, v), hn::Load(d, at), hidden), d, at);
    }
  }
}

// Rows [begin, begin + n) of the call from their scores s.
HWY_INLINE void SoftmaxRows(const DecodeTileArgs& args, int64_t begin, int64_t n,
                            float* HWY_RESTRICT s) {
  const int64_t dim = args.head_dim;
  for (int64_t r = 0; r < n; ++r) {
    SoftmaxRow<true>(s + r * kTileKeys, kMaxSlack, args.states.max + begin + r,
                     args.states.sum + (begin + r) * kPadFloats, args.o + (begin + r) * dim, dim);
  }
}

template <typename T>
void DecodeTileOf(const DecodeTileArgs& args) {
  HWY_ALIGN float s[kScoreRows * kTileKeys];
  const int64_t dim = args.head_dim;
  const T* values = static_cast<const T*>(args.values);
  Prefetcher prefetcher(args, dim * static_cast<int64_t>(sizeof(T)));
  constexpr int64_t kStep = kValueVecs * static_cast<int64_t>(kLanes);
  // Values of so many keys are asked for at a time.
  constexpr int64_t kValueKeys = 16;
  for (int64_t begin = 0; begin < args.n_rows; begin += kScoreRows) {
    const int64_t n = std::min(kScoreRows, args.n_rows - begin);
    float* o = args.o + begin * dim;
    ScoreTile<T>(args, begin, n, prefetcher, s);
    SoftmaxRows(args, begin, n, s);
    if constexpr (std::is_same_v<T, F8E4M3>) ScaleColumns(args.value_scales, n, s);
    for (int64_t c = 0; c < args.n_keys; c += kValueKeys) {
      const int64_t n_keys = std::min(kValueKeys, args.n_keys - c);
      prefetcher.Advance(n_keys * dim * static_cast<int64_t>(sizeof(T)));
      int64_t i = 0;
      for (; i + kStep <= dim; i += kStep) {
        ValueRows<kValueVecs>(n, s + c, values + c * dim + i, n_keys, dim, o + i);
      }
      for (; i < dim; i += kLanes) ValueRows<1>(n, s + c, values + c * dim + i, n_keys, dim, o + i);
    }
  }
}

void DecodeTile(const DecodeTileArgs& args) {
  if (args.dtype == DType::kF8E4M3) return DecodeTileOf<F8E4M3>(args);
  if (args.dtype == DType::kF32) return DecodeTileOf<float>(args);
  DecodeTileOf<hwy::bfloat16_t>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace longhaul::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::cpu {

HWY_EXPORT(DecodeTile);

void DecodeTile(const DecodeTileArgs& args) { HWY_DYNAMIC_DISPATCH(DecodeTile)(args); }

}  // namespace longhaul::cpu
#endif  // HWY_ONCE
