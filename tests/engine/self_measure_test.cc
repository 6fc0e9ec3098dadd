#include "engine/self_measure.h"

#include <memory>

#include "gtest/gtest.h"
#include "tests/testing/fake_executor.h"
#include "tests/testing/timed_executor.h"

namespace longhaul {
namespace {

using testing::FakeExecutor;
using testing::FakeModel;
using testing::TimedExecutor;
using testing::TimedMachine;

EngineConfig Config(int64_t epoch_tokens, int64_t max_model_len) {
  EngineConfig config;
  config.epoch_tokens = epoch_tokens;
  config.max_model_len = max_model_len;
  return config;
}

class AnyPool : public ::testing::TestWithParam<std::tuple<int32_t, int64_t, int64_t>> {};

// The fake executor checks the plans: page ids, shared pages, slots, epochs.
TEST_P(AnyPool, PlansAreLegal) {
  const auto [n_pages, epoch_tokens, max_model_len] = GetParam();
  FakeModel fake;
  fake.n_pages = n_pages;
  fake.epoch_tokens = epoch_tokens;
  FakeExecutor executor(fake);
  CostModel model(executor.shape());
  const absl::Status status = SelfMeasure(Config(epoch_tokens, max_model_len), executor, model);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(executor.violations().empty()) << executor.violations().front();
  EXPECT_TRUE(model.learned());
}

INSTANTIATE_TEST_SUITE_P(Pools, AnyPool,
                         ::testing::Values(std::tuple{1, 128, 64}, std::tuple{1, 64, 1},
                                           std::tuple{2, 128, 4'096}, std::tuple{3, 128, 100},
                                           std::tuple{64, 512, 1 << 20},
                                           std::tuple{200, 4'096, 131'072}));

class AnyMachine : public ::testing::TestWithParam<double> {};

TEST_P(AnyMachine, FirstPredictionsAreRight) {
  const double speed = GetParam();
  TimedMachine machine;
  for (double* us : {&machine.cell_us, &machine.token_us, &machine.pair_us, &machine.kept_pair_us,
                     &machine.sampled_pair_us, &machine.dense_key_us, &machine.step_us,
                     &machine.row_us, &machine.key_us}) {
    *us /= speed;
  }
  TimedExecutor executor(machine);
  CostModel model(executor.shape());
  ASSERT_TRUE(SelfMeasure(Config(4'096, 131'072), executor, model).ok());
  EXPECT_LT(executor.total_us(), 2 * kSelfMeasureUs);
  const SparseOptions dense{.mode = SparseMode::kDense};
  // What was measured at a small size holds at a large one.
  for (int64_t begin : {0, 4'096, 61'440}) {
    const PrefillWork work =
        CostModel::EpochWork(dense, DensityModel(dense), begin, begin + 4'096, 1 << 20) * 2;
    PrefillSlice slice;
    slice.begin = begin;
    slice.end = begin + 4'096;
    slice.layer_end = 2;
    slice.prompt_tokens = 1 << 20;
    slice.sparse = &dense;
    StepPlan plan;
    plan.prefill = {slice};
    const auto elapsed_us = static_cast<double>(executor.Execute(plan)->slices[0].elapsed_us);
    EXPECT_NEAR(model.PrefillUs(work) / elapsed_us, 1.0, 0.25) << begin;
  }
}

INSTANTIATE_TEST_SUITE_P(Speeds, AnyMachine, ::testing::Values(0.2, 1.0, 50.0));

TEST(SelfMeasure, ASlowMachineIsAskedForLittle) {
  TimedMachine machine;
  machine.cell_us = 150'000;  // a large model: every layer call reads gigabytes
  machine.token_us = 5'000;
  machine.step_us = 4 * 150'000;
  TimedExecutor executor(machine);
  CostModel model(executor.shape());
  ASSERT_TRUE(SelfMeasure(Config(4'096, 131'072), executor, model).ok());
  EXPECT_LT(executor.total_us(), 3 * kSelfMeasureUs);
  EXPECT_TRUE(model.learned());
}

TEST(SelfMeasure, AStepThatFailsIsTheError) {
  FakeModel fake;
  FakeExecutor executor(fake);
  executor.FailStep(3);
  CostModel model(executor.shape());
  const absl::Status status = SelfMeasure(Config(128, 4'096), executor, model);
  EXPECT_TRUE(absl::IsInternal(status)) << status;
  EXPECT_NE(status.message().find("self-measurement"), status.message().npos) << status;
}

}  // namespace
}  // namespace longhaul
