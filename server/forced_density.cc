#include "server/forced_density.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/select_math.h"

namespace longhaul {
namespace {

void PlanHead(const SelectKeysArgs& args, double density, int64_t head) {
  const SparsePlan& plan = args.plan;
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  const int64_t local = LocalPairs(rows, plan.local);
  const int64_t remote = CausalPairs(rows) - local;
  // Slots of a stripe that are remote to some row.
  const int64_t width = plan.stripe_width;
  const int64_t first = CeilDiv(plan.local.sink, width);
  const int64_t n_slots = std::max<int64_t>((rows.q_end - plan.local.window) / width - first, 0);
  const double wanted = density * static_cast<double>(local + remote) - static_cast<double>(local);
  int64_t n_stripes = 0;
  if (wanted > 0 && remote > 0) {
    const double share = wanted / static_cast<double>(remote);
    n_stripes = std::llround(share * static_cast<double>(n_slots));
  }
  n_stripes = std::min({n_stripes, n_slots, plan.max_stripes});

  constexpr double kGoldenRatio = 0.6180339887498949;  // heads differ in where their stripes begin
  const double phase = std::fmod(static_cast<double>(head) * kGoldenRatio, 1.0);
  int32_t* stripes = plan.stripes + head * plan.max_stripes;
  int64_t kept = local;
  for (int64_t i = 0; i < n_stripes; ++i) {
    const double slot = (static_cast<double>(i) + phase) * static_cast<double>(n_slots) /
                        static_cast<double>(n_stripes);
    const int64_t begin = (first + std::min(static_cast<int64_t>(slot), n_slots - 1)) * width;
    stripes[i] = static_cast<int32_t>(begin);
    kept += StripePairs(rows, plan.local, begin, width);
  }
  plan.kind[head] = static_cast<int32_t>(n_stripes > 0 ? HeadKind::kSparse : HeadKind::kStreaming);
  plan.n_stripes[head] = static_cast<int32_t>(n_stripes);
  plan.n_bands[head] = 0;
  plan.kept_pairs[head] = kept;
}

}  // namespace

void ForcedDensityBackend::SelectStreaming(const SelectStreamingArgs& args) {
  ForwardingBackend::SelectStreaming(args);
  Synchronize();
  std::memset(args.choice, kChooseByMass, static_cast<size_t>(args.lse_full.dim(0)));
}

void ForcedDensityBackend::SelectKeys(const SelectKeysArgs& args) {
  ForwardingBackend::SelectKeys(args);
  Synchronize();
  const int64_t head_end = args.head_begin + args.mass_sum.dim(0);
  for (int64_t head = args.head_begin; head < head_end; ++head) PlanHead(args, density_, head);
}

void ForcedDensityBackend::Audit(const AuditArgs& args) {
  AuditArgs measured = args;
  measured.floor = 0;
  measured.target = 0;
  ForwardingBackend::Audit(measured);
}

}  // namespace longhaul
