#include "kernels/cuda/audit.h"

#include "kernels/cuda/launch.h"
#include "kernels/select_math.h"

namespace longhaul::cuda {
namespace {

struct AuditParams {
  Global<const int32_t> rows;  // [n_rows] voting rows first
  int64_t n_voting = 0;
  int64_t n_rows = 0;
  Global<const float> lse_full;  // [H, n_rows]
  int64_t lse_full_stride = 0;
  Global<const float> lse_sparse;  // [T, H]
  int64_t lse_sparse_stride = 0;
  float floor = 0;
  float target = 0;
  float lost = 0;
  Global<const int32_t> kind;  // [H]
  Global<float> recall;        // [H, n_rows - n_voting]
  int64_t recall_stride = 0;
  Global<uint8_t> repair;  // [H]
  Global<float> alpha;     // [H]
};

// Grid [H], one warp each.
LH_KERNEL(kWarpLanes, 1) AuditKernel(AuditParams p) {
  const int64_t head = BlockX();
  if (p.n_voting == p.n_rows) {
    if (LaneId() == 0) p.repair[head] = 0;
    return;
  }
  double sum = 0;
  bool any_lost = false;
  for (int64_t r = LaneId(); r < p.n_rows; r += kWarpLanes) {
    const float sparse = p.lse_sparse[p.rows[r] * p.lse_sparse_stride + head];
    const float full = p.lse_full[head * p.lse_full_stride + r];
    const float recall = fminf(fmaxf(expf(sparse - full), 0.0f), 1.0f);
    any_lost = any_lost || recall < p.lost;
    if (r < p.n_voting) continue;
    p.recall[head * p.recall_stride + r - p.n_voting] = recall;
    sum += static_cast<double>(recall);
  }
  LH_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  any_lost = Ballot(any_lost) != 0;
  if (LaneId() != 0) return;
  const int32_t kind = p.kind[head];
  const bool dense = kind == static_cast<int32_t>(HeadKind::kDense);
  const double mean = dense ? 1.0 : sum / static_cast<double>(p.n_rows - p.n_voting);
  p.repair[head] = mean < static_cast<double>(p.floor) ? 1 : 0;
  if (p.target > 0) {
    const float alpha = p.alpha[head];
    p.alpha[head] = SteeredAlpha(alpha, p.target, mean, any_lost && !dense);
  }
}

}  // namespace

cudaError_t Audit(const AuditArgs& args, cudaStream_t stream) {
  AuditParams p;
  p.rows = args.rows;
  p.n_voting = args.n_voting;
  p.n_rows = args.n_rows;
  p.lse_full = args.lse_full.As<float>();
  p.lse_full_stride = args.lse_full.stride(0);
  p.lse_sparse = args.lse_sparse.As<float>();
  p.lse_sparse_stride = args.lse_sparse.stride(0);
  p.floor = args.floor;
  p.target = args.target;
  p.lost = args.lost;
  p.kind = args.kind;
  p.recall = args.recall.As<float>();
  p.recall_stride = args.recall.stride(0);
  p.repair = args.repair;
  p.alpha = args.alpha;
  const auto n_heads = static_cast<unsigned>(args.lse_full.dim(0));
  return Launch({.name = "audit", .grid = {n_heads}, .block = kWarpLanes, .stream = stream},
                AuditKernel, p);
}

}  // namespace longhaul::cuda
