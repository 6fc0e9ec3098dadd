// Fixed budgets against brute force: which columns and bands are chosen, how many, how many pairs
// that keeps; both host backends the same.
#include "kernels/select_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/checked_math.h"
#include "kernels/select_math.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace longhaul {
namespace {

using testing::PlanOwner;
using testing::Random;
using testing::View;

constexpr LocalPattern kLocal{.sink = 30, .window = 128};

// Two heads with their own budgets over rows [q_begin, q_begin + n_q).
struct Problem {
  Problem(int64_t q_begin, int64_t n_q, std::vector<HeadBudget> head_budgets,
          int64_t max_stripes = 4096)
      : rows{q_begin, q_begin + n_q},
        n_heads(static_cast<int64_t>(head_budgets.size())),
        n_bands(CeilDiv(rows.q_end, kBandWidth)),
        budgets(std::move(head_budgets)),
        sum(n_heads * rows.q_end, 0.0f),
        band(n_heads * n_bands, 0.0f),
        plan(n_heads, kLocal, 1, max_stripes, n_bands),
        args{.q_begin = q_begin,
             .n_q = n_q,
             .head_begin = 0,
             .mass_sum = View(sum, {n_heads, rows.q_end}),
             .band_mass = View(band, {n_heads, n_bands}),
             .budgets = budgets.data(),
             .plan = plan.plan()} {}

  void FillRandom(uint64_t seed) {
    Random random(seed);
    for (float& x : sum) x = random.Uniform() < 0.2 ? 0.0f : std::exp(3 * random.Normal());
    for (float& x : band) x = std::exp(3 * random.Normal());
  }

  EpochRows rows;
  int64_t n_heads;
  int64_t n_bands;
  std::vector<HeadBudget> budgets;
  std::vector<float> sum, band;
  PlanOwner plan;
  SelectBudgetArgs args;
};

// The n largest of mass[begin, end), ties to the lower index, by sorting.
std::set<int32_t> Largest(const float* mass, int64_t begin, int64_t end, int64_t n) {
  std::vector<int32_t> order(end - begin);
  std::iota(order.begin(), order.end(), static_cast<int32_t>(begin));
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return mass[a] > mass[b]; });
  return {order.begin(), order.begin() + n};
}

int64_t KeptPairs(EpochRows rows, const std::vector<int32_t>& stripes,
                  const std::vector<int32_t>& bands) {
  const std::set<int64_t> keys(stripes.begin(), stripes.end());
  const std::set<int64_t> diagonals(bands.begin(), bands.end());
  int64_t n = 0;
  for (int64_t i = rows.q_begin; i < rows.q_end; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      n += j < kLocal.sink || i - j < kLocal.window || keys.count(j) > 0 ||
           diagonals.count((i - j) / kBandWidth) > 0;
    }
  }
  return n;
}

TEST(SelectBudgetTest, EqualsSortingAndCounting) {
  struct Size {
    int64_t q_begin, n_q;
    HeadBudget budget;
  };
  for (const Size& size :
       {Size{1000, 300, {100, 5}}, Size{1024, 64, {31, 2}}, Size{700, 213, {400, 10}},
        Size{0, 513, {60, 3}}, Size{999, 1, {200, 12}}, Size{2000, 100, {30, 9}}}) {
    SCOPED_TRACE(size.q_begin);
    Problem p(size.q_begin, size.n_q, {{0, 0}, size.budget});
    p.FillRandom(/*seed=*/5);
    SelectBudgetOfHead(p.args, 1);
    ASSERT_EQ(p.plan.kind(1), HeadKind::kSparse);
    const float* mass = p.sum.data() + p.rows.q_end;
    std::vector<int32_t> stripes;
    for (int32_t key : Largest(mass, 30, p.rows.q_end, size.budget.n_columns - 30)) {
      if (RemoteRows(p.rows, kLocal, key) > 0) stripes.push_back(key);
    }
    std::vector<int32_t> bands;
    for (int32_t b : Largest(p.band.data() + p.n_bands, 2, p.n_bands, size.budget.n_bands - 2)) {
      if (BandPairs(p.rows, kLocal, b) > 0) bands.push_back(b);
    }
    EXPECT_EQ(p.plan.stripes(1), stripes);
    EXPECT_EQ(p.plan.bands(1), bands);
    EXPECT_EQ(p.plan.kept_pairs(1), KeptPairs(p.rows, stripes, bands));
  }
}

