// Which heads need their local keys alone, and which get a budget: one warp per head adds up what
// the local keys hold.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/select_candidates.cuh"
#include "kernels/cuda/select_keys.h"

namespace longhaul::cuda {
namespace {

struct StreamingParams {
  EpochRows rows;
  int64_t n_voting = 0;
  SparsePlan plan;
  Global<const float> lse_full;
  Global<const float> lse_local;
  int64_t lse_full_stride = 0;
  int64_t lse_local_stride = 0;
  Global<const float> alpha;
  float target = 0;
  float lost = 0;
  float budget_rows = 0;
  Global<uint8_t> choice;
};

// Grid [H], one warp each.
LH_KERNEL(kWarpLanes, 1) StreamingKernel(StreamingParams p) {
  const int64_t head = BlockX();
  const float alpha = p.alpha[head];
  int64_t local_mass =
      LocalMass(p.lse_full + head * p.lse_full_stride, p.lse_local + head * p.lse_local_stride,
                p.n_voting, LaneId(), kWarpLanes);
  LH_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) local_mass += ShuffleXor(local_mass, mask);
  bool loses_rows = alpha > p.target;
  int n_local_rows = 0;
  for (int64_t r = LaneId(); r < p.n_voting; r += kWarpLanes) {
    const double full = p.lse_full[head * p.lse_full_stride + r];
    const double local = p.lse_local[head * p.lse_local_stride + r];
    const double share = exp(local - full);
    loses_rows = loses_rows || share < static_cast<double>(p.lost);
    n_local_rows += share >= kLocalRow ? 1 : 0;
  }
  LH_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
    n_local_rows += ShuffleXor(n_local_rows, mask);
  }
  loses_rows = Ballot(loses_rows) != 0;
  if (LaneId() != 0) return;
  const int64_t target_mass =
      FixedMass(static_cast<double>(alpha) * static_cast<double>(p.n_voting));
  uint8_t choice = kChosen;
  if (alpha >= 1) {
    SetKind(p.plan, head, HeadKind::kDense, CausalPairs(p.rows));
  } else if (loses_rows && IsMostRows(n_local_rows, p.n_voting, p.budget_rows)) {
    choice = kChooseByBudget;
  } else if (target_mass <= local_mass) {
    SetKind(p.plan, head, HeadKind::kStreaming, LocalPairs(p.rows, p.plan.local));
  } else {
    choice = kChooseByMass;
  }
  p.choice[head] = choice;
}

}  // namespace

cudaError_t SelectStreaming(const SelectStreamingArgs& args, cudaStream_t stream) {
  StreamingParams p;
  p.rows = {.q_begin = args.q_begin, .q_end = args.q_begin + args.n_q};
  p.n_voting = args.n_voting;
  p.plan = args.plan;
  p.lse_full = args.lse_full.As<float>();
  p.lse_local = args.lse_local.As<float>();
  p.lse_full_stride = args.lse_full.stride(0);
  p.lse_local_stride = args.lse_local.stride(0);
  p.alpha = args.alpha;
  p.target = args.target;
  p.lost = args.lost;
  p.budget_rows = args.budget_rows;
  p.choice = args.choice;
  const auto n_heads = static_cast<unsigned>(args.lse_full.dim(0));
  return Launch({.name = "select streaming", .grid = {n_heads}, .block = 32, .stream = stream},
                StreamingKernel, p);
}

}  // namespace longhaul::cuda
