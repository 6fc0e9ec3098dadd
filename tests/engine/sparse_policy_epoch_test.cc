// Sparse options: names, ranges, cache keys; how they resolve for one epoch; the report's
// arithmetic.
#include "engine/sparse_policy.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "engine/head_budgets.h"
#include "engine/model/sparse_attention.h"

namespace longhaul {
namespace {

using ::testing::HasSubstr;

SparseOptions Mode(SparseMode mode) {
  SparseOptions options;
  options.mode = mode;
  return options;
}

std::shared_ptr<const HeadBudgets> OneHead(int64_t n_columns) {
  return std::make_shared<const HeadBudgets>(
      ParseHeadBudgets(fmt::format(R"([{{"0": ["vertical_and_slash", {}, 800, 1]}}])", n_columns))
          .value());
}

TEST(SparseOptionsTest, ModeNames) {
  for (const char* name : {"dense", "sample", "paper", "streaming", "vertical_slash", "auto"}) {
    ASSERT_TRUE(ParseSparseMode(name).ok());
    EXPECT_EQ(SparseModeName(*ParseSparseMode(name)), name);
  }
  EXPECT_EQ(*ParseSparseMode("adaptive"), SparseMode::kSample);
  const auto bad = ParseSparseMode("Dense");
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("'Dense'"));
}

TEST(SparseOptionsTest, ValidateNamesTheField) {
  EXPECT_TRUE(SparseOptions().Validate().ok());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::pair<const char*, std::function<void(SparseOptions&)>>> bad = {
      {"alpha", [](auto& o) { o.alpha = 0; }},
      {"alpha", [](auto& o) { o.alpha = 1.01f; }},
      {"alpha", [&](auto& o) { o.alpha = nan; }},
      {"keep_max", [&](auto& o) { o.keep_max = nan; }},
      {"keep_max", [](auto& o) { o.keep_max = 0; }},
      {"recall_floor", [](auto& o) { o.recall_floor = -0.1f; }},
      {"recall_floor", [&](auto& o) { o.recall_floor = nan; }},
      {"sink", [](auto& o) { o.sink = -1; }},
      {"sink", [](auto& o) { o.sink = int64_t{1} << 60; }},
      {"window", [](auto& o) { o.window = 0; }},
      {"window", [](auto& o) { o.window = 100; }},
      {"window", [](auto& o) { o.window = int64_t{1} << 60; }},
      {"stripe_width", [](auto& o) { o.stripe_width = 2; }},
      {"sampled_rows", [](auto& o) { o.sampled_rows = 0; }},
      {"sampled_rows", [](auto& o) { o.sampled_rows = 513; }},
      {"tail_rows", [](auto& o) { o.tail_rows = -1; }},
      {"audit_rows", [](auto& o) { o.audit_rows = 0; }},
      {"dense_tail_tokens", [](auto& o) { o.dense_tail_tokens = -1; }},
      {"auto_min_keys", [](auto& o) { o.auto_min_keys = -1; }},
      {"columns", [](auto& o) { o.columns = -1; }},
      {"diagonals", [](auto& o) { o.diagonals = kMaxBudget + 1; }},
  };
  for (const auto& [field, change] : bad) {
    SparseOptions options;
    change(options);
    const absl::Status status = options.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("sparse.") + field));
  }
}

TEST(SparseOptionsTest, CacheKeySeparatesWhatChangesKv) {
  std::set<std::string> keys;
  const std::vector<std::function<void(SparseOptions&)>> changes = {
      [](auto&) {},
      [](auto& o) { o.mode = SparseMode::kPaper; },
      [](auto& o) { o.mode = SparseMode::kStreaming; },
      [](auto& o) { o.mode = SparseMode::kAuto; },
      [](auto& o) { o.mode = SparseMode::kDense; },
      [](auto& o) { o.alpha = std::nextafter(o.alpha, 1.0f); },
      [](auto& o) { o.sink = 65; },
      [](auto& o) { o.window = 2048; },
      [](auto& o) { o.stripe_width = 8; },
      [](auto& o) { o.sampled_rows = 49; },
      [](auto& o) { o.tail_rows = 17; },
      [](auto& o) { o.audit_rows = 17; },
      [](auto& o) { o.keep_max = 0.5f; },
      [](auto& o) { o.recall_floor = 0.5f; },
      [](auto& o) { o.dense_tail_tokens = 65; },
      [](auto& o) { o.auto_min_keys = 1; },
      [](auto& o) { o.mode = SparseMode::kVerticalSlash; },
      [](auto& o) { o.columns = 1001; },
      [](auto& o) { o.diagonals = 6097; },
      [](auto& o) { o.head_budgets = OneHead(100); },
      [](auto& o) { o.head_budgets = OneHead(101); },
  };
  for (const auto& change : changes) {
    SparseOptions options = Mode(SparseMode::kSample);
    change(options);
    EXPECT_TRUE(keys.insert(options.CacheKey()).second) << options.CacheKey();
  }
  SparseOptions dense = Mode(SparseMode::kDense);
  dense.alpha = 0.5f;  // does not matter
  EXPECT_EQ(dense.CacheKey(), Mode(SparseMode::kDense).CacheKey());
}