TEST(SelectBudgetTest, BudgetsAreMetExactly) {
  // All keys are remote to the last rows, except sink and window.
  for (int32_t n_columns : {0, 29, 30, 31, 94, 1000}) {
    for (int32_t n_bands : {0, 2, 3, 20}) {
      Problem p(4000, 512, {{n_columns, n_bands}});
      for (int64_t key = 0; key < 4000 - 128; ++key) p.sum[key] = 0.5f;  // ties everywhere
      std::fill(p.band.begin(), p.band.end(), 0.5f);
      SelectBudgetOfHead(p.args, 0);
      EXPECT_EQ(p.plan.stripes(0).size(), std::max(0, n_columns - 30)) << n_columns;
      EXPECT_EQ(p.plan.bands(0).size(), std::max(0, n_bands - 2)) << n_bands;
      EXPECT_EQ(p.plan.kind(0),
                n_columns > 30 || n_bands > 2 ? HeadKind::kSparse : HeadKind::kStreaming);
      if (n_columns <= 30) continue;
      EXPECT_EQ(p.plan.stripes(0).back(), n_columns - 1) << "lower key first";
    }
  }
}

TEST(SelectBudgetTest, ByPlaceIgnoresMass) {
  Problem p(2000, 256, {{100, 13, 1}});
  p.FillRandom(/*seed=*/6);
  SelectBudgetOfHead(p.args, 0);
  std::vector<int32_t> keys(70), bands(11);
  std::iota(keys.begin(), keys.end(), 30);
  std::iota(bands.begin(), bands.end(), 2);
  EXPECT_EQ(p.plan.stripes(0), keys);
  EXPECT_EQ(p.plan.bands(0), bands);
}

TEST(SelectBudgetTest, WhatCoversAllOrDoesNotFitIsDense) {
  constexpr int32_t kHuge = std::numeric_limits<int32_t>::max();
  for (const HeadBudget budget : {HeadBudget{kHuge, 2}, HeadBudget{30, kHuge}, HeadBudget{30, 20},
                                  HeadBudget{1256, 2}, HeadBudget{400, 2}}) {
    Problem p(1000, 256, {budget}, /*max_stripes=*/300);
    SelectBudgetOfHead(p.args, 0);
    EXPECT_EQ(p.plan.kind(0), HeadKind::kDense);
    EXPECT_EQ(p.plan.kept_pairs(0), CausalPairs(p.rows));
  }
  Problem tiny(0, 20, {{1000, 95}});  // not even a whole sink
  SelectBudgetOfHead(tiny.args, 0);
  EXPECT_EQ(tiny.plan.kind(0), HeadKind::kDense);
  EXPECT_EQ(tiny.plan.kept_pairs(0), CausalPairs(tiny.rows));
}

TEST(SelectBudgetTest, HeadsChosenOtherwiseAreLeftAlone) {
  Problem p(1000, 300, {{100, 5}, {100, 5}, {100, 5}});
  p.FillRandom(/*seed=*/7);
  const std::vector<uint8_t> choice = {kChooseByMass, kChooseByBudget, kChosen};
  p.args.choice = choice.data();
  p.plan.Set(0, HeadKind::kStreaming, {});
  p.plan.Set(2, HeadKind::kSparse, {7});
  for (int64_t h = 0; h < 3; ++h) SelectBudgetOfHead(p.args, h);
  EXPECT_EQ(p.plan.kind(0), HeadKind::kStreaming);
  EXPECT_EQ(p.plan.kind(1), HeadKind::kSparse);
  EXPECT_EQ(p.plan.bands(1).size(), 3u);
  EXPECT_EQ(p.plan.stripes(2), (std::vector<int32_t>{7}));
}

TEST(SelectBudgetTest, MassThatIsNoNumberComesLast) {
  Problem p(1000, 256, {{32, 3}});
  p.sum[300] = std::numeric_limits<float>::quiet_NaN();
  p.sum[301] = -1;
  p.sum[400] = std::numeric_limits<float>::infinity();
  p.sum[500] = 1e-30f;
  p.band[4] = -std::numeric_limits<float>::quiet_NaN();
  p.band[9] = 1e-38f;
  SelectBudgetOfHead(p.args, 0);
  EXPECT_EQ(p.plan.stripes(0), (std::vector<int32_t>{400, 500}));
  EXPECT_EQ(p.plan.bands(0), (std::vector<int32_t>{9}));
}

TEST(SelectBudgetTest, HostBackendsAgree) {
  std::vector<HeadBudget> budgets;
  for (int32_t h = 0; h < 6; ++h) budgets.push_back({40 + 60 * h, 3 + h, h == 4 ? 1 : 0});
  Problem a(900, 300, budgets), b(900, 300, budgets);
  a.FillRandom(/*seed=*/7);
  b.FillRandom(/*seed=*/7);
  const std::unique_ptr<Backend> ref = CreateRefBackend(), cpu = CreateCpuBackend(2);
  ref->SelectBudget(a.args);
  cpu->SelectBudget(b.args);
  for (int64_t h = 0; h < 6; ++h) {
    EXPECT_EQ(a.plan.kind(h), HeadKind::kSparse);
    EXPECT_EQ(a.plan.stripes(h), b.plan.stripes(h));
    EXPECT_EQ(a.plan.bands(h), b.plan.bands(h));
    EXPECT_EQ(a.plan.kept_pairs(h), b.plan.kept_pairs(h));
  }
}

}  // namespace
}  // namespace longhaul
