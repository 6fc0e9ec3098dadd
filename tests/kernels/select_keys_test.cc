// The budget against brute force: pair counts, which keys are chosen, caps, streaming, audit.
#include "kernels/select_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/checked_math.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace longhaul {
namespace {

using testing::PlanOwner;
using testing::Random;
using testing::View;

bool IsLocal(LocalPattern local, int64_t row, int64_t key) {
  return key < local.sink || row - key < local.window;
}

TEST(PairCountTest, EqualsEnumeration) {
  for (const LocalPattern local :
       {LocalPattern{0, 64}, LocalPattern{64, 64}, LocalPattern{3, 128}}) {
    for (const EpochRows rows : {EpochRows{0, 1}, EpochRows{0, 300}, EpochRows{63, 64},
                                 EpochRows{100, 213}, EpochRows{513, 700}}) {
      int64_t causal = 0, n_local = 0;
      std::vector<int64_t> remote(rows.q_end, 0), band(rows.q_end / kBandWidth + 1, 0);
      for (int64_t i = rows.q_begin; i < rows.q_end; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          ++causal;
          if (IsLocal(local, i, j)) {
            ++n_local;
          } else {
            ++remote[j];
            ++band[(i - j) / kBandWidth];
          }
        }
      }
      EXPECT_EQ(CausalPairs(rows), causal);
      EXPECT_EQ(LocalPairs(rows, local), n_local);
      for (int64_t j = 0; j < rows.q_end; ++j) {
        EXPECT_EQ(RemoteRows(rows, local, j), remote[j]) << "key " << j;
      }
      for (int64_t s = 0; s < rows.q_end; s += 8) {
        int64_t sum = 0;
        for (int64_t j = s; j < std::min(s + 8, rows.q_end); ++j) sum += remote[j];
        EXPECT_EQ(StripePairs(rows, local, s, 8), sum);
      }
      for (int64_t b = local.window / kBandWidth; b <= (rows.q_end - 1) / kBandWidth; ++b) {
        EXPECT_EQ(BandPairs(rows, local, b), band[b]) << "band " << b;
      }
    }
  }
}

// One head; mass is set by hand. 10 voting rows.
class SelectKeysTest : public ::testing::Test {
 protected:
  static constexpr int64_t kVoting = 10;

  SelectKeysTest() { Reset(/*q_begin=*/2048, /*n_q=*/256, {.sink = 64, .window = 128}, 1); }

  void Reset(int64_t q_begin, int64_t n_q, LocalPattern local, int64_t width,
             int64_t max_stripes = 4096) {
    n_keys_ = q_begin + n_q;
    sum_.assign(n_keys_, 0.0f);
    max_.assign(n_keys_, 0.0f);
    band_.assign(CeilDiv(n_keys_, kBandWidth), 0.0f);
    plan_ = std::make_unique<PlanOwner>(1, local, width, max_stripes, /*max_bands=*/64);
    args_ = {.q_begin = q_begin,
             .n_q = n_q,
             .n_voting = kVoting,
             .head_begin = 0,
             .lse_full = View(lse_full_, {1, kVoting}),
             .lse_local = View(lse_local_, {1, kVoting}),
             .mass_sum = View(sum_, {1, n_keys_}),
             .mass_max = View(max_, {1, n_keys_}),
             .band_mass = View(band_, {1, static_cast<int64_t>(band_.size())}),
             .alpha = &alpha_,
             .plan = plan_->plan()};
  }
  // Every voting row has this share in its local keys.
  void SetLocal(double share) { lse_local_.assign(kVoting, static_cast<float>(std::log(share))); }
  HeadKind Select() {
    SelectKeysOfHead(args_, 0);
    return plan_->kind(0);
  }
  EpochRows rows() const { return {args_.q_begin, args_.q_begin + args_.n_q}; }

  int64_t n_keys_ = 0;
  float alpha_ = 0.9f;
  std::vector<float> lse_full_ = std::vector<float>(kVoting, 0.0f);
  std::vector<float> lse_local_ = std::vector<float>(kVoting, std::log(0.5f));
  std::vector<float> sum_, max_, band_;
  std::unique_ptr<PlanOwner> plan_;
  SelectKeysArgs args_;
};

