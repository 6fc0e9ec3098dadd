// The budget on the device against kernels/select_keys.cc: the same kinds, lists and counts, bit
// for bit, for any mass.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "kernels/cuda/select_keys.h"
#include "kernels/select_keys.h"
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

constexpr int64_t kHeads = 8;
constexpr int64_t kVoting = 40;
constexpr int64_t kRows = 45;  // voting and audit rows

// Host arrays of one call; tests change what they are about.
class SelectKeysDeviceTest : public ::testing::Test {
 protected:
  SelectKeysDeviceTest() { Reset(3000, 400, {.sink = 64, .window = 128}, 1); }

  void Reset(int64_t q_begin, int64_t n_q, LocalPattern local, int64_t width,
             int64_t max_stripes = 5000) {
    n_keys_ = q_begin + n_q;
    n_bands_ = CeilDiv(n_keys_, kBandWidth);
    sum_.assign(kHeads * n_keys_, 0.0f);
    max_.assign(kHeads * n_keys_, 0.0f);
    band_.assign(kHeads * n_bands_, 0.0f);
    shape_ = {
        .local = local, .stripe_width = width, .max_stripes = max_stripes, .max_bands = n_bands_};
    args_ = {.q_begin = q_begin,
             .n_q = n_q,
             .n_voting = kVoting,
             .lse_full = {},
             .lse_local = {},
             .mass_sum = {},
             .mass_max = {},
             .plan = {}};
  }

  // Heavy-tailed mass, that of each head adding up to what its local keys do not hold; some in
  // bands.
  void FillRandom(uint64_t seed, double local_share) {
    Random random(seed);
    for (int64_t i = 0; i < kHeads * kRows; ++i) {
      full_[i] = random.Normal();
      local_[i] = full_[i] + static_cast<float>(std::log(local_share));
    }
    for (int64_t h = 0; h < kHeads; ++h) {
      double total = 0;
      for (int64_t j = 0; j < n_keys_; ++j) {
        float& mass = sum_[h * n_keys_ + j];
        mass = random.Below(3) == 0 ? 0.0f : std::exp(3 * random.Normal());
        total += mass;
      }
      for (int64_t j = 0; j < n_keys_; ++j) {
        float& mass = sum_[h * n_keys_ + j];
        mass *= static_cast<float>((1 - local_share) * kVoting / total);
        max_[h * n_keys_ + j] = std::min(mass / 3, 1.0f);
      }
      for (int64_t b = 0; b < n_bands_; ++b) {
        band_[h * n_bands_ + b] = random.Below(4) == 0 ? std::exp(random.Normal()) : 0.0f;
      }
      alpha_[h] = 0.8f + 0.02f * static_cast<float>(h);
    }
  }

  void PointAtHost(const SparsePlan& plan) {
    args_.lse_full = View(full_, {kHeads, kRows});
    args_.lse_local = View(local_, {kHeads, kRows});
    args_.mass_sum = View(sum_, {kHeads, n_keys_});
    args_.mass_max = View(max_, {kHeads, n_keys_});
    args_.band_mass = with_bands_ ? View(band_, {kHeads, n_bands_}) : TensorView();
    args_.alpha = alpha_.data();
    args_.choice = with_choice_ ? choice_.data() : nullptr;
    args_.plan = plan;
  }

