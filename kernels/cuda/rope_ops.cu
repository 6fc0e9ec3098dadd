// Rotation and KV write of token_ops.h.
#include <algorithm>
#include <type_traits>

#include "kernels/base/checked_math.h"
#include "kernels/base/fp8.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/token_ops.h"

namespace longhaul::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int64_t kMaxBlocks = 4096;  // of a kernel that loops over all elements

struct RopeTableParams {
  Global<const int64_t> positions;  // [T]
  Global<const double> inv_freq;    // [P]
  Global<float> cos_sin;            // [T, P, 2]
  int64_t n = 0;                    // T * P
  int64_t n_pairs = 0;
  double scale = 1;
};

// In f64, as the angle of position two million needs; once per slice for all layers.
LH_KERNEL(kBlock, 1) RopeTableKernel(RopeTableParams p) {
  const int64_t stride = static_cast<int64_t>(GridX()) * kBlock;
  for (int64_t i = static_cast<int64_t>(BlockX()) * kBlock + ThreadId(); i < p.n; i += stride) {
    const int64_t position = p.positions[i / p.n_pairs];
    const double frequency = p.inv_freq[i % p.n_pairs];
    const double angle = static_cast<double>(position) * frequency;
    F32x2 pair;
    pair.v[0] = static_cast<float>(p.scale * cos(angle));
    pair.v[1] = static_cast<float>(p.scale * sin(angle));
    StoreVec(p.cos_sin + 2 * i, pair);
  }
}

// The further forms of the queries under dual chunk attention; next is null without.
struct DualRopeParams {
  Global<const float> next_cos_sin;  // [T, P, 2]
  Global<const float> far_cos_sin;   // [T, P, 2]
  Global<const float> q_scale;       // [T]
  Global<BF16> next;                 // [T, H, D]
  Global<BF16> far;                  // [T, H, D]
  int64_t next_stride = 0;
  int64_t far_stride = 0;
};

struct RopeKvWriteParams {
  Global<BF16> q;               // [T, H, D]
  Global<BF16> k;               // [T, KH, D]
  Global<const BF16> v;         // [T, KH, D]
  Global<const float> cos_sin;  // [T, P, 2]
  DualRopeParams dual;
  Global<const int64_t> positions;  // [T]
  Global<const KvView> kvs;         // [T / rows_per_kv], or null for one sequence
  Global<const int32_t> pages;      // of the one sequence
  Global<uint8_t> layer_pool;       // the layer's first byte in page 0
  int64_t q_stride = 0;
  int64_t k_stride = 0;
  int64_t v_stride = 0;
  int64_t rows_per_kv = 0;
  int64_t page_stride_bytes = 0;
  int64_t head_stride_bytes = 0;
  int32_t n_heads = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t n_pairs = 0;
};

// Rotates the pair (i, i + n_pairs) of a head in place.
LH_DEVICE U32x2 RotatePair(Global<BF16> head, int i, int n_pairs, Global<const float> cos_sin) {
  const F32x2 angle = LoadVec<F32x2>(cos_sin + 2 * i);
  const BF16 lower = head[i];
  const BF16 upper = head[i + n_pairs];
  const float a = ToFloat(lower);
  const float b = ToFloat(upper);
  const BF16 rotated_lower = ToBf16(a * angle.v[0] - b * angle.v[1]);
  const BF16 rotated_upper = ToBf16(b * angle.v[0] + a * angle.v[1]);
  head[i] = rotated_lower;
  head[i + n_pairs] = rotated_upper;
  return U32x2{{rotated_lower.bits, rotated_upper.bits}};
}

// The token's queries, times their factor, in all three forms. Called by the block.
LH_DEVICE void RotateQueryForms(const RopeKvWriteParams& p, int64_t t) {
  const Global<BF16> own = p.q + t * p.q_stride;
  const Global<BF16> next = p.dual.next + t * p.dual.next_stride;
  const Global<BF16> far = p.dual.far + t * p.dual.far_stride;
  const float factor = p.dual.q_scale[t];
  for (int i = ThreadId(); i < p.n_heads * p.head_dim; i += kBlock) {
    const BF16 x = own[i];
    const BF16 scaled = ToBf16(ToFloat(x) * factor);
    own[i] = scaled;
    next[i] = scaled;
    far[i] = scaled;
  }
  SyncThreads();
  const int64_t angles = t * p.n_pairs * 2;
  for (int i = ThreadId(); i < p.n_heads * p.n_pairs; i += kBlock) {
    const int head = i / p.n_pairs * p.head_dim;
    const int pair = i % p.n_pairs;
    RotatePair(own + head, pair, p.n_pairs, p.cos_sin + angles);
    RotatePair(next + head, pair, p.n_pairs, p.dual.next_cos_sin + angles);
    RotatePair(far + head, pair, p.n_pairs, p.dual.far_cos_sin + angles);
  }
}

