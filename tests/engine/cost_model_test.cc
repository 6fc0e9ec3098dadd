#include "engine/cost_model.h"

#include <cmath>
#include <random>

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
           (300 * work.cells + 80 * work.tokens + 0.05 * work.dense_pairs +
            0.09 * work.sparse_pairs);
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
      const PrefillWork work =
          CostModel::EpochWork(dense, density, begin, begin + 2'048) * static_cast<double>(layers);
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
    whole += CostModel::EpochWork(dense, density, begin, begin + 2'048) * 16;
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

TEST(CostModel, SparseEpochsCountTheirKeptAndSampledPairs) {
  SparseOptions sample;
  sample.mode = SparseMode::kSample;
  const DensityModel density(sample);
  const PrefillWork first = CostModel::EpochWork(sample, density, 0, 1'024);
  EXPECT_EQ(first.sparse_pairs, 0) << "sink and window see everything: dense";
  const PrefillWork far = CostModel::EpochWork(sample, density, 129'024, 131'072);
  EXPECT_EQ(far.dense_pairs, 0);
  EXPECT_GT(far.sparse_pairs, 2'048.0 * 1'088);
  EXPECT_LT(far.sparse_pairs, 0.3 * 2'048 * 130'000);
}

TEST(DensityModel, LearnsALine) {
  SparseOptions sample;
  DensityModel density(sample);
  for (double keys = 4'096; keys < 65'536; keys += 2'048)
    density.Observe(keys, 3'000 + 0.02 * keys);
  EXPECT_NEAR(density.KeptKeys(131'072), 3'000 + 0.02 * 131'072, 600);
  EXPECT_LE(density.KeptKeys(100), 100);
}

}  // namespace
}  // namespace longhaul
