// The candidates of one head and what becomes of them: device code of kernels/cuda/select_keys.cu,
// which says how its kernels follow each other.
#pragma once

#include "kernels/cuda/block_scan.cuh"
#include "kernels/select_math.h"

namespace longhaul::cuda {

inline constexpr int kSelectThreads = 256;
inline constexpr int kItems = 8;  // candidates of a thread, adjacent
inline constexpr int kChunk = kSelectThreads * kItems;
static_assert(kSelectThreads == kScoreBuckets, "one thread per bucket");

struct ChunkTop {
  int64_t forced_mass;
  float best_score;
};

// What taking candidates adds to the plan.
struct Tally {
  int64_t pairs;
  int64_t cost;
  int64_t entries;  // stripes, and bands in the upper half
};

struct ChunkCount {
  Tally sure;  // above the cut-off
  Tally cut;   // all of the cut-off bucket
  int64_t cut_mass;
};

struct ChunkPlace {
  int64_t entries_before;
  int64_t cut_mass_before;
};

struct HeadCut {
  float best_score;
  int32_t cut;       // the last bucket that is taken, perhaps in part
  int64_t cut_need;  // what of its mass is needed
  int32_t open;      // 0: the plan entry is final
};

struct SelectParams {
  EpochRows rows;
  int64_t n_voting = 0;
  MassScope scope = MassScope::kRemote;
  int64_t head_begin = 0;
  int64_t n_keys = 0;
  int64_t n_stripes = 0;  // candidates [0, n_stripes) are stripes
  int64_t n_candidates = 0;
  int64_t first_band = 0;
  int64_t n_chunks = 0;
  float keep_max = 0;
  float dense_cost_fraction = 0;
  SparsePlan plan;
  Global<const float> lse_full;  // [H, R]
  Global<const float> lse_local;
  int64_t lse_full_stride = 0;
  int64_t lse_local_stride = 0;
  Global<const float> mass_sum;  // [heads, N]
  Global<const float> mass_max;
  Global<const float> band_mass;
  int64_t mass_sum_stride = 0;
  int64_t mass_max_stride = 0;
  int64_t band_mass_stride = 0;
  Global<const float> alpha;     // [H]
  Global<const uint8_t> choice;  // [H] or null
  Global<uint64_t> histogram;    // [heads, 512] of stripes, then of bands
  Global<HeadCut> cuts;          // [heads]
  Global<ChunkTop> tops;         // [heads, n_chunks]
  Global<ChunkCount> counts;
  Global<ChunkPlace> places;
};

inline constexpr int kHistogramSize = 2 * kScoreBuckets;

inline constexpr int64_t kOneStripe = 1;
inline constexpr int64_t kOneBand = int64_t{1} << 32;
LH_DEVICE int64_t StripesOf(int64_t entries) { return entries & 0xffffffff; }
LH_DEVICE int64_t BandsOf(int64_t entries) { return entries >> 32; }

LH_DEVICE void AddTo(Tally& sum, const Tally& x) {
  sum.pairs += x.pairs;
  sum.cost += x.cost;
  sum.entries += x.entries;
}

using SelectScan = BlockScan<kSelectThreads>;

LH_DEVICE Tally SumTally(SelectScan& scan, const Tally& x) {
  return {.pairs = scan.Sum(x.pairs), .cost = scan.Sum(x.cost), .entries = scan.Sum(x.entries)};
}

LH_DEVICE void SetKind(const SparsePlan& plan, int64_t head, HeadKind kind, int64_t kept_pairs) {
  Global<int32_t>(plan.kind)[head] = static_cast<int32_t>(kind);
  Global<int32_t>(plan.n_stripes)[head] = 0;
  Global<int32_t>(plan.n_bands)[head] = 0;
  Global<int64_t>(plan.kept_pairs)[head] = kept_pairs;
}

// The mass that thread `first`, `first` + step, ... finds in the local keys of its voting rows.
LH_DEVICE int64_t LocalMass(Global<const float> full, Global<const float> local, int64_t n_voting,
                            int first, int step) {
  int64_t mass = 0;
  for (int64_t r = first; r < n_voting; r += step) {
    const double x = local[r];
    const double y = full[r];
    mass += FixedMass(exp(x - y));
  }
  return mass;
}

LH_DEVICE bool IsSkipped(const SelectParams& p, int64_t head) {
  return p.choice && p.choice[p.head_begin + head] != kChooseByMass;
}

// Candidate `index` of row `head` of the mass tensors.
LH_DEVICE Candidate LoadCandidate(const SelectParams& p, int64_t head, int64_t index) {
  if (index >= p.n_candidates) return {};
  if (index >= p.n_stripes) {
    const int64_t band = p.first_band + index - p.n_stripes;
    return BandCandidate(p.rows, p.plan, band, p.band_mass[head * p.band_mass_stride + band]);
  }
  const int64_t begin = index * p.plan.stripe_width;
  int64_t end = begin + p.plan.stripe_width;
  if (end > p.n_keys) end = p.n_keys;
  double mass = 0;
  float max_mass = 0;
  for (int64_t key = begin; key < end; ++key) {
    mass += static_cast<double>(p.mass_sum[head * p.mass_sum_stride + key]);
    max_mass = fmaxf(max_mass, p.mass_max[head * p.mass_max_stride + key]);
  }
  return StripeCandidate(p.rows, p.plan, p.scope, begin, mass, max_mass);
}

LH_DEVICE bool IsForced(const SelectParams& p, const Candidate& c) {
  return c.max_mass >= p.keep_max;
}

// The candidates of this thread in one chunk.
struct Items {
  Candidate candidate[kItems];
  int64_t first = 0;
};

LH_DEVICE Items LoadItems(const SelectParams& p, int64_t head, int64_t chunk) {
  Items items;
  items.first = chunk * kChunk + ThreadId() * kItems;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    items.candidate[i] = LoadCandidate(p, head, items.first + i);
  }
  return items;
}