  // Both sides; every entry must agree.
  void ExpectEqual() {
    PlanOwner host(kHeads, shape_.local, shape_.stripe_width, shape_.max_stripes, shape_.max_bands);
    PointAtHost(host.plan());
    for (int64_t h = 0; h < kHeads; ++h) SelectKeysOfHead(args_, h);
    const DeviceArray<float> full(full_), local(local_), sum(sum_), max(max_), band(band_);
    const DeviceArray<float> alpha(alpha_);
    const DeviceArray<uint8_t> choice(choice_);
    simt::ForEachSeed(2, [&] {
      const DevicePlan device(kHeads, shape_);
      SelectKeysArgs args = args_;
      args.lse_full = TensorView(full.data(), DType::kF32, {kHeads, kRows});
      args.lse_local = TensorView(local.data(), DType::kF32, {kHeads, kRows});
      args.mass_sum = TensorView(sum.data(), DType::kF32, {kHeads, n_keys_});
      args.mass_max = TensorView(max.data(), DType::kF32, {kHeads, n_keys_});
      if (with_bands_) args.band_mass = TensorView(band.data(), DType::kF32, {kHeads, n_bands_});
      args.alpha = alpha.data();
      args.choice = with_choice_ ? choice.data() : nullptr;
      args.plan = device.plan();
      const DeviceArray<std::byte> scratch(SelectKeysScratchBytes(kHeads, n_keys_));
      ASSERT_EQ(SelectKeys(args, scratch.data(), nullptr), cudaSuccess);
      const std::vector<int32_t> kind = device.kind();
      const std::vector<int64_t> kept_pairs = device.kept_pairs();
      for (int64_t h = 0; h < kHeads; ++h) {
        SCOPED_TRACE(::testing::Message() << "head " << h);
        ASSERT_EQ(kind[h], static_cast<int32_t>(host.kind(h)));
        EXPECT_EQ(kept_pairs[h], host.kept_pairs(h));
        if (kind[h] == -1) continue;  // skipped
        EXPECT_EQ(device.stripes(h), host.stripes(h));
        EXPECT_EQ(device.bands(h), host.bands(h));
        n_stripes_ += static_cast<int64_t>(host.stripes(h).size());
        n_chosen_bands_ += static_cast<int64_t>(host.bands(h).size());
        ++n_of_kind_[kind[h]];
      }
    });
  }

  // SelectStreaming on both sides; what the host chose.
  std::vector<uint8_t> ExpectEqualChoices() {
    PlanOwner host(kHeads, shape_.local, 1, shape_.max_stripes, shape_.max_bands);
    std::vector<uint8_t> expected(kHeads, 9);
    SelectStreamingArgs args{.q_begin = args_.q_begin,
                             .n_q = args_.n_q,
                             .n_voting = kVoting,
                             .lse_full = View(full_, {kHeads, kRows}),
                             .lse_local = View(local_, {kHeads, kRows}),
                             .alpha = alpha_.data(),
                             .target = 0.9f,
                             .lost = 0.5f,
                             .budget_rows = 0.84f,
                             .choice = expected.data(),
                             .plan = host.plan()};
    for (int64_t h = 0; h < kHeads; ++h) SelectStreamingOfHead(args, h);
    const DeviceArray<float> full(full_), local(local_), alpha(alpha_);
    simt::ForEachSeed(3, [&] {
      const DevicePlan device(kHeads, shape_);
      const DeviceArray<uint8_t> choice(kHeads);
      args.lse_full = TensorView(full.data(), DType::kF32, {kHeads, kRows});
      args.lse_local = TensorView(local.data(), DType::kF32, {kHeads, kRows});
      args.alpha = alpha.data();
      args.choice = choice.data();
      args.plan = device.plan();
      ASSERT_EQ(SelectStreaming(args, nullptr), cudaSuccess);
      EXPECT_EQ(choice.Download(), expected);
      const std::vector<int32_t> kind = device.kind();
      const std::vector<int64_t> kept_pairs = device.kept_pairs();
      for (int64_t h = 0; h < kHeads; ++h) {
        EXPECT_EQ(kind[h], static_cast<int32_t>(host.kind(h))) << h;
        EXPECT_EQ(kept_pairs[h], host.kept_pairs(h)) << h;
      }
    });
    return expected;
  }

  int64_t n_keys_ = 0;
  int64_t n_bands_ = 0;
  bool with_bands_ = true;
  bool with_choice_ = false;
  std::vector<float> full_ = std::vector<float>(kHeads * kRows, 0.0f);
  std::vector<float> local_ = std::vector<float>(kHeads * kRows, std::log(0.5f));
  std::vector<float> sum_, max_, band_;
  std::vector<float> alpha_ = std::vector<float>(kHeads, 0.9f);
  std::vector<uint8_t> choice_ = std::vector<uint8_t>(kHeads, 0);
  SparsePlan shape_;
  SelectKeysArgs args_;
  // What the comparisons have seen.
  int64_t n_stripes_ = 0;
  int64_t n_chosen_bands_ = 0;
  int64_t n_of_kind_[3] = {0, 0, 0};
};

TEST_F(SelectKeysDeviceTest, RandomMassOfEveryWidth) {
  for (const int64_t width : {1, 8, 16, 64}) {
    SCOPED_TRACE(::testing::Message() << "width " << width);
    Reset(5000, 413, {.sink = 64, .window = 128}, width);
    FillRandom(17 + static_cast<uint64_t>(width), 0.4);
    args_.keep_max = 0.25f;
    ExpectEqual();
  }
  EXPECT_GT(n_stripes_, 1000);
  EXPECT_GT(n_chosen_bands_, 10);
  EXPECT_GT(n_of_kind_[1], 16);
}

