#include "kernels/select_keys.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// Rows of one tile of the attention kernel. A tile of 64 rows meets a diagonal band in a
// parallelogram that it can only load as a rectangle of kBandWidth + 64 - 1 keys.
constexpr int64_t kRowTile = 64;

// 1 + 2 + ... + n.
int64_t Triangle(int64_t n) { return n <= 0 ? 0 : n * (n + 1) / 2; }

// Sum over x in [begin, end) of clamp(x, 0, limit).
int64_t SumClamped(int64_t begin, int64_t end, int64_t limit) {
  const auto prefix = [limit](int64_t n) {  // over x in [0, n)
    if (n <= 0) return int64_t{0};
    const int64_t n_rising = std::min(n, limit + 1);
    return Triangle(n_rising - 1) + (n - n_rising) * limit;
  };
  return prefix(end) - prefix(begin);
}

int64_t PaddedBandCost(int64_t pairs) {
  return CeilDiv(pairs * (kBandWidth + kRowTile - 1), kBandWidth);
}

// Sum over the voting rows of the mass that the local pattern holds.
double LocalMass(TensorView lse_full, TensorView lse_local, int64_t head, int64_t n_voting) {
  const float* full = lse_full.Row<float>(head);
  const float* local = lse_local.Row<float>(head);
  double mass = 0;
  for (int64_t r = 0; r < n_voting; ++r) mass += std::exp(double{local[r]} - double{full[r]});
  return mass;
}

void SetKind(const SparsePlan& plan, int64_t head, HeadKind kind, int64_t kept_pairs) {
  plan.kind[head] = static_cast<int32_t>(kind);
  plan.n_stripes[head] = 0;
  plan.n_bands[head] = 0;
  plan.kept_pairs[head] = kept_pairs;
}

struct Candidate {
  double mass = 0;     // over all voting rows
  float max_mass = 0;  // largest share of one voting row
  int64_t pairs = 0;   // what it adds to the kept pairs; 0 = the local pattern covers it
  float score = 0;     // the larger, the earlier it is taken
};

// The candidates of one head and the three passes over them.
class HeadBudget {
 public:
  HeadBudget(const SelectKeysArgs& args, int64_t head)
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
  bool Take(double need);

 private:
  // 8 buckets per octave, 32 octaves below the best score; the last bucket holds the rest.
  static constexpr int kBuckets = 256;
  static constexpr int kBucketShift = 20;  // of f32 bits: exponent and three bits of mantissa

