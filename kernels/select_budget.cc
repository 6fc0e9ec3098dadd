#include "kernels/select_budget.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>

#include "kernels/base/checked_math.h"
#include "kernels/select_math.h"

namespace longhaul {
namespace {

// Orders masses as integers; what a broken model makes (not-a-number) comes last.
uint32_t Rank(float mass) { return mass > 0 ? std::bit_cast<uint32_t>(mass) : 0; }

// The largest of a range: every rank above `rank`, and the first n_equal of those equal to it.
class Cut {
 public:
  Cut(uint32_t rank, int64_t n_equal) : rank_(rank), n_equal_(n_equal) {}
  // To be asked in the order of the range.
  bool Takes(uint32_t rank) { return rank > rank_ || (rank == rank_ && n_equal_-- > 0); }

 private:
  uint32_t rank_;
  int64_t n_equal_;
};

// The cut that takes k of rank_of(begin) ... rank_of(end - 1): digit by digit, so that no sort and
// no memory is needed.
template <typename RankOf>
Cut FindCut(int64_t begin, int64_t end, int64_t k, const RankOf& rank_of) {
  if (k <= 0) return {std::numeric_limits<uint32_t>::max(), 0};
  constexpr int kDigitBits = 11;
  constexpr uint64_t kDigits = 1 << kDigitBits;
  uint64_t found = 0;  // leading digits of the cut
  for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    std::array<int64_t, kDigits> n_of_digit{};
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t rank = rank_of(i);
      if (rank >> (shift + kDigitBits) == found) ++n_of_digit[(rank >> shift) % kDigits];
    }
    uint64_t digit = kDigits - 1;
    while (digit > 0 && n_of_digit[digit] < k) k -= n_of_digit[digit--];
    found = found << kDigitBits | digit;
  }
  return {static_cast<uint32_t>(found), k};
}

// Rows to which `key` is remote and which do not meet it in one of the ascending bands.
int64_t RowsBesideBands(EpochRows rows, LocalPattern local, int64_t key, const int32_t* bands,
                        int64_t n_bands) {
  const int64_t n_rows = RemoteRows(rows, local, key);
  // Kept distances below `distance`.
  const auto n_kept = [&](int64_t distance) {
    const int32_t* at = std::lower_bound(bands, bands + n_bands, distance / kBandWidth);
    const bool inside = at != bands + n_bands && *at == distance / kBandWidth;
    return (at - bands) * kBandWidth + (inside ? distance % kBandWidth : 0);
  };
  const int64_t end = rows.q_end - key;  // distances of the remote rows: [end - n_rows, end)
  return n_rows - (n_kept(end) - n_kept(end - n_rows));
}

}  // namespace

void SelectBudgetOfHead(const SelectBudgetArgs& args, int64_t head) {
  const SparsePlan& plan = args.plan;
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  const HeadBudget& budget = args.budgets[head];
  const float* column_mass = args.mass_sum.Row<float>(head - args.head_begin);
  const float* band_mass = args.band_mass.Row<float>(head - args.head_begin);
  plan.n_stripes[head] = plan.n_bands[head] = 0;

  const int64_t first_column = std::min(plan.local.sink, rows.q_end);
  const int64_t n_columns =
      std::clamp<int64_t>(budget.n_columns - plan.local.sink, 0, rows.q_end - first_column);
  const int64_t bands_end = CeilDiv(rows.q_end, kBandWidth);
  const int64_t first_band = std::min(plan.local.window / kBandWidth, bands_end);
  const int64_t n_bands =
      std::clamp<int64_t>(budget.n_bands - first_band, 0, bands_end - first_band);
  if (n_columns > plan.max_stripes || n_columns == rows.q_end - first_column ||
      n_bands == bands_end - first_band) {
    plan.kind[head] = static_cast<int32_t>(HeadKind::kDense);
    plan.kept_pairs[head] = CausalPairs(rows);
    return;
  }

  int64_t kept_pairs = LocalPairs(rows, plan.local);
  const auto rank_of_band = [&](int64_t b) { return budget.by_place ? 0 : Rank(band_mass[b]); };
  Cut band_cut = FindCut(first_band, bands_end, n_bands, rank_of_band);
  int32_t* bands = plan.bands + head * plan.max_bands;
  int32_t n_listed_bands = 0;
  for (int64_t b = first_band; b < bands_end; ++b) {
    if (!band_cut.Takes(rank_of_band(b))) continue;
    const int64_t pairs = BandPairs(rows, plan.local, b);
    if (pairs == 0) continue;
    bands[n_listed_bands++] = static_cast<int32_t>(b);
    kept_pairs += pairs;
  }

  const auto rank_of_key = [&](int64_t key) {
    return budget.by_place ? 0 : Rank(column_mass[key]);
  };
  Cut column_cut = FindCut(first_column, rows.q_end, n_columns, rank_of_key);
  int32_t* stripes = plan.stripes + head * plan.max_stripes;
  int32_t n_listed_columns = 0;
  for (int64_t key = first_column; key < rows.q_end; ++key) {
    if (!column_cut.Takes(rank_of_key(key)) || RemoteRows(rows, plan.local, key) == 0) continue;
    stripes[n_listed_columns++] = static_cast<int32_t>(key);
    kept_pairs += RowsBesideBands(rows, plan.local, key, bands, n_listed_bands);
  }

  const bool local_only = n_listed_columns == 0 && n_listed_bands == 0;
  plan.kind[head] = static_cast<int32_t>(local_only ? HeadKind::kStreaming : HeadKind::kSparse);
  plan.n_stripes[head] = n_listed_columns;
  plan.n_bands[head] = n_listed_bands;
  plan.kept_pairs[head] = kept_pairs;
}

}  // namespace longhaul
