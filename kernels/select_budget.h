// Fixed budgets of vertical-slash (MInference, arXiv 2407.02490) as pure logic on host memory: the
// columns and the diagonal bands of the largest mass of one head, as many as its budget says. One
// head per call and no state, so a backend may run heads in parallel. It does not compute mass, see
// SampleMass.
//
// Shared by kernels/ref and kernels/cpu, as kernels/select_keys.h, which chooses by a share of
// mass; the arithmetic also by the device, which must choose the same.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/args.h"
#include "kernels/base/checked_math.h"
#include "kernels/select_math.h"

namespace longhaul {

// Orders masses as integers; what a broken model makes (not-a-number) comes last.
constexpr uint32_t MassRank(float mass) { return mass > 0 ? std::bit_cast<uint32_t>(mass) : 0; }

// The cut among ranks is found digit by digit, from the top.
inline constexpr int kRankDigitBits = 11;
inline constexpr int kRankDigits = 1 << kRankDigitBits;
inline constexpr int kRankPasses = 3;

// The ranges that the budget of a head chooses from, and how many it takes of each.
struct BudgetRange {
  int64_t first_column = 0;  // keys [first_column, q_end)
  int64_t n_columns = 0;
  int64_t first_band = 0;  // bands [first_band, bands_end)
  int64_t bands_end = 0;
  int64_t n_bands = 0;
  bool dense = false;  // the budget covers all, or the plan does not hold it
};

constexpr BudgetRange RangeOfBudget(EpochRows rows, const SparsePlan& plan, HeadBudget budget) {
  BudgetRange r;
  r.first_column = std::min(plan.local.sink, rows.q_end);
  const int64_t most_columns = rows.q_end - r.first_column;
  r.n_columns = std::clamp<int64_t>(budget.n_columns - plan.local.sink, 0, most_columns);
  r.bands_end = CeilDiv(rows.q_end, kBandWidth);
  r.first_band = std::min(plan.local.window / kBandWidth, r.bands_end);
  const int64_t most_bands = r.bands_end - r.first_band;
  r.n_bands = std::clamp<int64_t>(budget.n_bands - r.first_band, 0, most_bands);
  r.dense =
      r.n_columns > plan.max_stripes || r.n_columns == most_columns || r.n_bands == most_bands;
  return r;
}

// Writes the plan entries of query head `head` (absolute number), see SelectBudgetArgs.
void SelectBudgetOfHead(const SelectBudgetArgs& args, int64_t head);

}  // namespace longhaul