  Candidate Stripe(int64_t begin) const;
  Candidate Band(int64_t band) const;
  bool IsForced(const Candidate& c) const { return c.max_mass >= args_.keep_max; }
  int BucketOf(float score) const {
    const uint32_t distance = std::bit_cast<uint32_t>(best_score_) - std::bit_cast<uint32_t>(score);
    return std::min<uint32_t>(distance >> kBucketShift, kBuckets - 1);
  }

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

Candidate HeadBudget::Stripe(int64_t begin) const {
  const SparsePlan& plan = args_.plan;
  Candidate c;
  const int64_t end = std::min(begin + plan.stripe_width, rows_.q_end);
  for (int64_t key = begin; key < end; ++key) {
    c.mass += mass_sum_[key];
    c.max_mass = std::max(c.max_mass, mass_max_[key]);
  }
  if (c.mass <= 0) return c;
  c.pairs = StripePairs(rows_, plan.local, begin, plan.stripe_width);
  if (args_.scope == MassScope::kAll) {
    c.score = static_cast<float>(c.mass);
  } else if (c.pairs > 0) {
    c.score = static_cast<float>(c.mass / static_cast<double>(c.pairs));
  }
  return c;
}

Candidate HeadBudget::Band(int64_t band) const {
  Candidate c;
  c.mass = band_mass_[band];
  if (c.mass <= 0) return c;
  c.pairs = BandPairs(rows_, args_.plan.local, band);
  if (c.pairs > 0) {
    c.score = static_cast<float>(c.mass / static_cast<double>(PaddedBandCost(c.pairs)));
  }
  return c;
}

template <typename Visit>
void HeadBudget::ForEach(Visit&& visit) const {
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

bool HeadBudget::Take(double need) {
  // Pass 1: what is kept whatever its sum, and the top of the histogram.
  ForEach([&](const Candidate& c, int64_t, int64_t) {
    if (IsForced(c)) {
      need -= c.mass;
    } else {
      best_score_ = std::max(best_score_, c.score);
    }
  });

  // Pass 2: mass by bucket of score, best first; the cut-off is where the need is met.
  std::array<double, kBuckets> bucket_mass{};
  ForEach([&](const Candidate& c, int64_t, int64_t) {
    if (!IsForced(c)) bucket_mass[BucketOf(c.score)] += c.mass;
  });
  int cut = -1;  // the last bucket that is taken, perhaps in part
  double cut_need = 0;
  while (need > 0 && cut + 1 < kBuckets) {
    cut_need = need;
    need -= bucket_mass[++cut];
  }
  if (need > 0) cut_need = std::numeric_limits<double>::infinity();  // all of it is not enough

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

// A step of the whole error: the audit is a mean over few rows, but so is the choice that it judges.
float SteeredAlpha(float alpha, float target, double recall) {
  constexpr double kMaxAlpha = 0.995;  // 1 would mean dense, and nothing would be measured any more
  const double stepped = double{alpha} + double{target} - recall;
  return static_cast<float>(
      std::clamp(stepped, double{target}, std::max(double{target}, kMaxAlpha)));
}

}  // namespace

int64_t CausalPairs(EpochRows rows) { return Triangle(rows.q_end) - Triangle(rows.q_begin); }

int64_t LocalPairs(EpochRows rows, LocalPattern local) {
  return SumClamped(rows.q_begin + 1, rows.q_end + 1, local.sink + local.window);
}

int64_t RemoteRows(EpochRows rows, LocalPattern local, int64_t key) {
  if (key < local.sink) return 0;
  return std::max<int64_t>(0, rows.q_end - std::max(rows.q_begin, key + local.window));
}

int64_t StripePairs(EpochRows rows, LocalPattern local, int64_t begin, int64_t width) {
  int64_t pairs = 0;
  for (int64_t key = begin; key < begin + width; ++key) pairs += RemoteRows(rows, local, key);
  return pairs;
}

int64_t BandPairs(EpochRows rows, LocalPattern local, int64_t band) {
  // Row i meets offsets [64 band, 64 band + 64) as far as key i - offset is not a sink.
  const int64_t first_row = local.sink + band * kBandWidth;  // the first that meets one key
  return SumClamped(rows.q_begin - first_row + 1, rows.q_end - first_row + 1, kBandWidth);
}

void SelectKeysOfHead(const SelectKeysArgs& args, int64_t head) {
  if (args.skip != nullptr && args.skip[head]) return;
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  const double alpha = args.alpha[head];
  if (alpha >= 1) return SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  double need = alpha * static_cast<double>(args.n_voting);
  if (args.scope == MassScope::kRemote) {
    need -= LocalMass(args.lse_full, args.lse_local, head, args.n_voting);
    if (need <= 0) {
      return SetKind(args.plan, head, HeadKind::kStreaming, LocalPairs(rows, args.plan.local));
    }
  }
  if (!HeadBudget(args, head).Take(need)) {
    SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  }
}

void SelectStreamingOfHead(const SelectStreamingArgs& args, int64_t head) {
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  const double alpha = args.alpha[head];
  args.skip[head] = 1;
  if (alpha >= 1) return SetKind(args.plan, head, HeadKind::kDense, CausalPairs(rows));
  // The same expression as in SelectKeysOfHead: the two must agree to the last bit.
  const double need = alpha * static_cast<double>(args.n_voting) -
                      LocalMass(args.lse_full, args.lse_local, head, args.n_voting);
  if (need <= 0) {
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
