// Arithmetic of the budget: how many pairs a choice keeps, and what a candidate is worth. Shared by
// kernels/select_keys.cc and the device, which must choose the same keys from the same mass.
//
// Pure functions, constexpr so that a device compiler takes them as they are. Mass is added as
// integers: the sum of a million candidates does not depend on their order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/base/checked_math.h"

namespace longhaul {

// Rows [q_begin, q_end) of an epoch. Pairs are (row, key) with key <= row.
struct EpochRows {
  int64_t q_begin = 0;
  int64_t q_end = 0;
};

namespace select_internal {

// Rows of one tile of the attention kernel. A tile of 64 rows meets a diagonal band in a
// parallelogram that it can only load as a rectangle of kBandWidth + 64 - 1 keys.
inline constexpr int64_t kRowTile = 64;

// 1 + 2 + ... + n.
constexpr int64_t Triangle(int64_t n) { return n <= 0 ? 0 : n * (n + 1) / 2; }

// Sum over x in [0, n) of min(x, limit).
constexpr int64_t SumCapped(int64_t n, int64_t limit) {
  if (n <= 0) return 0;
  const int64_t n_rising = std::min(n, limit + 1);
  return Triangle(n_rising - 1) + (n - n_rising) * limit;
}

// Sum over x in [begin, end) of clamp(x, 0, limit).
constexpr int64_t SumClamped(int64_t begin, int64_t end, int64_t limit) {
  return SumCapped(end, limit) - SumCapped(begin, limit);
}

}  // namespace select_internal

// All visible pairs.
constexpr int64_t CausalPairs(EpochRows rows) {
  return select_internal::Triangle(rows.q_end) - select_internal::Triangle(rows.q_begin);
}

// Pairs whose key is local to their row.
constexpr int64_t LocalPairs(EpochRows rows, LocalPattern local) {
  return select_internal::SumClamped(rows.q_begin + 1, rows.q_end + 1, local.sink + local.window);
}

// Rows to which `key` is remote: what keeping the key adds beyond the local pattern.
constexpr int64_t RemoteRows(EpochRows rows, LocalPattern local, int64_t key) {
  if (key < local.sink) return 0;
  return std::max<int64_t>(0, rows.q_end - std::max(rows.q_begin, key + local.window));
}

// Remote pairs of stripe [begin, begin + width).
constexpr int64_t StripePairs(EpochRows rows, LocalPattern local, int64_t begin, int64_t width) {
  int64_t pairs = 0;
  for (int64_t key = begin; key < begin + width; ++key) pairs += RemoteRows(rows, local, key);
  return pairs;
}

// Remote pairs of diagonal band `band`, which lies outside the window (band >= window / 64).
constexpr int64_t BandPairs(EpochRows rows, LocalPattern local, int64_t band) {
  // Row i meets offsets [64 band, 64 band + 64) as far as key i - offset is not a sink.
  const int64_t first_row = local.sink + band * kBandWidth;  // the first that meets one key
  return select_internal::SumClamped(rows.q_begin - first_row + 1, rows.q_end - first_row + 1,
                                     kBandWidth);
}

// Distances below `distance` between a row and a key that lie in ascending bands.
constexpr int64_t DistancesInBands(const int32_t* bands, int64_t n_bands, int64_t distance) {
  const int32_t* at = std::lower_bound(bands, bands + n_bands, distance / kBandWidth);
  const bool inside = at != bands + n_bands && *at == distance / kBandWidth;
  return (at - bands) * kBandWidth + (inside ? distance % kBandWidth : 0);
}

// Rows to which `key` is remote and which meet it in one of the ascending bands.
constexpr int64_t RowsInBands(EpochRows rows, LocalPattern local, int64_t key, const int32_t* bands,
                              int64_t n_bands) {
  const int64_t end = rows.q_end - key;  // distances of the remote rows: [begin, end)
  const int64_t begin = end - RemoteRows(rows, local, key);
  return DistancesInBands(bands, n_bands, end) - DistancesInBands(bands, n_bands, begin);
}

// What the attention kernel loads for the pairs of a band.
constexpr int64_t PaddedBandCost(int64_t pairs) {
  return CeilDiv(pairs * (kBandWidth + select_internal::kRowTile - 1), kBandWidth);
}

// Mass in units of 2^-40 of one row's softmax. The mass of 2048 rows, counted in a stripe and in a
// band, leaves 11 bits to spare; what a broken model makes beyond is cut off.
constexpr int64_t FixedMass(double mass) {
  constexpr double kUnit = 0x1p40;
  constexpr double kMostMass = 0x1p12;
  if (!(mass > 0)) return 0;  // also not-a-number
  return static_cast<int64_t>(std::min(mass, kMostMass) * kUnit);
}

// FixedMass of stripes and of bands, each added up.
struct TakenMass {
  int64_t stripes = 0;
  int64_t bands = 0;
};

// Whether n of n_rows are at least `share` of them.
constexpr bool IsMostRows(int64_t n, int64_t n_rows, float share) {
  return static_cast<double>(n) >= double{share} * static_cast<double>(n_rows);
}

// What stripes and bands keep together of all remote mass (FixedMass).
// Each remote pair lies in one stripe and in one band, so all candidates together have the remote
// mass twice; how much of it is in both a stripe and a band that are taken, nobody counts. As if
// they met in proportion: just adding stopped where heads whose mass is spread kept 0.65 of it
// instead of 0.95. Exact in integers, and so never falls when a mass grows.
constexpr int64_t UnionMass(TakenMass taken, int64_t remote_mass) {
  if (remote_mass <= 0) return 0;
  const auto stripes = static_cast<uint64_t>(std::min(taken.stripes, remote_mass));
  const auto bands = static_cast<uint64_t>(std::min(taken.bands, remote_mass));
  const auto both = static_cast<unsigned __int128>(stripes) * bands;
  const auto shared = static_cast<int64_t>(both / static_cast<uint64_t>(remote_mass));
  return taken.stripes + taken.bands - shared;
}

// How much of a bucket to take, its stripes first, so that it and what is taken `before` keep
// `need`: more than `before` does, at most what all of it does.
constexpr int64_t NeedOfBucket(int64_t need, TakenMass before, TakenMass bucket,
                               int64_t remote_mass) {
  // What to take of `mass` where all of it would keep `gain` more.
  const auto share = [](int64_t missing, int64_t gain, int64_t mass) {
    if (gain == mass) return missing;
    const double part = static_cast<double>(missing) / static_cast<double>(gain);
    return std::clamp<int64_t>(static_cast<int64_t>(part * static_cast<double>(mass)), 1, mass);
  };
  const TakenMass with_stripes = {before.stripes + bucket.stripes, before.bands};
  const int64_t kept_before = UnionMass(before, remote_mass);
  const int64_t kept_stripes = UnionMass(with_stripes, remote_mass);
  if (need <= kept_stripes) {
    return share(need - kept_before, kept_stripes - kept_before, bucket.stripes);
  }
  const int64_t kept_all =
      UnionMass({with_stripes.stripes, before.bands + bucket.bands}, remote_mass);
  return bucket.stripes + share(need - kept_stripes, kept_all - kept_stripes, bucket.bands);
}

// A stripe or a band that could be kept.
struct Candidate {
  int64_t mass = 0;    // over all voting rows, FixedMass
  int64_t pairs = 0;   // what it adds to the kept pairs; 0 = the local pattern covers it
  float max_mass = 0;  // largest share of one voting row
  float score = 0;     // the larger, the earlier it is taken; 0 = no candidate
};

// mass: sum over the stripe's keys, in key order.
constexpr Candidate StripeCandidate(EpochRows rows, const SparsePlan& plan, MassScope scope,
                                    int64_t begin, double mass, float max_mass) {
  Candidate c;
  if (!(mass > 0)) return c;
  c.mass = FixedMass(mass);
  c.max_mass = max_mass;
  c.pairs = StripePairs(rows, plan.local, begin, plan.stripe_width);
  if (scope == MassScope::kAll) {
    c.score = static_cast<float>(mass);
  } else if (c.pairs > 0) {
    c.score = static_cast<float>(mass / static_cast<double>(c.pairs));
  }
  return c;
}

constexpr Candidate BandCandidate(EpochRows rows, const SparsePlan& plan, int64_t band,
                                  float mass) {
  Candidate c;
  if (!(mass > 0)) return c;
  c.mass = FixedMass(mass);
  c.pairs = BandPairs(rows, plan.local, band);
  if (c.pairs > 0) {
    c.score = static_cast<float>(double{mass} / static_cast<double>(PaddedBandCost(c.pairs)));
  }
  return c;
}

// Histogram of scores: 8 buckets per octave, 32 octaves below the best score; the last bucket holds
// the rest.
inline constexpr int kScoreBuckets = 256;

constexpr int ScoreBucket(float best_score, float score) {
  constexpr int kShift = 20;  // of f32 bits: exponent and three bits of mantissa
  const uint32_t distance = std::bit_cast<uint32_t>(best_score) - std::bit_cast<uint32_t>(score);
  return static_cast<int>(std::min<uint32_t>(distance >> kShift, kScoreBuckets - 1));
}

// The next alpha of a head whose audit rows kept `recall` on average. Up by the whole error: the
// audit is a mean over few rows, but so is the choice that it judges. To the top where a row was
// lost: a mean hides one row in fifty. Down slowly: rows are lost in some epochs and not in others,
// and a head that was repaired would be sampled in vain in every other one.
constexpr float SteeredAlpha(float alpha, float target, double recall, bool any_lost) {
  constexpr double kMaxAlpha = 0.995;  // 1 would mean dense, and nothing would be measured any more
  constexpr double kDownStep = 0.005;
  const double most = std::max(double{target}, kMaxAlpha);
  const double missing = double{target} - recall;
  const double stepped = double{alpha} + (missing > 0 ? missing : -kDownStep);
  return static_cast<float>(any_lost ? most : std::clamp(stepped, double{target}, most));
}

}  // namespace longhaul
