// `longhaul bench attention` end to end at a size that takes a moment.

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/cmd_bench_attention.h"

namespace longhaul {
namespace {

BenchAttentionOptions SmallOptions() {
  BenchAttentionOptions options;
  options.lengths = {4096};
  options.head_dims = {32};
  options.epochs = {1024};
  options.n_heads = 4;
  options.n_kv_heads = 1;
  options.n_threads = 2;
  options.json = true;
  return options;
}

TEST(BenchAttentionTest, ReportsRatesDensityAndRecall) {
  testing::internal::CaptureStdout();
  ASSERT_EQ(RunBenchAttention(SmallOptions()), 0);
  const nlohmann::json report = nlohmann::json::parse(testing::internal::GetCapturedStdout());
  ASSERT_EQ(report["rows"].size(), 2);
  const nlohmann::json& stripes = report["rows"][0];
  const nlohmann::json& streaming = report["rows"][1];
  for (const nlohmann::json& row : report["rows"]) {
    EXPECT_GT(row["gemm_gflops"], 0);
    EXPECT_GT(row["dense_gflops"], 0);
    EXPECT_GT(row["sparse_gflops_on_kept_work"], 0);
    EXPECT_GT(row["decode_gb_per_s"], 0);
    EXPECT_EQ(row["timed"], "whole prompt");
    EXPECT_GT(row["density"], 0.1);  // sink and window alone
    EXPECT_LT(row["density"], 1.0);
    EXPECT_GT(row["recall_mean"], 0.85);
    EXPECT_LE(row["recall_mean"], 1.0);
  }
  EXPECT_LT(streaming["density"], stripes["density"]);
}

TEST(BenchAttentionTest, RefusesWhatItCannotRun) {
  const auto fails = [](auto change) {
    BenchAttentionOptions options = SmallOptions();
    change(options);
    testing::internal::CaptureStderr();
    const int code = RunBenchAttention(options);
    EXPECT_NE(testing::internal::GetCapturedStderr(), "");
    return code == 2;
  };
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.lengths = {0}; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.head_dims = {7}; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.epochs = {-1}; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.n_kv_heads = 3; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.n_kv_heads = 0; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.density = 1.5; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.alpha = 0; }));
  EXPECT_TRUE(fails([](BenchAttentionOptions& o) { o.kv_dtype = DType::kF16; }));
}

}  // namespace
}  // namespace longhaul
