#include "kernels/select_keys.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// Mass of the voting rows in the local pattern, FixedMass.
int64_t LocalMass(TensorView lse_full, TensorView lse_local, int64_t head, int64_t n_voting) {
  const float* full = lse_full.Row<float>(head);
  const float* local = lse_local.Row<float>(head);
  int64_t mass = 0;
  for (int64_t r = 0; r < n_voting; ++r) {
    mass += FixedMass(std::exp(double{local[r]} - double{full[r]}));
  }
  return mass;
}

// See SelectStreamingArgs.
bool GetsBudget(const SelectStreamingArgs& args, int64_t head) {
  const float* full = args.lse_full.Row<float>(head);
  const float* local = args.lse_local.Row<float>(head);
  bool loses_rows = args.alpha[head] > args.target;
  int64_t n_local_rows = 0;
  for (int64_t r = 0; r < args.n_voting; ++r) {
    const double share = std::exp(double{local[r]} - double{full[r]});
    loses_rows |= share < args.lost;
    n_local_rows += share >= kLocalRow;
  }
  return loses_rows && IsMostRows(n_local_rows, args.n_voting, args.budget_rows);
}

int64_t TargetMass(float alpha, int64_t n_voting) {
  return FixedMass(double{alpha} * static_cast<double>(n_voting));
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

  // Takes candidates until they keep `need` of `remote_mass`, all that there is to take. False when
  // they do not fit the plan or cost more than the cap: the head is better dense.
  bool Take(int64_t need, int64_t remote_mass);

 private:
  // Where taking by score ends.
  struct Cut {
    int bucket = -1;   // the last one that is taken, perhaps in part
    int64_t need = 0;  // what of its mass is needed
  };
  // Pass 1: the best score of what is not forced; returns the mass of what is.
  int64_t FindBestScore();
  // Pass 2: mass by bucket of score, best first.
  Cut FindCut(int64_t need, int64_t forced_mass, int64_t remote_mass) const;
  // Pass 3: compaction, in key order.
  bool WriteLists(Cut cut) const;
  // Pairs of the plan's stripes that lie in its bands too.
  int64_t PairsInBoth() const;

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

int64_t HeadSelection::FindBestScore() {
  int64_t forced_mass = 0;
  ForEach([&](const Candidate& c, int64_t, int64_t) {
    if (IsForced(c)) {
      forced_mass += c.mass;
    } else {
      best_score_ = std::max(best_score_, c.score);
    }
  });
  return forced_mass;
}

HeadSelection::Cut HeadSelection::FindCut(int64_t need, int64_t forced_mass,
                                          int64_t remote_mass) const {
  std::array<TakenMass, kScoreBuckets> buckets{};
  ForEach([&](const Candidate& c, int64_t, int64_t band) {
    if (IsForced(c)) return;
    TakenMass& bucket = buckets[BucketOf(c.score)];
    (band < 0 ? bucket.stripes : bucket.bands) += c.mass;
  });
  TakenMass taken = {.stripes = forced_mass};
  if (UnionMass(taken, remote_mass) >= need) return {};
  for (int b = 0; b < kScoreBuckets; ++b) {
    const TakenMass before = taken;
    taken.stripes += buckets[b].stripes;
    taken.bands += buckets[b].bands;
    if (UnionMass(taken, remote_mass) < need) continue;
    return {.bucket = b, .need = NeedOfBucket(need, before, buckets[b], remote_mass)};
  }
  return {.bucket = kScoreBuckets - 1, .need = std::numeric_limits<int64_t>::max()};
}

bool HeadSelection::WriteLists(Cut cut) const {
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
      if (bucket > cut.bucket || (bucket == cut.bucket && cut.need <= 0)) return;
      if (bucket == cut.bucket) cut.need -= c.mass;
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
  const double most = double{args_.dense_cost_fraction} * static_cast<double>(CausalPairs(rows_));
  if (!fits || static_cast<double>(cost) > most) return false;
  plan.kind[head_] = static_cast<int32_t>(HeadKind::kSparse);
  plan.n_stripes[head_] = static_cast<int32_t>(n_stripes);
  plan.n_bands[head_] = static_cast<int32_t>(n_bands);
  plan.kept_pairs[head_] = kept_pairs - PairsInBoth();
  return true;
}

int64_t HeadSelection::PairsInBoth() const {
  const SparsePlan& plan = args_.plan;
  const int64_t n_bands = plan.n_bands[head_];
  if (n_bands == 0) return 0;
  const int32_t* stripes = plan.stripes + head_ * plan.max_stripes;
  const int32_t* bands = plan.bands + head_ * plan.max_bands;
  int64_t pairs = 0;
  for (int32_t s = 0; s < plan.n_stripes[head_]; ++s) {
    for (int64_t key = stripes[s]; key < stripes[s] + plan.stripe_width; ++key) {
      pairs += RowsInBands(rows_, plan.local, key, bands, n_bands);
    }
  }
  return pairs;
}

bool HeadSelection::Take(int64_t need, int64_t remote_mass) {
  const int64_t forced_mass = FindBestScore();
  return WriteLists(FindCut(need, forced_mass, remote_mass));
}

}  // namespace