TEST_F(SelectKeysTest, LocalMassAloneStreams) {
  SetLocal(0.91);
  sum_[500] = 5;
  EXPECT_EQ(Select(), HeadKind::kStreaming);
  EXPECT_TRUE(plan_->stripes(0).empty());
  EXPECT_EQ(plan_->kept_pairs(0), LocalPairs(rows(), args_.plan.local));
}

TEST_F(SelectKeysTest, AlphaOneIsDense) {
  SetLocal(1);
  alpha_ = 1;
  EXPECT_EQ(Select(), HeadKind::kDense);
  EXPECT_EQ(plan_->kept_pairs(0), CausalPairs(rows()));
}

TEST_F(SelectKeysTest, TakesTheHeaviestUntilAlpha) {  // needs 9 - 5 = 4
  sum_[100] = 1, sum_[700] = 2.5f, sum_[1500] = 0.25f, sum_[900] = 0.6f;
  EXPECT_EQ(Select(), HeadKind::kSparse);
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{100, 700, 900}));
  EXPECT_EQ(plan_->kept_pairs(0), LocalPairs(rows(), args_.plan.local) + 3 * 256);
}

TEST_F(SelectKeysTest, TiesGoToTheLowerKey) {
  for (int64_t key = 200; key < 1200; ++key) sum_[key] = 0.01f;
  EXPECT_EQ(Select(), HeadKind::kSparse);
  const std::vector<int32_t> stripes = plan_->stripes(0);
  ASSERT_NEAR(static_cast<double>(stripes.size()), 400, 1);  // 4 / 0.01, rounding of the sum
  for (size_t i = 0; i < stripes.size(); ++i) EXPECT_EQ(stripes[i], 200 + static_cast<int32_t>(i));
}

TEST_F(SelectKeysTest, CoversTheTargetWithFewKeys) {
  Random random(77);
  double total = 0;
  for (int64_t key = 64; key < 1900; ++key) total += sum_[key] = std::exp(2 * random.Normal());
  for (float& x : sum_) x *= static_cast<float>(5 / total);
  ASSERT_EQ(Select(), HeadKind::kSparse);
  double taken = 0;
  for (int32_t key : plan_->stripes(0)) taken += sum_[key];
  EXPECT_GE(taken, 4 - 1e-5);
  // Not more than the smallest possible number plus those of one bucket (scores within 2^(1/8)).
  std::vector<float> sorted = sum_;
  std::sort(sorted.rbegin(), sorted.rend());
  size_t n_best = 0;
  for (double sum = 0; sum < 4; ++n_best) sum += sorted[n_best];
  EXPECT_GE(plan_->stripes(0).size(), n_best);
  EXPECT_LE(plan_->stripes(0).size(), n_best * 105 / 100 + 1);
}

TEST_F(SelectKeysTest, KeepMaxTakesAKeyWhateverItsSum) {
  sum_[700] = 4.5f;
  sum_[333] = 0.3f, max_[333] = 0.3f;
  args_.keep_max = 0.25f;
  Select();
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{333, 700}));
  args_.keep_max = 2.0f;
  Select();
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{700}));
}

TEST_F(SelectKeysTest, KeysThatAreLocalToEveryRowAreNoCandidates) {
  sum_[10] = 3;    // sink
  sum_[2300] = 3;  // in the window of every row that sees it
  sum_[700] = 1;
  EXPECT_EQ(Select(), HeadKind::kSparse);
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{700}));
}

TEST_F(SelectKeysTest, BandBeatsKeysOfTheSameMassOnlyAtItsPaddedCost) {
  band_[10] = 4;
  for (int64_t key = 500; key < 600; ++key) sum_[key] = 0.04f;
  Select();  // the band: 4 / (64 * 127 / 64) per row = 0.0315; a key: 0.04
  EXPECT_TRUE(plan_->bands(0).empty());
  for (int64_t key = 500; key < 600; ++key) sum_[key] = 0.025f;
  Select();
  EXPECT_EQ(plan_->bands(0), (std::vector<int32_t>{10}));
  EXPECT_TRUE(plan_->stripes(0).empty());
  EXPECT_EQ(plan_->kept_pairs(0),
            LocalPairs(rows(), args_.plan.local) + BandPairs(rows(), args_.plan.local, 10));
}

