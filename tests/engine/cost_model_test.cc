#include "engine/cost_model.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

constexpr ModelShape kShape{.n_layers = 16,
                            .n_heads = 32,
                            .n_kv_heads = 8,
                            .head_dim = 64,
                            .hidden_size = 2048,
                            .vocab_size = 128'256,
                            .max_positions = 131'072,
                            .n_parameters = 1'200'000'000};

// A machine with 3 % noise that the model has to learn.
class Machine {
 public:
  explicit Machine(double speed) : speed_(speed) {}
  double Us(const PrefillWork& work) {
    const double noise = 1.0 + 0.03 * (static_cast<double>(random_() % 2001) / 1000.0 - 1.0);
    return noise / speed_ *
           (300 * work.cells + 80 * work.tokens + 0.05 * work.dense_pairs + 0.09 * work.kept_pairs +
            0.8 * work.dense_keys + 0.02 * work.sampled_pairs);
  }

 private:
  double speed_;
  std::mt19937 random_{42};
};

class LearnsAMachine : public ::testing::TestWithParam<double> {};

TEST_P(LearnsAMachine, WithinAFewSlices) {
  Machine machine(GetParam());
  CostModel model(kShape);
  SparseOptions dense;
  dense.mode = SparseMode::kDense;
  const DensityModel density(dense);
  double worst_late = 0;
  for (int64_t begin = 0; begin < 131'072; begin += 2'048) {
    for (int64_t layers : {1, 3, 12}) {
      const PrefillWork work = CostModel::EpochWork(dense, density, begin, begin + 2'048, 1 << 20) *
                               static_cast<double>(layers);
      const double us = machine.Us(work);
      if (begin >= 4 * 2'048) {
        worst_late = std::max(worst_late, std::abs(model.PrefillUs(work) / us - 1.0));
      }
      model.ObservePrefill(work, us);
    }
  }
  EXPECT_LT(worst_late, 0.15);
  // Extrapolation: twice as long as anything seen.
  PrefillWork whole;
  for (int64_t begin = 0; begin < 262'144; begin += 2'048) {
    whole += CostModel::EpochWork(dense, density, begin, begin + 2'048, 1 << 20) * 16;
  }
  EXPECT_NEAR(model.PrefillUs(whole) / machine.Us(whole), 1.0, 0.15);
}

INSTANTIATE_TEST_SUITE_P(Speeds, LearnsAMachine, ::testing::Values(0.05, 1.0, 300.0));

TEST(CostModel, MoreWorkNeverCostsLess) {
  CostModel model(kShape);
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {  // noise only: the fit must stay sane
    PrefillWork work{.cells = 1.0 + random() % 16, .tokens = 1.0 + random() % 2'048};
    work.dense_pairs = work.tokens * (random() % 100'000);
    model.ObservePrefill(work, 1.0 + random() % 1'000'000);
    model.ObserveDecode(1 + random() % 8, random() % 1'000'000, 1.0 + random() % 100'000);
    PrefillWork more = work;
    more.tokens *= 2;
    more.dense_pairs *= 2;
    EXPECT_GE(model.PrefillUs(more), model.PrefillUs(work));
    EXPECT_TRUE(std::isfinite(model.PrefillUs(work)));
    EXPECT_GE(model.DecodeUs(4, 1'000), model.DecodeUs(2, 500));
  }
}

TEST(CostModel, NonsenseIsNotLearned) {
  CostModel model(kShape);
  const PrefillWork work{.cells = 1, .tokens = 100, .dense_pairs = 1e6};
  const double before = model.PrefillUs(work);
  model.ObservePrefill(work, 0);
  model.ObservePrefill(work, -5);
  model.ObservePrefill(work, std::nan(""));
  model.ObservePrefill(PrefillWork{}, 100);
  EXPECT_EQ(model.PrefillUs(work), before);
  EXPECT_EQ(model.DecodeUs(0, 0), 0);
}

TEST(CostModel, ShortPromptsDoNotForgetWhatALongOneCost) {
  Machine machine(40.0);
  CostModel model(kShape);
  SparseOptions dense;
  dense.mode = SparseMode::kDense;
  const DensityModel density(dense);
  const auto work = [&](int64_t begin, int64_t end) {
    return CostModel::EpochWork(dense, density, begin, end, 1 << 20) * 2.0;
  };
  for (int64_t begin = 0; begin < 131'072; begin += 2'048) {
    model.ObservePrefill(work(begin, begin + 2'048), machine.Us(work(begin, begin + 2'048)));
  }
  for (int64_t i = 0; i < 5'000; ++i) {
    const PrefillWork brief = work(0, 100 + i % 400);
    model.ObservePrefill(brief, machine.Us(brief));
  }
  const PrefillWork far = work(129'024, 131'072);
  EXPECT_NEAR(model.PrefillUs(far) / machine.Us(far), 1.0, 0.1);
}

TEST(CostModel, FollowsAMachineThatSlowsDown) {
  Machine fast(10.0), slow(2.0);
  CostModel model(kShape);
  const PrefillWork work{.cells = 2, .tokens = 4'096, .dense_pairs = 5e6, .dense_keys = 2e3};
  for (int i = 0; i < 200; ++i) model.ObservePrefill(work, fast.Us(work));
  model.ObservePrefill(work, 30 * fast.Us(work));  // a hiccup
  EXPECT_NEAR(model.PrefillUs(work) / fast.Us(work), 1.0, 0.2);
  for (int i = 0; i < 3; ++i) model.ObservePrefill(work, fast.Us(work));
  for (int i = 0; i < 10; ++i) model.ObservePrefill(work, slow.Us(work));
  EXPECT_NEAR(model.PrefillUs(work) / slow.Us(work), 1.0, 0.1);
}

TEST(CostModel, SparseEpochsCountTheirKeptAndSampledPairs) {
  SparseOptions sample;
  sample.mode = SparseMode::kSample;
  sample.window = 1'024;
  const DensityModel density(sample);
  const PrefillWork first = CostModel::EpochWork(sample, density, 0, 1'024, 131'072);
  EXPECT_EQ(first.kept_pairs, 0) << "sink and window see everything: dense";
  EXPECT_EQ(first.dense_pairs, 1'024 * 1'025 / 2);
  const PrefillWork far = CostModel::EpochWork(sample, density, 122'880, 126'976, 131'072);
  EXPECT_EQ(far.dense_pairs, 0);
  EXPECT_GT(far.kept_pairs, 4'096.0 * 1'088);
  EXPECT_LT(far.kept_pairs, 0.1 * 4'096 * 124'928);
  EXPECT_EQ(far.sampled_pairs, 64.0 * 126'976) << "48 voting and 16 audit rows";
  const PrefillWork last = CostModel::EpochWork(sample, density, 126'976, 131'072, 131'072);
  EXPECT_EQ(last.dense_pairs, 64.0 * (131'072 - 63 + 131'072) / 2) << "the tail is exact";
  EXPECT_EQ(last.dense_keys, 131'072);
}

TEST(CostModel, TheLastLayerIsKeysAndValuesAndOneRow) {
  // q, k and v are 6.3 of the 42 million weights of a layer.
  const double share = 2048.0 * 48 * 64 / ((1.2e9 - 2.0 * 128'256 * 2048) / 16);
  const PrefillWork inner = CostModel::LastLayerWork(kShape, 4'096, 8'192, 10'000);
  EXPECT_NEAR(inner.cells, share, 1e-9);
  EXPECT_NEAR(inner.tokens, share * 4'096, 1e-6);
  EXPECT_EQ(inner.dense_pairs + inner.dense_keys + inner.kept_pairs + inner.sampled_pairs, 0);
  const PrefillWork last = CostModel::LastLayerWork(kShape, 8'192, 10'000, 10'000);
  EXPECT_EQ(last.cells, 1) << "all weights are read";
  EXPECT_NEAR(last.tokens, share * 1'808, 1e-6);
  EXPECT_EQ(last.dense_pairs, 10'000);
  EXPECT_EQ(last.dense_keys, 10'000);
}

TEST(DensityModel, LocalKeysAreCountedExactly) {
  SparseOptions streaming;
  streaming.mode = SparseMode::kStreaming;
  const DensityModel density(streaming);
  const int64_t local = streaming.sink + streaming.window;
  EXPECT_EQ(density.KeptPairs(0, local), local * (local + 1) / 2);
  EXPECT_EQ(density.KeptPairs(local, local + 100), 100 * local);
  EXPECT_EQ(density.KeptPairs(100'000, 104'096), 4'096 * local);
}

// Pairs that rows keep when each keeps the local keys, so many more, and a share of the rest.
double Kept(int64_t begin, int64_t end, double more, double share) {
  double kept = 0;
  for (int64_t row = begin; row < end; ++row) {
    const double remote = std::max<double>(0, static_cast<double>(row + 1 - 1'088));
    kept += static_cast<double>(row + 1) - remote + std::min(remote, more + share * remote);
  }
  return kept;
}

TEST(DensityModel, LearnsALineOverLayersThatDiffer) {
  SparseOptions sample;
  sample.mode = SparseMode::kSample;
  sample.window = 1'024;
  for (const auto& [more, share] : {std::pair{0.0, 0.0}, {0.0, 0.08}, {900.0, 0.002}}) {
    DensityModel density(sample);
    for (int64_t begin = 0; begin < 65'536; begin += 4'096) {
      for (int layer = 0; layer < 4; ++layer) {  // the mean is 1
        const double factor = 0.4 * layer + 0.4;
        density.Observe(begin, begin + 4'096, 1,
                        Kept(begin, begin + 4'096, more * factor, share * factor));
      }
    }
    const double expected = Kept(126'976, 131'072, more, share);
    EXPECT_NEAR(density.KeptPairs(126'976, 131'072) / expected, 1.0, 0.1) << more << " " << share;
  }
}

TEST(DensityModel, StaysWithinWhatARowSees) {
  SparseOptions sample;
  sample.mode = SparseMode::kSample;
  sample.window = 1'024;
  DensityModel density(sample);
  density.Observe(4'096, 8'192, 1, 1e30);
  density.Observe(4'096, 8'192, 1, -5);
  density.Observe(0, 0, 1, 10);
  density.Observe(4'096, 8'192, 1, std::nan(""));
  for (int64_t begin : {0, 64, 4'096, 1'000'000}) {
    const double kept = density.KeptPairs(begin, begin + 64);
    EXPECT_GT(kept, 0);
    EXPECT_LE(kept, Kept(begin, begin + 64, 0, 1));
  }
}

}  // namespace
}  // namespace longhaul
