// longhaul bench linear: what it prints, and what it refuses.
#include "server/cmd_bench_linear.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace longhaul {
namespace {

TEST(BenchLinear, EveryFormatBesideThePeaks) {
  BenchLinearOptions options;
  options.shapes = {"3072x1024"};
  options.rows = {40};
  options.n_threads = 1;
  options.json = true;
  ::testing::internal::CaptureStdout();
  ASSERT_EQ(RunBenchLinear(options), 0);
  const auto result = nlohmann::json::parse(::testing::internal::GetCapturedStdout());
  EXPECT_GT(result["peak_f32_gflops"], 0);
  EXPECT_GE(result["peak_int8_gops"], 0);
  EXPECT_GT(result["memory_read_gb_per_s"], 0);
  ASSERT_EQ(result["rows"].size(), 3u);
  for (const nlohmann::json& row : result["rows"]) {
    EXPECT_EQ(row["n_out"], 3072);
    EXPECT_GT(row["gops"], 0) << row;
    EXPECT_GT(row["weight_gb_per_s"], 0) << row;
  }
}

TEST(BenchLinear, BadOptionsAreNamed) {
  const auto error = [](const BenchLinearOptions& options) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(RunBenchLinear(options), 2);
    return ::testing::internal::GetCapturedStderr();
  };
  for (const char* shape : {"", "x", "12", "12x", "x12", "0x5", "5x-1", "12x12x", "70000x1"}) {
    EXPECT_NE(error({.shapes = {shape}}).find(std::string("shape '") + shape), std::string::npos);
  }
  EXPECT_NE(error({.rows = {0}}).find("0 rows"), std::string::npos);
}

}  // namespace
}  // namespace longhaul
