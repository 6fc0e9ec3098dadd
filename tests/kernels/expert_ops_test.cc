// Routing to experts, and moving rows to them and back, of every host backend.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/backend.h"
#include "tests/testing/compare.h"

namespace longhaul {
namespace {

using testing::IsClose;
using testing::Random;
using testing::View;

class ExpertOpsTest : public ::testing::TestWithParam<BackendKind> {
 protected:
  std::unique_ptr<Backend> backend_ = CreateBackend(GetParam(), /*n_threads=*/3).value();
};

INSTANTIATE_TEST_SUITE_P(Backends, ExpertOpsTest,
                         ::testing::Values(BackendKind::kRef, BackendKind::kCpu));

struct Shape {
  int64_t n_rows, n_experts, n_chosen;
};

TEST_P(ExpertOpsTest, RouteTakesTheBest) {
  for (const auto& [n_rows, n_experts, n_chosen] :
       {Shape{0, 4, 2}, {1, 1, 1}, {3, 4, 4}, {17, 8, 2}, {1000, 128, 8}}) {
    for (bool renormalize : {false, true}) {
      Random random(n_rows + n_experts);
      std::vector<float> logits = random.Normals(n_rows * n_experts, 3);
      std::vector<int32_t> experts(n_rows * n_chosen, -1);
      std::vector<float> weights(n_rows * n_chosen, -1);
      backend_->RouteExperts(
          {.logits = View(logits, {n_rows, n_experts}),
           .renormalize = renormalize,
           .experts = TensorView(experts.data(), DType::kI32, {n_rows, n_chosen}),
           .weights = View(weights, {n_rows, n_chosen})});
      for (int64_t t = 0; t < n_rows; ++t) {
        const float* row = &logits[t * n_experts];
        const std::set<int32_t> chosen(&experts[t * n_chosen], &experts[t * n_chosen] + n_chosen);
        ASSERT_EQ(static_cast<int64_t>(chosen.size()), n_chosen);
        double total = 0;
        for (int32_t x = 0; x < n_experts; ++x) {
          if (!renormalize || chosen.contains(x)) total += std::exp(double{row[x]});
          if (chosen.contains(x)) continue;
          EXPECT_LE(row[x], row[experts[(t + 1) * n_chosen - 1]]);  // the last one chosen
        }
        for (int64_t i = 0; i < n_chosen; ++i) {
          const int64_t at = t * n_chosen + i;
          EXPECT_NEAR(weights[at], std::exp(double{row[experts[at]]}) / total, 1e-6);
          if (i > 0) {
            EXPECT_LE(weights[at], weights[at - 1]);
          }
        }
      }
    }
  }
}

TEST_P(ExpertOpsTest, RouteTiesGoToTheLowerExpert) {
  std::vector<float> logits = {1, 2, 2, 1, 2};
  std::vector<int32_t> experts(4);
  std::vector<float> weights(4);
  backend_->RouteExperts({.logits = View(logits, {1, 5}),
                          .experts = TensorView(experts.data(), DType::kI32, {1, 4}),
                          .weights = View(weights, {1, 4})});
  EXPECT_EQ(experts, std::vector<int32_t>({1, 2, 4, 0}));
}

TEST_P(ExpertOpsTest, RouteOfExtremes) {
  std::vector<float> logits = {-1e30f, 500, 1e30f, -INFINITY};
  std::vector<int32_t> experts(2);
  std::vector<float> weights(2);
  backend_->RouteExperts({.logits = View(logits, {1, 4}),
                          .experts = TensorView(experts.data(), DType::kI32, {1, 2}),
                          .weights = View(weights, {1, 2})});
  EXPECT_EQ(experts, std::vector<int32_t>({2, 1}));
  EXPECT_EQ(weights, std::vector<float>({1, 0}));
}

TEST_P(ExpertOpsTest, GatherAndScatterAdd) {
  for (int64_t width : {1, 17, 1024}) {
    constexpr int64_t kRows = 113;
    Random random(width);
    std::vector<float> x = random.Normals(kRows * width), out = random.Normals(kRows * width);
    std::vector<int32_t> rows;
    for (int32_t row = kRows - 1; row >= 0; row -= 3) rows.push_back(row);
    const auto n = static_cast<int64_t>(rows.size());
    std::vector<float> weights = random.Normals(n), gathered(n * width, NAN), expected = out;
    backend_->GatherRows(
        {.x = View(x, {kRows, width}), .rows = rows.data(), .out = View(gathered, {n, width})});
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t e = 0; e < width; ++e) {
        ASSERT_EQ(gathered[i * width + e], x[rows[i] * width + e]);
        expected[rows[i] * width + e] += weights[i] * gathered[i * width + e];
      }
    }
    backend_->ScatterAddRows({.x = View(gathered, {n, width}),
                              .rows = rows.data(),
                              .weights = weights.data(),
                              .out = View(out, {kRows, width})});
    EXPECT_TRUE(IsClose(out, expected, DType::kF32, 1e-6));
    // No rows change nothing.
    const std::vector<float> before = out;
    backend_->ScatterAddRows({.x = View(gathered, {n, width}).Slice(0, 0),
                              .rows = nullptr,
                              .weights = nullptr,
                              .out = View(out, {kRows, width})});
    EXPECT_EQ(out, before);
  }
}

}  // namespace
}  // namespace longhaul