// What every sparse epoch's rows must satisfy.
void CheckRows(const EpochPolicy& policy, int64_t n_q, int64_t n_audit) {
  ASSERT_EQ(static_cast<int64_t>(policy.rows.size()), policy.n_voting + n_audit);
  const auto voting_end = policy.rows.begin() + policy.n_voting;
  EXPECT_TRUE(std::is_sorted(policy.rows.begin(), voting_end));
  EXPECT_TRUE(std::is_sorted(voting_end, policy.rows.end()));
  const std::set<int32_t> unique(policy.rows.begin(), policy.rows.end());
  EXPECT_EQ(unique.size(), policy.rows.size());
  EXPECT_GE(*unique.begin(), 0);
  EXPECT_LT(*unique.rbegin(), n_q);
}

TEST(ResolveEpochTest, RowsAreUniqueForEverySize) {
  for (SparseMode mode : {SparseMode::kSample, SparseMode::kPaper, SparseMode::kStreaming,
                          SparseMode::kVerticalSlash}) {
    const SparseOptions options = Mode(mode);
    int64_t n_sparse = 0;
    for (int64_t n_q = 1; n_q < 400; ++n_q) {
      const EpochPolicy policy = ResolveEpoch(options, 4096, n_q);
      if (policy.dense) continue;
      ++n_sparse;
      CheckRows(policy, n_q, mode == SparseMode::kSample ? 8 : options.audit_rows);
    }
    EXPECT_GT(n_sparse, 300) << SparseModeName(mode);
  }
}

TEST(ResolveEpochTest, Adaptive) {
  const EpochPolicy policy = ResolveEpoch(Mode(SparseMode::kSample), 8192, 4096);
  EXPECT_FALSE(policy.dense);
  EXPECT_TRUE(policy.sample && policy.bands);
  EXPECT_EQ(policy.local.window, 128);
  EXPECT_EQ(policy.n_voting, 48);
  EXPECT_EQ(policy.rows[0], 42);
  EXPECT_EQ(policy.rows[47], 4053);
  EXPECT_EQ(policy.scope, MassScope::kRemote);
  EXPECT_FLOAT_EQ(policy.keep_max, 0.25f);
  EXPECT_FLOAT_EQ(policy.recall_floor, 0.85f);
  // Audit rows are drawn: other epochs, other rows; the same epoch, the same rows.
  EXPECT_EQ(ResolveEpoch(Mode(SparseMode::kSample), 8192, 4096).rows, policy.rows);
  EXPECT_NE(ResolveEpoch(Mode(SparseMode::kSample), 12288, 4096).rows, policy.rows);
}

// Fewer rows for a short epoch, in proportion; never below 16 that vote and 8 of the other kinds,
// or what was asked for.
TEST(ResolveEpochTest, RowsOfShortEpochs) {
  const auto n_rows = [](const SparseOptions& options, int64_t n_q) {
    const EpochPolicy policy = ResolveEpoch(options, 1 << 17, n_q);
    return std::pair(policy.n_voting, static_cast<int64_t>(policy.rows.size()));
  };
  SparseOptions options = Mode(SparseMode::kSample);
  EXPECT_EQ(n_rows(options, 8192), std::pair(int64_t{48}, int64_t{64}));
  EXPECT_EQ(n_rows(options, 4032), std::pair(int64_t{48}, int64_t{64}));
  EXPECT_EQ(n_rows(options, 2048), std::pair(int64_t{24}, int64_t{32}));
  EXPECT_EQ(n_rows(options, 1000), std::pair(int64_t{16}, int64_t{24}));
  options.tail_rows = 2;
  EXPECT_EQ(n_rows(options, 1000), std::pair(int64_t{18}, int64_t{26}));
  options.sampled_rows = 5;
  EXPECT_EQ(n_rows(options, 1000), std::pair(int64_t{7}, int64_t{15}));
}