// The part of a candidate in the plan; nothing where the local pattern covers it.
LH_DEVICE Tally TallyOf(const SelectParams& p, const Candidate& c, int64_t index) {
  if (c.pairs == 0) return {};
  const bool is_stripe = index < p.n_stripes;
  return {.pairs = c.pairs,
          .cost = is_stripe ? c.pairs : PaddedBandCost(c.pairs),
          .entries = is_stripe ? kOneStripe : kOneBand};
}

enum class Verdict { kLeft, kTaken, kCut };

LH_DEVICE Verdict Judge(const SelectParams& p, const HeadCut& cut, const Candidate& c) {
  if (!(c.score > 0)) return Verdict::kLeft;
  if (IsForced(p, c)) return Verdict::kTaken;
  const int bucket = ScoreBucket(cut.best_score, c.score);
  if (bucket < cut.cut) return Verdict::kTaken;
  return bucket == cut.cut && cut.cut_need > 0 ? Verdict::kCut : Verdict::kLeft;
}

// What this thread takes of its items: bit i of the result is item i. Of the cut-off bucket,
// candidates are taken in order as long as those before them have not met its need.
LH_DEVICE uint32_t TakenItems(const SelectParams& p, const HeadCut& cut, const Items& items,
                              int64_t cut_mass_before, SelectScan& scan) {
  int64_t mass = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    if (Judge(p, cut, items.candidate[i]) == Verdict::kCut) mass += items.candidate[i].mass;
  }
  int64_t total = 0;
  int64_t before = cut_mass_before + scan.Exclusive(mass, total);
  uint32_t taken = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    const Verdict verdict = Judge(p, cut, items.candidate[i]);
    bool take = verdict == Verdict::kTaken;
    if (verdict == Verdict::kCut) {
      take = before < cut.cut_need;
      before += items.candidate[i].mass;
    }
    if (take) taken |= 1u << i;
  }
  return taken;
}

LH_DEVICE Tally TallyItems(const SelectParams& p, const Items& items, uint32_t taken) {
  Tally sum = {};
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    if ((taken >> i & 1) != 0) AddTo(sum, TallyOf(p, items.candidate[i], items.first + i));
  }
  return sum;
}

}  // namespace longhaul::cuda