// Each pair lies in a stripe and in a band. Adding both masses up would meet the need with half of
// the pairs that it takes.
TEST_F(SelectKeysTest, MassInStripesAndBandsCountsOnce) {
  // The 5 that local keys do not hold, evenly over keys, and most of it again in eight bands.
  for (int64_t key = 100; key < 2100; ++key) sum_[key] = 0.0025f;
  for (int64_t band = 5; band < 13; ++band) band_[band] = 0.4f;
  args_.dense_cost_fraction = 2;
  ASSERT_EQ(Select(), HeadKind::kSparse);
  ASSERT_EQ(plan_->bands(0).size(), 8u);
  const double stripes = 0.0025 * static_cast<double>(plan_->stripes(0).size());
  EXPECT_NEAR(stripes + 3.2 - stripes * 3.2 / 5, 4, 0.01);
}

TEST_F(SelectKeysTest, PairsInAStripeAndABandAreCountedOnce) {
  for (int64_t width : {1, 8}) {
    Reset(2048, 256, {.sink = 64, .window = 128}, width);
    band_[10] = band_[11] = band_[20] = 1.3f;
    for (int64_t key : {70, 960, 1400, 1700, 2090}) sum_[key] = 0.4f;
    alpha_ = 0.999f;
    ASSERT_EQ(Select(), HeadKind::kSparse);
    const std::vector<int32_t> stripes = plan_->stripes(0), bands = plan_->bands(0);
    ASSERT_EQ(stripes.size(), 5u);
    ASSERT_EQ(bands.size(), 3u);
    int64_t n_kept = 0;
    for (int64_t i = rows().q_begin; i < rows().q_end; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const bool in_stripe = std::count(stripes.begin(), stripes.end(), j / width * width) > 0;
        const bool in_band = std::count(bands.begin(), bands.end(), (i - j) / kBandWidth) > 0;
        n_kept += IsLocal(args_.plan.local, i, j) || in_stripe || in_band;
      }
    }
    EXPECT_EQ(plan_->kept_pairs(0), n_kept) << "width " << width;
  }
}

TEST(UnionMassTest, GrowsWithBothAndReachesAll) {
  const int64_t all = FixedMass(40);
  EXPECT_EQ(UnionMass({all / 2, all / 2}, all), all - all / 4);
  EXPECT_EQ(UnionMass({all, 0}, all), all);
  EXPECT_EQ(UnionMass({2 * all, 3}, all), 2 * all);  // what a broken model makes
  EXPECT_EQ(UnionMass({5, 5}, 0), 0);
  Random random(5);
  for (int i = 0; i < 1000; ++i) {
    const auto stripes = static_cast<int64_t>(random.Below(1000000007)) * (all >> 30);
    const auto bands = static_cast<int64_t>(random.Below(1000000007)) * (all >> 30);
    const int64_t kept = UnionMass({stripes, bands}, all);
    EXPECT_GE(kept, std::max(stripes, bands));
    EXPECT_LE(kept, std::min(stripes + bands, all));
    EXPECT_GE(UnionMass({stripes + 1, bands}, all), kept);
    EXPECT_GE(UnionMass({stripes, bands + 1}, all), kept);
  }
}

TEST_F(SelectKeysTest, WideStripesAreAlignedAndSummed) {
  for (int64_t width : {8, 16, 64}) {
    Reset(2048, 256, {.sink = 64, .window = 128}, width);
    sum_[1000] = 2, sum_[1001] = 2;
    EXPECT_EQ(Select(), HeadKind::kSparse);
    EXPECT_EQ(plan_->stripes(0),
              (std::vector<int32_t>{static_cast<int32_t>(1000 / width * width)}));
    EXPECT_EQ(plan_->kept_pairs(0), LocalPairs(rows(), args_.plan.local) + 256 * width);
  }
}

TEST_F(SelectKeysTest, WhatDoesNotFitOrCostsTooMuchIsDense) {
  for (int64_t key = 200; key < 1200; ++key) sum_[key] = 0.01f;
  args_.dense_cost_fraction = 0.1f;
  EXPECT_EQ(Select(), HeadKind::kDense);
  EXPECT_EQ(plan_->kept_pairs(0), CausalPairs(rows()));
  Reset(2048, 256, {.sink = 64, .window = 128}, 1, /*max_stripes=*/100);
  for (int64_t key = 200; key < 1200; ++key) sum_[key] = 0.01f;
  EXPECT_EQ(Select(), HeadKind::kDense);
}

