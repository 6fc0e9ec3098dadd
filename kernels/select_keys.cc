#include "kernels/select_keys.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// What the voting rows must keep beyond the local pattern, FixedMass; at most 0 = nothing.
int64_t NeedBeyondLocal(float alpha, TensorView lse_full, TensorView lse_local, int64_t head,
                        int64_t n_voting) {
  const float* full = lse_full.Row<float>(head);
  const float* local = lse_local.Row<float>(head);
  int64_t need = FixedMass(double{alpha} * static_cast<double>(n_voting));
  for (int64_t r = 0; r < n_voting; ++r) {
    need -= FixedMass(std::exp(double{local[r]} - double{full[r]}));
  }
  return need;
}

void SetKind(const SparsePlan& plan, int64_t head, HeadKind kind, int64_t kept_pairs) {
  plan.kind[head] = static_cast<int32_t>(kind);
  plan.n_stripes[head] = 0;
  plan.n_bands[head] = 0;
  plan.kept_pairs[head] = kept_pairs;
}

// The candidates of one head and the three passes over them.
class HeadSelection {
 public:
  HeadSelection(const SelectKeysArgs& args, int64_t head)
      : args_(args),
        rows_{args.q_begin, args.q_begin + args.n_q},
        head_(head),
        mass_sum_(args.mass_sum.Row<float>(head - args.head_begin)),
        mass_max_(args.mass_max.Row<float>(head - args.head_begin)),
        // As published, only single keys compete.
        band_mass_(args.band_mass.empty() || args.scope == MassScope::kAll
                       ? nullptr
                       : args.band_mass.Row<float>(head - args.head_begin)) {}

  // Takes candidates until their mass reaches `need`. False when they do not fit the plan or cost
  // more than the cap: the head is better dense.
  bool Take(int64_t need);

 private:
  Candidate Stripe(int64_t begin) const;
  Candidate Band(int64_t band) const;
  bool IsForced(const Candidate& c) const { return c.max_mass >= args_.keep_max; }
  int BucketOf(float score) const { return ScoreBucket(best_score_, score); }

  // Calls visit(candidate, stripe_begin or -1, band or -1) for every candidate with mass: stripes
  // by key, then bands.
  template <typename Visit>
  void ForEach(Visit&& visit) const;

  const SelectKeysArgs& args_;
  const EpochRows rows_;
  const int64_t head_;
  const float* mass_sum_;   // [N]
  const float* mass_max_;   // [N]
  const float* band_mass_;  // [ceil(N / 64)] or null
  float best_score_ = 0;
};

Candidate HeadSelection::Stripe(int64_t begin) const {
  double mass = 0;
  float max_mass = 0;
  const int64_t end = std::min(begin + args_.plan.stripe_width, rows_.q_end);
  for (int64_t key = begin; key < end; ++key) {
    mass += mass_sum_[key];
    max_mass = std::max(max_mass, mass_max_[key]);
  }
  return StripeCandidate(rows_, args_.plan, args_.scope, begin, mass, max_mass);
}

Candidate HeadSelection::Band(int64_t band) const {
  return BandCandidate(rows_, args_.plan, band, band_mass_[band]);
}

template <typename Visit>
void HeadSelection::ForEach(Visit&& visit) const {
  for (int64_t begin = 0; begin < rows_.q_end; begin += args_.plan.stripe_width) {
    const Candidate c = Stripe(begin);
    if (c.score > 0) visit(c, begin, int64_t{-1});
  }
  if (band_mass_ == nullptr) return;
  const int64_t n_bands = CeilDiv(rows_.q_end, kBandWidth);
  for (int64_t band = args_.plan.local.window / kBandWidth; band < n_bands; ++band) {
    const Candidate c = Band(band);
    if (c.score > 0) visit(c, int64_t{-1}, band);
  }
}

