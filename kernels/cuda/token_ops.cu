#include "kernels/cuda/token_ops.h"

#include <algorithm>

#include "kernels/base/checked_math.h"
#include "kernels/cuda/launch.h"

namespace longhaul::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarpLanes;
constexpr int64_t kMaxBlocks = 4096;  // of kernels that loop over all elements
constexpr float kLog2E = 1.4426950408889634f;

using cuda::ToFloat;  // of BF16
LH_DEVICE float ToFloat(float x) { return x; }
LH_DEVICE float ToFloat(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Exponent and mantissa are those of an f32 scaled by 2^-112, subnormals included; 31 is infinity
  // or NaN.
  const float scaled = BitCast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t bits =
      magnitude >= 0x7c00u ? 0x7f800000u | (magnitude << 13) : BitCast<uint32_t>(scaled);
  return BitCast<float>(sign | bits);
}

// ---- Embedding ----

template <class T>
struct EmbedParams {
  Global<const int32_t> token_ids;  // [T]
  Global<const T> table;            // [V, E]
  Global<float> out;                // [T, E]
  int64_t table_stride = 0;
  int64_t width = 0;  // E
};

template <class T>
LH_KERNEL(kBlock, 1)
EmbedKernel(EmbedParams<T> p) {
  const int64_t token = p.token_ids[BlockX()];
  const Global<const T> row = p.table + token * p.table_stride;
  const Global<float> out = p.out + BlockX() * p.width;
  for (int64_t e = ThreadId(); e < p.width; e += kBlock) {
    const T x = row[e];
    out[e] = ToFloat(x);
  }
}

template <class T>
cudaError_t LaunchEmbed(const EmbedArgs& args, cudaStream_t stream) {
  EmbedParams<T> p;
  p.token_ids = args.token_ids;
  p.table = static_cast<const T*>(args.table.data());
  p.out = args.out.As<float>();
  p.table_stride = args.table.stride(0);
  p.width = args.table.dim(1);
  return Launch({.name = "embed",
                 .grid = dim3(static_cast<unsigned>(args.out.dim(0))),
                 .block = kBlock,
                 .stream = stream},
                EmbedKernel<T>, p);
}

// ---- RMSNorm ----

struct RmsNormRowsParams {
  Global<const float> x;       // [T, E]
  Global<const float> weight;  // [E]
  Global<BF16> out;            // [T, E]
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  int32_t width = 0;  // E
  float eps = 0;
};

// One row per block. kFour: rows are 16-byte aligned and E is a multiple of 4.
template <bool kFour>
LH_KERNEL(kBlock, 1)
RmsNormRowsKernel(RmsNormRowsParams p) {
  SharedArena arena;
  Shared<float> warp_sums = arena.Carve<float>(kWarps);
  const Global<const float> x = p.x + BlockX() * p.x_stride;
  const Global<BF16> out = p.out + BlockX() * p.out_stride;
  constexpr int kStep = kFour ? 4 : 1;
  float sum = 0;
  for (int i = ThreadId() * kStep; i < p.width; i += kBlock * kStep) {
    if constexpr (kFour) {
      const F32x4 v = LoadVec<F32x4>(x + i);
      sum += v.v[0] * v.v[0] + v.v[1] * v.v[1] + v.v[2] * v.v[2] + v.v[3] * v.v[3];
    } else {
      const float v = x[i];
      sum += v * v;
    }
  }
  sum = WarpSum(sum);
  if (LaneId() == 0) warp_sums[WarpId()] = sum;
  SyncThreads();
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += warp_sums[w];
  const float inverse = 1.0f / sqrtf(total / static_cast<float>(p.width) + p.eps);
  for (int i = ThreadId() * kStep; i < p.width; i += kBlock * kStep) {
    if constexpr (kFour) {
      const F32x4 v = LoadVec<F32x4>(x + i);
      const F32x4 w = LoadVec<F32x4>(p.weight + i);
      U32x2 packed;
      packed.v[0] = PackBf16(v.v[0] * inverse * w.v[0], v.v[1] * inverse * w.v[1]);
      packed.v[1] = PackBf16(v.v[2] * inverse * w.v[2], v.v[3] * inverse * w.v[3]);
      StoreVec(out + i, packed);
    } else {
      const float v = x[i];
      const float w = p.weight[i];
      out[i] = ToBf16(v * inverse * w);
    }
  }
}

