#include "kernels/cuda/token_ops.h"

#include <algorithm>

#include "kernels/base/checked_math.h"
#include "kernels/cuda/launch.h"

namespace longhaul::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarpLanes;
constexpr int64_t kMaxBlocks = 4096;  // of a kernel that loops over all elements
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