bool HeadSelection::Take(int64_t need) {
  // Pass 1: what is kept whatever its sum, and the top of the histogram.
  ForEach([&](const Candidate& c, int64_t, int64_t) {
    if (IsForced(c)) {
      need -= c.mass;
    } else {
      best_score_ = std::max(best_score_, c.score);
    }
  });

  // Pass 2: mass by bucket of score, best first; the cut-off is where the need is met.
  std::array<int64_t, kScoreBuckets> bucket_mass{};
  ForEach([&](const Candidate& c, int64_t, int64_t) {
    if (!IsForced(c)) bucket_mass[BucketOf(c.score)] += c.mass;
  });
  int cut = -1;  // the last bucket that is taken, perhaps in part
  int64_t cut_need = 0;
  while (need > 0 && cut + 1 < kScoreBuckets) {
    cut_need = need;
    need -= bucket_mass[++cut];
  }
  if (need > 0) cut_need = std::numeric_limits<int64_t>::max();  // all of it is not enough

  // Pass 3: compaction, in key order.
  const SparsePlan& plan = args_.plan;
  int32_t* stripes = plan.stripes + head_ * plan.max_stripes;
  int32_t* bands = plan.bands + head_ * plan.max_bands;
  int64_t n_stripes = 0;
  int64_t n_bands = 0;
  int64_t kept_pairs = LocalPairs(rows_, plan.local);
  int64_t cost = kept_pairs;
  bool fits = true;
  ForEach([&](const Candidate& c, int64_t stripe, int64_t band) {
    if (!IsForced(c)) {
      const int bucket = BucketOf(c.score);
      if (bucket > cut || (bucket == cut && cut_need <= 0)) return;
      if (bucket == cut) cut_need -= c.mass;
    }
    if (c.pairs == 0) return;
    kept_pairs += c.pairs;
    cost += band < 0 ? c.pairs : PaddedBandCost(c.pairs);
    if (band < 0) {
      if (n_stripes < plan.max_stripes) stripes[n_stripes] = static_cast<int32_t>(stripe);
      fits &= n_stripes++ < plan.max_stripes;
    } else {
      if (n_bands < plan.max_bands) bands[n_bands] = static_cast<int32_t>(band);
      fits &= n_bands++ < plan.max_bands;
    }
  });
  const int64_t dense_pairs = CausalPairs(rows_);
  if (!fits || static_cast<double>(cost) > double{args_.dense_cost_fraction} * dense_pairs) {
    return false;
  }
  plan.kind[head_] = static_cast<int32_t>(HeadKind::kSparse);
  plan.n_stripes[head_] = static_cast<int32_t>(n_stripes);
  plan.n_bands[head_] = static_cast<int32_t>(n_bands);
  plan.kept_pairs[head_] = std::min(kept_pairs, dense_pairs);
  return true;
}

}  // namespace

void SelectKeysOfHead(const SelectKeysArgs& args, int64_t head) {
  if (args.skip != nullptr && args.skip[head]) return;
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  const double alpha = args.alpha[head];
  if (alpha >= 1) return SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  int64_t need = FixedMass(alpha * static_cast<double>(args.n_voting));
  if (args.scope == MassScope::kRemote) {
    need = NeedBeyondLocal(args.alpha[head], args.lse_full, args.lse_local, head, args.n_voting);
    if (need <= 0) {
      return SetKind(args.plan, head, HeadKind::kStreaming, LocalPairs(rows, args.plan.local));
    }
  }
  if (!HeadSelection(args, head).Take(need)) {
    SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  }
}

void SelectStreamingOfHead(const SelectStreamingArgs& args, int64_t head) {
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  args.skip[head] = 1;
  if (args.alpha[head] >= 1) return SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  // As in SelectKeysOfHead.
  if (NeedBeyondLocal(args.alpha[head], args.lse_full, args.lse_local, head, args.n_voting) <= 0) {
    return SetKind(args.plan, head, HeadKind::kStreaming, LocalPairs(rows, args.plan.local));
  }
  args.skip[head] = 0;
}

void AuditHead(const AuditArgs& args, int64_t head) {
  args.repair[head] = 0;
  const int64_t n_audit = args.n_rows - args.n_voting;
  if (n_audit == 0) return;
  const float* lse_full = args.lse_full.Row<float>(head) + args.n_voting;
  float* recall = args.recall.Row<float>(head);
  double sum = 0;
  for (int64_t r = 0; r < n_audit; ++r) {
    const float* lse_sparse = args.lse_sparse.Row<float>(args.rows[args.n_voting + r]);
    recall[r] = std::clamp(std::exp(lse_sparse[head] - lse_full[r]), 0.0f, 1.0f);
    sum += recall[r];
  }
  const bool dense = args.kind[head] == static_cast<int32_t>(HeadKind::kDense);
  const double mean = dense ? 1.0 : sum / static_cast<double>(n_audit);
  args.repair[head] = mean < double{args.floor};
  if (args.target > 0) args.alpha[head] = SteeredAlpha(args.alpha[head], args.target, mean);
}

}  // namespace longhaul
