// Fixed budgets on the device against kernels/select_budget.cc: the same kinds, lists and counts,
// bit for bit, for any mass.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cuda/select_budget.h"
#include "kernels/select_budget.h"
#include "tests/simt/device_plan.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using testing::DevicePlan;
using testing::PlanOwner;
using testing::Random;
using testing::View;

constexpr LocalPattern kLocal{.sink = 30, .window = 128};

class SelectBudgetDeviceTest : public ::testing::Test {
 protected:
  // Heavy-tailed mass with ties and zeros; a head per budget, behind one head that is left alone.
  void Reset(int64_t q_begin, int64_t n_q, std::vector<HeadBudget> budgets,
             int64_t max_stripes = 4096) {
    q_begin_ = q_begin;
    n_q_ = n_q;
    n_keys_ = q_begin + n_q;
    n_bands_ = CeilDiv(n_keys_, kBandWidth);
    n_heads_ = static_cast<int64_t>(budgets.size());
    budgets_ = std::move(budgets);
    budgets_.insert(budgets_.begin(), HeadBudget{});
    shape_ = {.local = kLocal, .max_stripes = max_stripes, .max_bands = n_bands_};
    Random random(static_cast<uint64_t>(n_keys_));
    const auto fill = [&](std::vector<float>& mass, int64_t n) {
      mass.resize(n_heads_ * n);
      for (float& x : mass) {
        const float normal = random.Normal();
        x = random.Below(4) == 0 ? 0.0f : std::exp2(std::round(8 * normal) / 4);
      }
    };
    fill(columns_, n_keys_);
    fill(bands_, n_bands_);
  }

  SelectBudgetArgs Args(float* columns, float* bands, const HeadBudget* budgets,
                        const uint8_t* choice, const SparsePlan& plan) const {
    return {.q_begin = q_begin_,
            .n_q = n_q_,
            .head_begin = 1,
            .mass_sum = TensorView(columns, DType::kF32, {n_heads_, n_keys_}),
            .band_mass = TensorView(bands, DType::kF32, {n_heads_, n_bands_}),
            .budgets = budgets,
            .choice = choice,
            .plan = plan};
  }

  // Both sides; every entry must agree.
  void ExpectEqual() {
    PlanOwner host(1 + n_heads_, kLocal, 1, shape_.max_stripes, shape_.max_bands);
    const SelectBudgetArgs host_args =
        Args(columns_.data(), bands_.data(), budgets_.data(),
             choice_.empty() ? nullptr : choice_.data(), host.plan());
    for (int64_t h = 1; h <= n_heads_; ++h) SelectBudgetOfHead(host_args, h);
    const DeviceArray<float> columns(columns_), bands(bands_);
    const DeviceArray<HeadBudget> budgets(budgets_);
    const DeviceArray<uint8_t> choice(choice_);
    simt::ForEachSeed(2, [&] {
      const DevicePlan device(1 + n_heads_, shape_);
      const DeviceArray<std::byte> scratch(SelectBudgetScratchBytes(n_heads_, n_keys_));
      const SelectBudgetArgs args = Args(columns.data(), bands.data(), budgets.data(),
                                         choice_.empty() ? nullptr : choice.data(), device.plan());
      ASSERT_EQ(SelectBudget(args, scratch.data(), nullptr), cudaSuccess);
      const std::vector<int32_t> kind = device.kind();
      const std::vector<int64_t> kept_pairs = device.kept_pairs();
      EXPECT_EQ(kind[0], -1);
      for (int64_t h = 1; h <= n_heads_; ++h) {
        SCOPED_TRACE(::testing::Message() << "head " << h);
        ASSERT_EQ(kind[h], static_cast<int32_t>(host.kind(h)));
        if (kind[h] == -1) continue;  // left alone
        EXPECT_EQ(kept_pairs[h], host.kept_pairs(h));
        EXPECT_EQ(device.stripes(h), host.stripes(h));
        EXPECT_EQ(device.bands(h), host.bands(h));
        ++n_of_kind_[kind[h]];
      }
    });
  }

  int64_t q_begin_ = 0, n_q_ = 0, n_keys_ = 0, n_bands_ = 0, n_heads_ = 0;
  std::vector<HeadBudget> budgets_;
  std::vector<uint8_t> choice_;  // empty: all by budget
  std::vector<float> columns_, bands_;
  SparsePlan shape_;
  int64_t n_of_kind_[3] = {0, 0, 0};
};

TEST_F(SelectBudgetDeviceTest, BudgetsOfEverySizeOverSeveralChunks) {
  Reset(
      5600, 413,
      {{31, 3, 0}, {130, 3, 0}, {1000, 40, 0}, {3000, 60, 0}, {130, 2, 0}, {0, 30, 0}, {0, 0, 0}});
  ExpectEqual();
  EXPECT_EQ(n_of_kind_[static_cast<int>(HeadKind::kStreaming)], 2);
  EXPECT_EQ(n_of_kind_[static_cast<int>(HeadKind::kSparse)], 12);
}

TEST_F(SelectBudgetDeviceTest, HeadsChosenOtherwiseAreLeftAlone) {
  Reset(2500, 200, {{130, 3, 0}, {130, 5, 0}, {130, 7, 0}});
  choice_ = {kChooseByBudget, kChosen, kChooseByBudget, kChooseByMass};
  ExpectEqual();
  EXPECT_EQ(n_of_kind_[static_cast<int>(HeadKind::kSparse)], 2);  // one head, two seeds
}

TEST_F(SelectBudgetDeviceTest, ByPlaceIgnoresMass) {
  Reset(3000, 200, {{530, 12, 1}, {30, 12, 1}, {2900, 2, 1}, {530, 12, 0}});
  ExpectEqual();
}

TEST_F(SelectBudgetDeviceTest, WhatCoversAllOrDoesNotFitIsDense) {
  Reset(900, 124, {{1024, 4, 0}, {1023, 4, 0}, {40, 16, 0}, {40, 15, 0}, {5000, 5000, 0}});
  ExpectEqual();
  EXPECT_EQ(n_of_kind_[static_cast<int>(HeadKind::kDense)], 6);
  Reset(900, 124, {{130, 4, 0}, {131, 4, 0}}, /*max_stripes=*/100);
  ExpectEqual();
  EXPECT_EQ(n_of_kind_[static_cast<int>(HeadKind::kDense)], 8);
}

TEST_F(SelectBudgetDeviceTest, OneTokenTheFirstEpochAndShortPrompts) {
  Reset(2500, 1, {{100, 9, 0}});
  ExpectEqual();
  Reset(0, 700, {{100, 9, 0}, {400, 3, 1}});
  ExpectEqual();
  Reset(0, 20, {{10, 1, 0}});  // shorter than the sink
  ExpectEqual();
}

TEST_F(SelectBudgetDeviceTest, EqualAndBrokenMass) {
  Reset(4000, 300, {{700, 20, 0}, {2500, 30, 0}, {200, 10, 0}});
  std::fill(columns_.begin(), columns_.begin() + n_keys_, 0.25f);
  std::fill(bands_.begin(), bands_.begin() + n_bands_, 0.0f);
  for (int64_t i = 2 * n_keys_; i < 3 * n_keys_; i += 3) {
    columns_[i] = std::numeric_limits<float>::quiet_NaN();
    columns_[i + 1] = std::numeric_limits<float>::infinity();
  }
  ExpectEqual();
}

}  // namespace
}  // namespace longhaul::cuda