struct RmsNormHeadsParams {
  Global<const BF16> x;        // [T, H, D]
  Global<const float> weight;  // [D]
  Global<BF16> out;            // [T, H, D], may be x
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  int64_t n_rows = 0;  // T * H
  int32_t n_heads = 0;
  int32_t head_dim = 0;
  float eps = 0;
};

// One head of one token per warp; a lane reads back only what it writes, so out may be x.
LH_KERNEL(kBlock, 1) RmsNormHeadsKernel(RmsNormHeadsParams p) {
  const int64_t row = static_cast<int64_t>(BlockX()) * kWarps + WarpId();
  if (row >= p.n_rows) return;
  const int64_t t = row / p.n_heads;
  const int64_t begin = row % p.n_heads * p.head_dim;
  const Global<const BF16> x = p.x + (t * p.x_stride + begin);
  const Global<BF16> out = p.out + (t * p.out_stride + begin);
  float sum = 0;
  for (int i = LaneId(); i < p.head_dim; i += kWarpLanes) {
    const BF16 v = x[i];
    sum += ToFloat(v) * ToFloat(v);
  }
  sum = WarpSum(sum);
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(p.head_dim) + p.eps);
  for (int i = LaneId(); i < p.head_dim; i += kWarpLanes) {
    const BF16 v = x[i];
    const float w = p.weight[i];
    out[i] = ToBf16(ToFloat(v) * inverse * w);
  }
}

cudaError_t RmsNormRows(const RmsNormArgs& args, cudaStream_t stream) {
  RmsNormRowsParams p;
  p.x = args.x.As<float>();
  p.weight = args.weight.As<float>();
  p.out = args.out.As<BF16>();
  p.x_stride = args.x.stride(0);
  p.out_stride = args.out.stride(0);
  p.width = static_cast<int32_t>(args.x.dim(1));
  p.eps = args.eps;
  const bool four = p.width % 4 == 0 && p.x_stride % 4 == 0 && p.out_stride % 4 == 0;
  return Launch({.name = "rms_norm",
                 .grid = dim3(static_cast<unsigned>(args.x.dim(0))),
                 .block = kBlock,
                 .smem_bytes = CarvedBytes<float>(kWarps),
                 .stream = stream},
                four ? RmsNormRowsKernel<true> : RmsNormRowsKernel<false>, p);
}

cudaError_t RmsNormHeads(const RmsNormArgs& args, cudaStream_t stream) {
  RmsNormHeadsParams p;
  p.x = args.x.As<BF16>();
  p.weight = args.weight.As<float>();
  p.out = args.out.As<BF16>();
  p.x_stride = args.x.stride(0);
  p.out_stride = args.out.stride(0);
  p.n_rows = args.x.dim(0) * args.x.dim(1);
  p.n_heads = static_cast<int32_t>(args.x.dim(1));
  p.head_dim = static_cast<int32_t>(args.x.dim(2));
  p.eps = args.eps;
  return Launch({.name = "rms_norm_heads",
                 .grid = dim3(static_cast<unsigned>(CeilDiv(p.n_rows, kWarps))),
                 .block = kBlock,
                 .stream = stream},
                RmsNormHeadsKernel, p);
}

// ---- SwiGLU ----

struct SwiGluParams {
  Global<const BF16> gate_up;  // [T, 2 F]
  Global<BF16> out;            // [T, F]
  int64_t n = 0;               // T * F, in units of kStep
  int64_t width = 0;           // F, likewise
};

LH_DEVICE float SiluMul(float gate, float up) {
  return gate / (1.0f + Exp2Approx(-gate * kLog2E)) * up;
}