// The token's values, and what of its keys is not rotated, in bf16. `slot_begin`: of the token in a
// page, in elements.
LH_DEVICE void StoreTokenRest(const RopeKvWriteParams& p, int64_t t, Global<uint8_t> page_pool,
                              int64_t slot_begin) {
  for (int i = ThreadId(); i < p.n_kv_heads * p.head_dim; i += kBlock) {
    const int h = i / p.head_dim;
    const int d = i % p.head_dim;
    const Global<uint8_t> head_pool = page_pool + h * p.head_stride_bytes;
    const BF16 value = p.v[t * p.v_stride + i];
    (Cast<BF16>(head_pool + p.head_stride_bytes / 2) + slot_begin)[d] = value;
    if (d >= 2 * p.n_pairs) {
      const BF16 key = p.k[t * p.k_stride + i];
      (Cast<BF16>(head_pool) + slot_begin)[d] = key;
    }
  }
}

// A row of keys or values, [D] bf16 with D a multiple of 4 up to 128, as fp8. Called by a
// warp.
LH_DEVICE void StoreRowF8(Global<const BF16> row, int head_dim, Global<uint8_t> to,
                          Global<uint8_t> scale_to) {
  const int column = LaneId() * 4;
  const bool has_columns = column < head_dim;
  const U32x2 pairs = has_columns ? LoadVec<U32x2>(row + column) : U32x2{};
  const float x[4] = {Bf16Low(pairs.v[0]), Bf16High(pairs.v[0]), Bf16Low(pairs.v[1]),
                      Bf16High(pairs.v[1])};
  float largest = 0.0f;
  LH_UNROLL
  for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(x[i]));
  const uint8_t scale = RowScaleF8(WarpMax(largest));
  const float inverse = 1.0f / RowFactorF8(scale);
  uint32_t bytes = 0;
  LH_UNROLL
  for (int i = 0; i < 4; ++i) {
    bytes |= static_cast<uint32_t>(ToF8E4M3(x[i] * inverse).bits) << (8 * i);
  }
  if (has_columns) StoreVec(to + column, bytes);
  if (LaneId() == 0) scale_to[0] = scale;
}

// The token's keys, rotated before in their place, and its values. A warp per row.
LH_DEVICE void StoreTokenF8(const RopeKvWriteParams& p, int64_t t, Global<uint8_t> page_pool,
                            int slot) {
  for (int row = WarpId(); row < 2 * p.n_kv_heads; row += kBlock / kWarpLanes) {
    const int head = row / 2;
    const bool is_values = row % 2 != 0;
    const Global<const BF16> from =
        is_values ? p.v + (t * p.v_stride + head * p.head_dim)
                  : Global<const BF16>(p.k + (t * p.k_stride + head * p.head_dim));
    const Global<uint8_t> block =
        page_pool + (head * p.head_stride_bytes + (is_values ? p.head_stride_bytes / 2 : 0));
    StoreRowF8(from, p.head_dim, block + slot * p.head_dim,
               block + (kPageTokens * p.head_dim + slot));
  }
}