TEST_F(SelectKeysDeviceTest, PaperScopeAndNoBands) {
  FillRandom(3, 0.1);
  args_.scope = MassScope::kAll;
  ExpectEqual();
  args_.scope = MassScope::kRemote;
  with_bands_ = false;
  ExpectEqual();
  EXPECT_GT(n_stripes_, 1000);
  EXPECT_EQ(n_chosen_bands_, 0);
}

TEST_F(SelectKeysDeviceTest, StreamingDenseAndSkippedHeads) {
  FillRandom(4, 0.9);
  alpha_ = {0.8f, 0.899f, 0.9f, 0.901f, 0.95f, 1.0f, 0.99f, 0.5f};
  choice_[7] = kChosen;
  with_choice_ = true;
  args_.dense_cost_fraction = 0.35f;
  ExpectEqual();
  EXPECT_GT(n_of_kind_[static_cast<int>(HeadKind::kStreaming)], 0);
  EXPECT_GT(n_of_kind_[static_cast<int>(HeadKind::kDense)], 0);
}

// Thousands of equal candidates: the cut-off lies inside one bucket and inside a chunk.
TEST_F(SelectKeysDeviceTest, TiesGoToTheLowerKey) {
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t j = 100; j < 3100; ++j) {
      sum_[h * n_keys_ + j] = 0.001f * static_cast<float>(h + 5);
    }
  }
  ExpectEqual();
  EXPECT_GT(n_stripes_, 100);
}

// Masses that meet the need to the last bit, at the end of a bucket or within one.
TEST_F(SelectKeysDeviceTest, ExactSums) {
  args_.scope = MassScope::kAll;
  for (int64_t h = 0; h < kHeads; ++h) {
    alpha_[h] = 0.75f;  // of 40 rows: 30
    for (int64_t j = 0; j < 30 + 10 * h; ++j) sum_[h * n_keys_ + 70 + 7 * j] = 0.5f;
    for (int64_t j = 0; j < 1000; ++j) sum_[h * n_keys_ + 1100 + j] = 0.0625f;
  }
  ExpectEqual();
  EXPECT_EQ(n_of_kind_[static_cast<int>(HeadKind::kSparse)], 2 * kHeads);
}

TEST_F(SelectKeysDeviceTest, ListsThatDoNotFitAreDense) {
  FillRandom(6, 0.3);
  shape_.max_stripes = 40;
  shape_.max_bands = 2;
  ExpectEqual();
  EXPECT_GT(n_of_kind_[static_cast<int>(HeadKind::kDense)], 0);
}

TEST_F(SelectKeysDeviceTest, NoMassOneTokenAndTheFirstEpoch) {
  ExpectEqual();  // nothing to take: sparse heads with empty lists
  EXPECT_EQ(n_stripes_, 0);
  Reset(2100, 1, {.sink = 64, .window = 128}, 1);
  FillRandom(8, 0.5);
  ExpectEqual();
  EXPECT_GT(n_stripes_, 0);
  Reset(0, 1, {.sink = 64, .window = 64}, 8);
  FillRandom(9, 0.5);
  ExpectEqual();
}

TEST_F(SelectKeysDeviceTest, StreamingAgreesWithTheHost) {
  FillRandom(11, 0.9);
  alpha_ = {0.8f, 0.899f, 0.9f, 0.901f, 0.95f, 1.0f, 0.99f, 0.0f};
  ExpectEqualChoices();
}

// Head h loses h of 40 rows; the others are local.
TEST_F(SelectKeysDeviceTest, WhoGetsABudgetAgreesWithTheHost) {
  FillRandom(12, 1.0);
  alpha_ = {0.9f, 0.9f, 0.9f, 0.9f, 0.9f, 0.9f, 0.95f, 0.9f};
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t r = 0; r < h; ++r) local_[h * kRows + 37 * r % kVoting] -= 1;
  }
  EXPECT_EQ(
      ExpectEqualChoices(),
      (std::vector<uint8_t>{kChosen, kChooseByBudget, kChooseByBudget, kChooseByBudget,
                            kChooseByBudget, kChooseByBudget, kChooseByBudget, kChooseByMass}));
  alpha_[0] = 0.905f;  // the audit found a row
  EXPECT_EQ(ExpectEqualChoices()[0], kChooseByBudget);
}

}  // namespace
}  // namespace longhaul::cuda