// kEight: F is a multiple of 8.
template <bool kEight>
LH_KERNEL(kBlock, 1)
SwiGluKernel(SwiGluParams p) {
  constexpr int kStep = kEight ? 8 : 1;
  const int64_t stride = static_cast<int64_t>(GridX()) * kBlock;
  for (int64_t i = static_cast<int64_t>(BlockX()) * kBlock + ThreadId(); i < p.n; i += stride) {
    const int64_t t = i / p.width;
    const int64_t column = i % p.width;
    const Global<const BF16> gate = p.gate_up + (2 * t * p.width + column) * kStep;
    const Global<const BF16> up = gate + p.width * kStep;
    if constexpr (kEight) {
      const U32x4 g = LoadVec<U32x4>(gate);
      const U32x4 u = LoadVec<U32x4>(up);
      U32x4 result;
      LH_UNROLL
      for (int k = 0; k < 4; ++k) {
        result.v[k] = PackBf16(SiluMul(Bf16Low(g.v[k]), Bf16Low(u.v[k])),
                               SiluMul(Bf16High(g.v[k]), Bf16High(u.v[k])));
      }
      StoreVec(p.out + i * kStep, result);
    } else {
      const BF16 g = gate[0];
      const BF16 u = up[0];
      p.out[i] = ToBf16(SiluMul(ToFloat(g), ToFloat(u)));
    }
  }
}

// ---- Mixture of experts ----

struct RouteParams {
  Global<const float> logits;  // [T, X]
  Global<int32_t> experts;     // [T, K]
  Global<float> weights;       // [T, K]
  int64_t n_rows = 0;          // T
  int32_t n_experts = 0;       // X
  int32_t n_chosen = 0;        // K
  bool renormalize = false;
};

// One row per warp; the K best by K scans, each for the best that comes after the one before.
LH_KERNEL(kBlock, 1) RouteKernel(RouteParams p) {
  const int64_t t = static_cast<int64_t>(BlockX()) * kWarps + WarpId();
  if (t >= p.n_rows) return;
  const Global<const float> logits = p.logits + t * p.n_experts;
  float last = INFINITY;
  int last_expert = -1;
  float first = 0;
  float chosen_sum = 0;
  for (int k = 0; k < p.n_chosen; ++k) {
    float best = -INFINITY;
    int best_expert = p.n_experts;
    for (int x = LaneId(); x < p.n_experts; x += kWarpLanes) {
      const float logit = logits[x];
      const bool later = logit < last || (logit == last && x > last_expert);
      if (later && (logit > best || best_expert == p.n_experts)) {
        best = logit;
        best_expert = x;
      }
    }
    LH_UNROLL
    for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
      const float other = ShuffleXor(best, mask);
      const int other_expert = ShuffleXor(best_expert, mask);
      if (other > best || (other == best && other_expert < best_expert)) {
        best = other;
        best_expert = other_expert;
      }
    }
    if (k == 0) first = best;
    last = best;
    last_expert = best_expert;
    const float share = Exp2Approx((best - first) * kLog2E);
    chosen_sum += share;
    if (LaneId() == 0) {
      // Logits that are not numbers choose nothing; any expert in range will do.
      p.experts[t * p.n_chosen + k] = best_expert < p.n_experts ? best_expert : k;
      p.weights[t * p.n_chosen + k] = share;
    }
  }
  float total = chosen_sum;
  if (!p.renormalize) {
    float sum = 0;
    for (int x = LaneId(); x < p.n_experts; x += kWarpLanes) {
      const float logit = logits[x];
      sum += Exp2Approx((logit - first) * kLog2E);
    }
    total = WarpSum(sum);
  }
  if (LaneId() == 0) {
    for (int k = 0; k < p.n_chosen; ++k) {
      const float share = p.weights[t * p.n_chosen + k];
      p.weights[t * p.n_chosen + k] = share / total;
    }
  }
}

struct GatherParams {
  Global<const BF16> x;        // [T, E]
  Global<const int32_t> rows;  // [n]
  Global<BF16> out;            // [n, E]
  int64_t width = 0;           // E
};