TEST(ResolveEpochTest, Paper) {
  const EpochPolicy policy = ResolveEpoch(Mode(SparseMode::kPaper), 10000 - 2048, 2048);
  EXPECT_TRUE(policy.sample);
  EXPECT_FALSE(policy.bands);
  EXPECT_EQ(policy.scope, MassScope::kAll);
  EXPECT_EQ(policy.n_voting, 103);      // 5 % of 2048
  EXPECT_EQ(policy.local.window, 832);  // 8 % of 10000, rounded up to 64
  EXPECT_EQ(policy.local.sink, 0);
  EXPECT_GT(policy.keep_max, 1.0f);
  EXPECT_EQ(policy.recall_floor, 0.0f);
}

TEST(ResolveEpochTest, Streaming) {
  const EpochPolicy policy = ResolveEpoch(Mode(SparseMode::kStreaming), 8192, 2048);
  EXPECT_FALSE(policy.dense || policy.sample);
  EXPECT_EQ(policy.local.window, 128);
  EXPECT_EQ(policy.recall_floor, 0.0f);
}

TEST(ResolveEpochTest, VerticalSlash) {
  SparseOptions options = Mode(SparseMode::kVerticalSlash);
  options.stripe_width = 8;
  EpochPolicy policy = ResolveEpoch(options, 8192, 2048);
  EXPECT_TRUE(policy.sample && policy.bands && policy.fixed_budgets && !policy.dense);
  EXPECT_EQ(policy.scope, MassScope::kAll);
  EXPECT_EQ(policy.n_voting, 64);
  EXPECT_EQ(policy.rows[0], 2048 - 64);
  EXPECT_EQ(policy.rows[63], 2047);
  EXPECT_EQ(policy.local.sink, 30);
  EXPECT_EQ(policy.local.window, 128);
  EXPECT_EQ(policy.stripe_width, 1);
  EXPECT_EQ(policy.recall_floor, 0.0f);
  EXPECT_EQ(policy.BudgetOf(3, 7).n_columns, 1000);
  EXPECT_EQ(policy.BudgetOf(3, 7).n_bands, 96);  // 6096 diagonals
  // Alpha is not its business, not even 1.
  options.alpha = 1.0f;
  EXPECT_FALSE(ResolveEpoch(options, 8192, 2048).dense);
  options.head_budgets = OneHead(77);
  policy = ResolveEpoch(options, 8192, 2048);
  EXPECT_EQ(policy.BudgetOf(0, 0).n_columns, 77);
  // Rows that vote and rows that audit must fit.
  EXPECT_TRUE(ResolveEpoch(options, 8192, 79).dense);
  EXPECT_FALSE(ResolveEpoch(options, 8192, 80).dense);
}

TEST(SparseOptionsTest, CheckModel) {
  SparseOptions options = Mode(SparseMode::kVerticalSlash);
  EXPECT_TRUE(options.CheckModel(2, 4).ok());
  options.head_budgets = OneHead(77);
  EXPECT_TRUE(options.CheckModel(1, 1).ok());
  const absl::Status other = options.CheckModel(2, 1);
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(other.message()), HasSubstr("1 layers with 1 heads"));
  options.mode = SparseMode::kSample;  // does not read them
  EXPECT_TRUE(options.CheckModel(2, 1).ok());
}