TEST_F(SelectKeysTest, PaperCountsAllMassAndNeverStreams) {
  args_.scope = MassScope::kAll;
  SetLocal(0.99);
  sum_[5] = 3;     // a sink: counts, is not listed
  sum_[2299] = 3;  // in every window: the same
  sum_[800] = 2, sum_[900] = 1.5f, sum_[1000] = 0.5f;
  EXPECT_EQ(Select(), HeadKind::kSparse);  // 9 of 10
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{800, 900}));
}

// What a broken model makes is no candidate, and overflows nothing.
TEST_F(SelectKeysTest, MassThatIsNoNumber) {
  sum_[300] = std::numeric_limits<float>::quiet_NaN();
  sum_[400] = std::numeric_limits<float>::infinity();
  sum_[500] = 1;
  band_[20] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(Select(), HeadKind::kSparse);
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{400}));
  EXPECT_TRUE(plan_->bands(0).empty());
}

TEST_F(SelectKeysTest, SkippedHeadsAreLeftAlone) {
  const uint8_t choice = kChosen;
  args_.choice = &choice;
  plan_->Set(0, HeadKind::kSparse, {7});
  EXPECT_EQ(Select(), HeadKind::kSparse);
  EXPECT_EQ(plan_->stripes(0), (std::vector<int32_t>{7}));
}

TEST_F(SelectKeysTest, StreamingAgreesWithSelectKeys) {
  for (double share : {0.2, 0.89, 0.9, 0.91, 1.0}) {
    SetLocal(share);
    uint8_t choice = 9;
    SelectStreamingOfHead({.q_begin = args_.q_begin,
                           .n_q = args_.n_q,
                           .n_voting = kVoting,
                           .lse_full = args_.lse_full,
                           .lse_local = args_.lse_local,
                           .alpha = &alpha_,
                           .choice = &choice,
                           .plan = args_.plan},
                          0);
    EXPECT_EQ(choice == kChosen, Select() == HeadKind::kStreaming) << share;
  }
}

TEST_F(SelectKeysTest, EpochOfOneTokenAndFirstEpoch) {
  Reset(2048, 1, {.sink = 64, .window = 128}, 1);
  sum_[100] = 4.5f;
  EXPECT_EQ(Select(), HeadKind::kSparse);
  EXPECT_EQ(plan_->kept_pairs(0), 64 + 128 + 1);
  Reset(0, 1, {.sink = 64, .window = 128}, 1);  // nothing is remote
  EXPECT_EQ(Select(), HeadKind::kSparse);
  EXPECT_EQ(plan_->kept_pairs(0), 1);
}

// 20 voting rows, some of which their local keys hold little of.
class BudgetChoiceTest : public ::testing::Test {
 protected:
  // Whether the head streams, or how it is chosen; n_low rows have this share in their local keys,
  // the others all of it.
  uint8_t Choose(int n_low, double share, float alpha) {
    std::vector<float> full(kVoting, 3.0f), local(kVoting, 3.0f);
    for (int r = 0; r < n_low; ++r) local[7 * r % kVoting] += static_cast<float>(std::log(share));
    uint8_t choice = 9;
    SelectStreamingOfHead({.q_begin = 2048,
                           .n_q = 256,
                           .n_voting = kVoting,
                           .lse_full = View(full, {1, kVoting}),
                           .lse_local = View(local, {1, kVoting}),
                           .alpha = &alpha,
                           .target = 0.9f,
                           .lost = 0.5f,
                           .budget_rows = budget_rows_,
                           .choice = &choice,
                           .plan = plan_.plan()},
                          0);
    return choice;
  }

  static constexpr int64_t kVoting = 20;
  float budget_rows_ = 0.9f;
  PlanOwner plan_{1, {.sink = 64, .window = 128}, 1, 16, 16};
};

TEST_F(BudgetChoiceTest, LocalButForAFewRows) {
  EXPECT_EQ(Choose(0, 1, 0.9f), kChosen);
  EXPECT_EQ(Choose(1, 0.6, 0.9f), kChosen);  // not lost
  EXPECT_EQ(Choose(1, 0.4, 0.9f), kChooseByBudget);
  EXPECT_EQ(Choose(2, 0.0, 0.9f), kChooseByBudget);
  EXPECT_EQ(Choose(3, 0.0, 0.9f), kChooseByMass);   // more than a few
  EXPECT_EQ(Choose(0, 1, 0.91f), kChooseByBudget);  // lost a row in an earlier epoch
  EXPECT_EQ(Choose(20, 0.97, 0.91f), kChosen);      // no row is wholly local
  EXPECT_EQ(Choose(1, 0.0, 1.0f), kChosen);
  EXPECT_EQ(plan_.kind(0), HeadKind::kDense);
}

