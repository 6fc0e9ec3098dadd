#include "kernels/select_budget.h"

#include <algorithm>
#include <array>
#include <limits>

namespace longhaul {
namespace {

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
  uint64_t found = 0;  // leading digits of the cut
  for (int shift = (kRankPasses - 1) * kRankDigitBits; shift >= 0; shift -= kRankDigitBits) {
    std::array<int64_t, kRankDigits> n_of_digit{};
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t rank = rank_of(i);
      if (rank >> (shift + kRankDigitBits) == found) ++n_of_digit[(rank >> shift) % kRankDigits];
    }
    uint64_t digit = kRankDigits - 1;
    while (digit > 0 && n_of_digit[digit] < k) k -= n_of_digit[digit--];
    found = found << kRankDigitBits | digit;
  }
  return {static_cast<uint32_t>(found), k};
}

}  // namespace

void SelectBudgetOfHead(const SelectBudgetArgs& args, int64_t head) {
  const SparsePlan& plan = args.plan;
  const EpochRows rows{args.q_begin, args.q_begin + args.n_q};
  const HeadBudget& budget = args.budgets[head];
  const float* column_mass = args.mass_sum.Row<float>(head - args.head_begin);
  const float* band_mass = args.band_mass.Row<float>(head - args.head_begin);
  if (args.choice != nullptr && args.choice[head] != kChooseByBudget) return;
  plan.n_stripes[head] = plan.n_bands[head] = 0;

  const BudgetRange range = RangeOfBudget(rows, plan, budget);
  if (range.dense) {
    plan.kind[head] = static_cast<int32_t>(HeadKind::kDense);
    plan.kept_pairs[head] = CausalPairs(rows);
    return;
  }

  int64_t kept_pairs = LocalPairs(rows, plan.local);
  const auto rank_of_band = [&](int64_t b) { return budget.by_place ? 0 : MassRank(band_mass[b]); };
  Cut band_cut = FindCut(range.first_band, range.bands_end, range.n_bands, rank_of_band);
  int32_t* bands = plan.bands + head * plan.max_bands;
  int32_t n_listed_bands = 0;
  for (int64_t b = range.first_band; b < range.bands_end; ++b) {
    if (!band_cut.Takes(rank_of_band(b))) continue;
    const int64_t pairs = BandPairs(rows, plan.local, b);
    if (pairs == 0) continue;
    bands[n_listed_bands++] = static_cast<int32_t>(b);
    kept_pairs += pairs;
  }

  const auto rank_of_key = [&](int64_t key) {
    return budget.by_place ? 0 : MassRank(column_mass[key]);
  };
  Cut column_cut = FindCut(range.first_column, rows.q_end, range.n_columns, rank_of_key);
  int32_t* stripes = plan.stripes + head * plan.max_stripes;
  int32_t n_listed_columns = 0;
  for (int64_t key = range.first_column; key < rows.q_end; ++key) {
    if (!column_cut.Takes(rank_of_key(key)) || RemoteRows(rows, plan.local, key) == 0) continue;
    stripes[n_listed_columns++] = static_cast<int32_t>(key);
    kept_pairs += RemoteRows(rows, plan.local, key) -
                  RowsInBands(rows, plan.local, key, bands, n_listed_bands);
  }

  const bool local_only = n_listed_columns == 0 && n_listed_bands == 0;
  plan.kind[head] = static_cast<int32_t>(local_only ? HeadKind::kStreaming : HeadKind::kSparse);
  plan.n_stripes[head] = n_listed_columns;
  plan.n_bands[head] = n_listed_bands;
  plan.kept_pairs[head] = kept_pairs;
}

}  // namespace longhaul