// kEight: E is a multiple of 8.
template <bool kEight>
LH_KERNEL(kBlock, 1)
GatherKernel(GatherParams p) {
  const int64_t from = p.rows[BlockX()];
  const Global<const BF16> x = p.x + from * p.width;
  const Global<BF16> out = p.out + BlockX() * p.width;
  constexpr int kStep = kEight ? 8 : 1;
  for (int64_t e = ThreadId() * kStep; e < p.width; e += kBlock * kStep) {
    if constexpr (kEight) {
      StoreVec(out + e, LoadVec<U32x4>(x + e));
    } else {
      const BF16 v = x[e];
      out[e] = v;
    }
  }
}

struct ScatterAddParams {
  Global<const float> x;        // [n, E]
  Global<const int32_t> rows;   // [n], no two alike: no atomics
  Global<const float> weights;  // [n]
  Global<float> out;            // [T, E]
  int64_t width = 0;            // E
};

LH_KERNEL(kBlock, 1) ScatterAddKernel(ScatterAddParams p) {
  const int64_t to = p.rows[BlockX()];
  const float weight = p.weights[BlockX()];
  const Global<const float> x = p.x + BlockX() * p.width;
  const Global<float> out = p.out + to * p.width;
  for (int64_t e = ThreadId(); e < p.width; e += kBlock) {
    const float v = x[e];
    const float sum = out[e];
    out[e] = sum + weight * v;
  }
}

// ---- Rotary embeddings and the KV cache ----

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