// One token per block. T: elements of the KV cache, BF16 or F8E4M3.
template <class T>
LH_KERNEL(kBlock, 1)
RopeKvWriteKernel(RopeKvWriteParams p) {
  constexpr bool kIsFp8 = std::is_same_v<T, F8E4M3>;
  const int64_t t = BlockX();
  const Global<const float> cos_sin = p.cos_sin + t * p.n_pairs * 2;
  if (p.dual.next) {
    RotateQueryForms(p, t);
  } else {
    for (int i = ThreadId(); i < p.n_heads * p.n_pairs; i += kBlock) {
      const Global<BF16> head = p.q + (t * p.q_stride + i / p.n_pairs * p.head_dim);
      RotatePair(head, i % p.n_pairs, p.n_pairs, cos_sin);
    }
  }

  Global<const int32_t> pages = p.pages;
  if (p.kvs) {
    const KvView kv = p.kvs[t / p.rows_per_kv];
    if (kv.n_tokens == 0) return;  // a place that a recorded step has to spare
    pages = Global<const int32_t>(kv.pages);
  }
  const int64_t position = p.positions[t];
  const int64_t page = pages[position / kPageTokens];
  const Global<uint8_t> page_pool = p.layer_pool + page * p.page_stride_bytes;
  const int64_t slot_begin = position % kPageTokens * p.head_dim;
  for (int i = ThreadId(); i < p.n_kv_heads * p.n_pairs; i += kBlock) {
    const int h = i / p.n_pairs;
    const int pair = i % p.n_pairs;
    const Global<BF16> head = p.k + (t * p.k_stride + h * p.head_dim);
    const U32x2 rotated = RotatePair(head, pair, p.n_pairs, cos_sin);
    if constexpr (!kIsFp8) {
      const Global<BF16> keys = Cast<BF16>(page_pool + h * p.head_stride_bytes) + slot_begin;
      keys[pair] = BF16{static_cast<uint16_t>(rotated.v[0])};
      keys[pair + p.n_pairs] = BF16{static_cast<uint16_t>(rotated.v[1])};
    }
  }
  if constexpr (kIsFp8) {
    SyncThreads();  // all of a row is rotated
    StoreTokenF8(p, t, page_pool, static_cast<int>(position % kPageTokens));
  } else {
    StoreTokenRest(p, t, page_pool, slot_begin);
  }
}

}  // namespace

cudaError_t RopeTable(const RopeTableArgs& args, const double* inv_freq, cudaStream_t stream) {
  RopeTableParams p;
  p.positions = args.positions;
  p.inv_freq = inv_freq;
  p.cos_sin = args.cos_sin.As<float>();
  p.n_pairs = args.cos_sin.dim(1);
  p.n = args.cos_sin.dim(0) * p.n_pairs;
  p.scale = args.scale;
  if (p.n == 0) return cudaSuccess;
  return Launch({.name = "rope_table",
                 .grid = dim3(static_cast<unsigned>(std::min(CeilDiv(p.n, kBlock), kMaxBlocks))),
                 .block = kBlock,
                 .stream = stream},
                RopeTableKernel, p);
}

cudaError_t RopeKvWrite(const RopeKvWriteArgs& args, cudaStream_t stream) {
  const int64_t n_tokens = args.q.dim(0);
  if (n_tokens == 0) return cudaSuccess;
  const KvView& kv = args.kvs[0];
  RopeKvWriteParams p;
  p.q = args.q.As<BF16>();
  p.k = args.k.As<BF16>();
  p.v = args.v.As<BF16>();
  p.cos_sin = args.cos_sin.As<float>();
  if (!args.dual.next.empty()) {
    p.dual = {.next_cos_sin = args.dual.next_cos_sin.As<float>(),
              .far_cos_sin = args.dual.far_cos_sin.As<float>(),
              .q_scale = args.dual.q_scale,
              .next = args.dual.next.As<BF16>(),
              .far = args.dual.far.As<BF16>(),
              .next_stride = args.dual.next.stride(0),
              .far_stride = args.dual.far.stride(0)};
  }
  p.positions = args.positions;
  p.kvs = args.kvs_copy;
  p.pages = kv.pages;
  p.layer_pool = reinterpret_cast<uint8_t*>(kv.pool + kv.layer_offset_bytes);
  p.q_stride = args.q.stride(0);
  p.k_stride = args.k.stride(0);
  p.v_stride = args.v.stride(0);
  p.rows_per_kv = args.rows_per_kv;
  p.page_stride_bytes = kv.page_stride_bytes;
  p.head_stride_bytes = kv.head_stride_bytes;
  p.n_heads = static_cast<int32_t>(args.q.dim(1));
  p.n_kv_heads = kv.n_kv_heads;
  p.head_dim = kv.head_dim;
  p.n_pairs = static_cast<int32_t>(args.cos_sin.dim(1));
  return Launch({.name = "rope_kv_write",
                 .grid = dim3(static_cast<unsigned>(n_tokens)),
                 .block = kBlock,
                 .stream = stream},
                kv.dtype == DType::kF8E4M3 ? RopeKvWriteKernel<F8E4M3> : RopeKvWriteKernel<BF16>,
                p);
}

}  // namespace longhaul::cuda