TEST_F(BudgetChoiceTest, NobodyAboveOne) {
  budget_rows_ = 2;
  EXPECT_EQ(Choose(1, 0.4, 0.9f), kChosen);
  EXPECT_EQ(plan_.kind(0), HeadKind::kStreaming);
  EXPECT_EQ(Choose(3, 0.0, 0.9f), kChooseByMass);
}

TEST(AuditTest, MeasuresAndRepairs) {
  constexpr int64_t kHeads = 3, kTokens = 8;
  const int32_t rows[] = {0, 3, 5, 7};  // two vote, two audit
  std::vector<float> lse_full(kHeads * 4, 1.0f), lse_sparse(kTokens * kHeads, 99.0f);
  for (int64_t h = 0; h < kHeads; ++h) {
    lse_sparse[5 * kHeads + h] = 1.0f + std::log(0.5f);
    lse_sparse[7 * kHeads + h] = 1.0f + std::log(0.9f);
  }
  lse_sparse[7 * kHeads + 1] = 1.0f + 1e-3f;  // head 1: rounding above one is clipped
  std::vector<float> recall(kHeads * 2, -1.0f);
  std::vector<uint8_t> repair(kHeads, 9);
  std::vector<float> alpha(kHeads, 0.9f);
  const std::vector<int32_t> kind = {static_cast<int32_t>(HeadKind::kSparse),
                                     static_cast<int32_t>(HeadKind::kStreaming),
                                     static_cast<int32_t>(HeadKind::kDense)};
  AuditArgs args{.rows = rows,
                 .n_voting = 2,
                 .n_rows = 4,
                 .lse_full = View(lse_full, {kHeads, 4}),
                 .lse_sparse = View(lse_sparse, {kTokens, kHeads}),
                 .floor = 0.72f,
                 .kind = kind.data(),
                 .recall = View(recall, {kHeads, 2}),
                 .repair = repair.data(),
                 .alpha = alpha.data()};
  for (int64_t h = 0; h < kHeads; ++h) AuditHead(args, h);
  EXPECT_NEAR(recall[0], 0.5, 1e-6);
  EXPECT_NEAR(recall[1], 0.9, 1e-6);
  EXPECT_EQ(recall[3], 1.0f);
  EXPECT_EQ(repair, (std::vector<uint8_t>{1, 0, 0}));  // means 0.7, 0.75; the last is dense
  EXPECT_EQ(alpha, std::vector<float>(kHeads, 0.9f));  // no target: not steered

  args.target = 0.8f;
  alpha = {0.8f, 0.9f, 0.9f};
  for (int64_t h = 0; h < kHeads; ++h) AuditHead(args, h);
  EXPECT_NEAR(alpha[0], 0.9, 1e-6);    // 0.1 short of the target
  EXPECT_NEAR(alpha[1], 0.95, 1e-6);   // 0.05 short
  EXPECT_NEAR(alpha[2], 0.895, 1e-6);  // dense is more than enough: slowly down
  AuditHead(args, 0);
  EXPECT_NEAR(alpha[0], 0.995, 1e-6);  // never 1: the audit must go on
  alpha[2] = 0.802f;
  AuditHead(args, 2);
  EXPECT_NEAR(alpha[2], 0.8, 1e-6);  // never below the target

  // A voting row is lost where it keeps less than this; recall and repair look at audit rows alone.
  lse_sparse[3 * kHeads + 1] = lse_sparse[3 * kHeads + 2] = 1.0f + std::log(0.3f);
  lse_sparse[5 * kHeads + 1] = 1.0f;
  args.lost = 0.4f;
  alpha = {0.8f, 0.9f, 0.9f};
  for (int64_t h = 0; h < kHeads; ++h) AuditHead(args, h);
  EXPECT_NEAR(alpha[1], 0.995, 1e-6);
  EXPECT_NEAR(alpha[2], 0.895, 1e-6);  // of a dense head, no row is
  EXPECT_EQ(recall[2], 1.0f);
  EXPECT_EQ(repair[1], 0);
  args.lost = 0.3f * 0.99f;
  AuditHead(args, 1);
  EXPECT_NEAR(alpha[1], 0.99, 1e-6);
}

}  // namespace
}  // namespace longhaul