struct RopeKvWriteParams {
  Global<BF16> q;                   // [T, H, D]
  Global<BF16> k;                   // [T, KH, D]
  Global<const BF16> v;             // [T, KH, D]
  Global<const float> cos_sin;      // [T, P, 2]
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

// One token per block.
LH_KERNEL(kBlock, 1) RopeKvWriteKernel(RopeKvWriteParams p) {
  const int64_t t = BlockX();
  const Global<const float> cos_sin = p.cos_sin + t * p.n_pairs * 2;
  for (int i = ThreadId(); i < p.n_heads * p.n_pairs; i += kBlock) {
    const Global<BF16> head = p.q + (t * p.q_stride + i / p.n_pairs * p.head_dim);
    RotatePair(head, i % p.n_pairs, p.n_pairs, cos_sin);
  }

  Global<const int32_t> pages = p.pages;
  if (p.kvs) {
    const KvView kv = p.kvs[t / p.rows_per_kv];
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
    const Global<BF16> keys = Cast<BF16>(page_pool + h * p.head_stride_bytes) + slot_begin;
    const U32x2 rotated = RotatePair(head, pair, p.n_pairs, cos_sin);
    keys[pair] = BF16{static_cast<uint16_t>(rotated.v[0])};
    keys[pair + p.n_pairs] = BF16{static_cast<uint16_t>(rotated.v[1])};
  }
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

struct CastParams {
  Global<const float> from;
  Global<BF16> to;
  int64_t n = 0;
};

LH_KERNEL(kBlock, 1) CastKernel(CastParams p) {
  const int64_t i = static_cast<int64_t>(BlockX()) * kBlock + ThreadId();
  if (i >= p.n) return;
  const float x = p.from[i];
  p.to[i] = ToBf16(x);
}

unsigned LoopBlocks(int64_t n) {
  return static_cast<unsigned>(std::min(CeilDiv(n, kBlock), kMaxBlocks));
}

}  // namespace

cudaError_t Embed(const EmbedArgs& args, cudaStream_t stream) {
  if (args.out.dim(0) == 0) return cudaSuccess;
  switch (args.table.dtype()) {
    case DType::kF32:
      return LaunchEmbed<float>(args, stream);
    case DType::kBF16:
      return LaunchEmbed<BF16>(args, stream);
    case DType::kF16:
      return LaunchEmbed<F16>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t RmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.x.dim(0) == 0) return cudaSuccess;
  return args.x.rank() == 3 ? RmsNormHeads(args, stream) : RmsNormRows(args, stream);
}

cudaError_t SwiGlu(const SwiGluArgs& args, cudaStream_t stream) {
  const int64_t width = args.out.dim(1);
  const bool eight = width % 8 == 0;
  SwiGluParams p;
  p.gate_up = args.gate_up.As<BF16>();
  p.out = args.out.As<BF16>();
  p.width = eight ? width / 8 : width;
  p.n = args.out.dim(0) * p.width;
  if (p.n == 0) return cudaSuccess;
  return Launch(
      {.name = "swiglu", .grid = dim3(LoopBlocks(p.n)), .block = kBlock, .stream = stream},
      eight ? SwiGluKernel<true> : SwiGluKernel<false>, p);
}

cudaError_t RouteExperts(const RouteExpertsArgs& args, cudaStream_t stream) {
  RouteParams p;
  p.logits = args.logits.As<float>();
  p.experts = args.experts.As<int32_t>();
  p.weights = args.weights.As<float>();
  p.n_rows = args.logits.dim(0);
  p.n_experts = static_cast<int32_t>(args.logits.dim(1));
  p.n_chosen = static_cast<int32_t>(args.weights.dim(1));
  p.renormalize = args.renormalize;
  if (p.n_rows == 0) return cudaSuccess;
  return Launch({.name = "route_experts",
                 .grid = dim3(static_cast<unsigned>(CeilDiv(p.n_rows, kWarps))),
                 .block = kBlock,
                 .stream = stream},
                RouteKernel, p);
}

cudaError_t GatherRows(const GatherRowsArgs& args, cudaStream_t stream) {
  if (args.out.dim(0) == 0) return cudaSuccess;
  GatherParams p;
  p.x = args.x.As<BF16>();
  p.rows = args.rows;
  p.out = args.out.As<BF16>();
  p.width = args.x.dim(1);
  return Launch({.name = "gather_rows",
                 .grid = dim3(static_cast<unsigned>(args.out.dim(0))),
                 .block = kBlock,
                 .stream = stream},
                p.width % 8 == 0 ? GatherKernel<true> : GatherKernel<false>, p);
}

cudaError_t ScatterAddRows(const ScatterAddRowsArgs& args, cudaStream_t stream) {
  if (args.x.dim(0) == 0) return cudaSuccess;
  ScatterAddParams p;
  p.x = args.x.As<float>();
  p.rows = args.rows;
  p.weights = args.weights;
  p.out = args.out.As<float>();
  p.width = args.x.dim(1);
  return Launch({.name = "scatter_add_rows",
                 .grid = dim3(static_cast<unsigned>(args.x.dim(0))),
                 .block = kBlock,
                 .stream = stream},
                ScatterAddKernel, p);
}

cudaError_t RopeTable(const RopeTableArgs& args, const double* inv_freq, cudaStream_t stream) {
  RopeTableParams p;
  p.positions = args.positions;
  p.inv_freq = inv_freq;
  p.cos_sin = args.cos_sin.As<float>();
  p.n_pairs = args.cos_sin.dim(1);
  p.n = args.cos_sin.dim(0) * p.n_pairs;
  p.scale = args.scale;
  if (p.n == 0) return cudaSuccess;
  return Launch(
      {.name = "rope_table", .grid = dim3(LoopBlocks(p.n)), .block = kBlock, .stream = stream},
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
  p.positions = args.positions;
  if (args.rows_per_kv < n_tokens) p.kvs = args.kvs_copy;
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
                RopeKvWriteKernel, p);
}

cudaError_t CastToBf16(const float* from, BF16* to, int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  CastParams p;
  p.from = from;
  p.to = to;
  p.n = n;
  return Launch({.name = "cast_to_bf16",
                 .grid = dim3(static_cast<unsigned>(CeilDiv(n, kBlock))),
                 .block = kBlock,
                 .stream = stream},
                CastKernel, p);
}

}  // namespace longhaul::cuda
