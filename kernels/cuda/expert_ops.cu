// The mixture-of-experts ops of token_ops.h.
#include "kernels/base/checked_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/token_ops.h"

namespace longhaul::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarpLanes;
constexpr float kLog2E = 1.4426950408889634f;

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

}  // namespace

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

}  // namespace longhaul::cuda