void SelectKeysOfHead(const SelectKeysArgs& args, int64_t head) {
  if (args.choice != nullptr && args.choice[head] != kChooseByMass) return;
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  if (args.alpha[head] >= 1) return SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  int64_t need = TargetMass(args.alpha[head], args.n_voting);
  int64_t remote_mass = TargetMass(1, args.n_voting);
  if (args.scope == MassScope::kRemote) {
    const int64_t local_mass = LocalMass(args.lse_full, args.lse_local, head, args.n_voting);
    need -= local_mass;
    remote_mass -= local_mass;
    if (need <= 0) {
      return SetKind(args.plan, head, HeadKind::kStreaming, LocalPairs(rows, args.plan.local));
    }
  }
  if (!HeadSelection(args, head).Take(need, remote_mass)) {
    SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  }
}

void SelectStreamingOfHead(const SelectStreamingArgs& args, int64_t head) {
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  args.choice[head] = kChosen;
  const float alpha = args.alpha[head];
  if (alpha >= 1) return SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  if (GetsBudget(args, head)) {
    args.choice[head] = kChooseByBudget;
  } else if (TargetMass(alpha, args.n_voting) <=  // as in SelectKeysOfHead
             LocalMass(args.lse_full, args.lse_local, head, args.n_voting)) {
    SetKind(args.plan, head, HeadKind::kStreaming, LocalPairs(rows, args.plan.local));
  } else {
    args.choice[head] = kChooseByMass;
  }
}

void AuditHead(const AuditArgs& args, int64_t head) {
  args.repair[head] = 0;
  const int64_t n_audit = args.n_rows - args.n_voting;
  if (n_audit == 0) return;
  const float* lse_full = args.lse_full.Row<float>(head);
  float* recall = args.recall.Row<float>(head);
  double sum = 0;
  bool any_lost = false;
  for (int64_t r = 0; r < args.n_rows; ++r) {
    const float* lse_sparse = args.lse_sparse.Row<float>(args.rows[r]);
    const float kept = std::clamp(std::exp(lse_sparse[head] - lse_full[r]), 0.0f, 1.0f);
    any_lost |= kept < args.lost;
    if (r < args.n_voting) continue;
    recall[r - args.n_voting] = kept;
    sum += kept;
  }
  const bool dense = args.kind[head] == static_cast<int32_t>(HeadKind::kDense);
  const double mean = dense ? 1.0 : sum / static_cast<double>(n_audit);
  args.repair[head] = mean < double{args.floor};
  if (args.target <= 0) return;
  args.alpha[head] = SteeredAlpha(args.alpha[head], args.target, mean, any_lost && !dense);
}

}  // namespace longhaul