TEST(ResolveEpochTest, WhenDense) {
  EXPECT_TRUE(ResolveEpoch(Mode(SparseMode::kDense), 1 << 20, 2048).dense);
  SparseOptions options = Mode(SparseMode::kSample);
  EXPECT_TRUE(ResolveEpoch(options, 0, 64 + 128).dense);  // sink and window hold all
  EXPECT_FALSE(ResolveEpoch(options, 0, 64 + 129).dense);
  EXPECT_TRUE(ResolveEpoch(options, 1 << 20, 63).dense);  // fewer rows than are sampled
  EXPECT_FALSE(ResolveEpoch(options, 1 << 20, 64).dense);
  options.alpha = 1.0f;
  EXPECT_TRUE(ResolveEpoch(options, 1 << 20, 2048).dense);
  options = Mode(SparseMode::kAuto);
  EXPECT_TRUE(ResolveEpoch(options, 4096 - 2048, 2048).dense);
  EXPECT_FALSE(ResolveEpoch(options, 4096, 2048).dense);
}

TEST(ResolveEpochTest, MaxEpochRowsIsEnough) {
  for (SparseMode mode : {SparseMode::kSample, SparseMode::kPaper, SparseMode::kStreaming,
                          SparseMode::kVerticalSlash}) {
    SparseOptions options = Mode(mode);
    options.sampled_rows = options.tail_rows = options.audit_rows = kMaxRowsOfKind;
    for (int64_t n_q : {1, 64, 2048, 8192, 65536}) {
      EXPECT_LE(static_cast<int64_t>(ResolveEpoch(options, 1 << 20, n_q).rows.size()),
                MaxEpochRows(n_q));
    }
  }
}

TEST(PlanEpochAttentionTest, TheLastRowsOfThePromptAreExact) {
  const SparseOptions options = Mode(SparseMode::kSample);
  EXPECT_EQ(PlanEpochAttention(options, 8192, 10240, 20000).n_policy_rows, 2048);
  EXPECT_EQ(PlanEpochAttention(options, 8192, 10240, 10240).n_policy_rows, 2048 - 64);
  EXPECT_EQ(PlanEpochAttention(options, 8192, 10240, 10250).n_policy_rows, 2048 - 54);
  EXPECT_EQ(PlanEpochAttention(options, 10240, 10250, 10250).n_policy_rows, 0);
  EXPECT_EQ(PlanEpochAttention(options, 10240, 10241, 10241).n_policy_rows, 0);
  EXPECT_EQ(PlanEpochAttention(Mode(SparseMode::kDense), 8192, 10240, 20000).n_policy_rows, 0);
}

TEST(SparseReportTest, RecallStatistics) {
  SparseReport report;
  EXPECT_EQ(report.Density(), 1.0);
  EXPECT_EQ(report.RecallMean(), 1.0);
  EXPECT_EQ(report.RecallPercentile(1), 1.0);
  for (int i = 1; i <= 100; ++i) report.AddRecall(static_cast<float>(i) / 100.0f);
  EXPECT_NEAR(report.RecallMean(), 0.505, 1e-6);
  EXPECT_FLOAT_EQ(report.recall_min, 0.01f);
  EXPECT_NEAR(report.RecallPercentile(1), 0.01, 1.1e-3);
  EXPECT_NEAR(report.RecallPercentile(50), 0.5, 1.1e-3);
  EXPECT_EQ(report.RecallPercentile(100), 1.0);
  report.AddRecall(std::numeric_limits<float>::quiet_NaN());
  report.AddRecall(2.0f);
  EXPECT_EQ(report.recall_min, 0.0f);
  EXPECT_EQ(report.n_recalls, 102);
}

TEST(SparseReportTest, Merge) {
  SparseReport a, b;
  a.kept_pairs = 10;
  a.causal_pairs = 40;
  a.n_streaming = 1;
  a.AddRecall(0.5f);
  b.kept_pairs = 20;
  b.causal_pairs = 20;
  b.n_head_epochs = 3;
  b.n_dense = 2;
  b.n_repaired = 1;
  b.AddRecall(1.0f);
  a.Merge(b);
  EXPECT_DOUBLE_EQ(a.Density(), 0.5);
  EXPECT_DOUBLE_EQ(a.RecallMean(), 0.75);
  EXPECT_EQ(a.n_recalls, 2);
  EXPECT_EQ(a.n_head_epochs, 3);
  EXPECT_EQ(a.n_dense, 2);
  EXPECT_EQ(a.n_repaired, 1);
  EXPECT_EQ(a.n_streaming, 1);
  EXPECT_FLOAT_EQ(a.recall_min, 0.5f);
  EXPECT_EQ(a.RecallPercentile(1), 0.5);
}

}  // namespace
}  // namespace longhaul
