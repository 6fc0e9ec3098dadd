// What `longhaul bench tokenizer` prints and refuses; not how fast anything is.
#include "server/cmd_bench_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace longhaul {
namespace {

TEST(BenchTokenizer, EveryInputHasItsBytesTokensAndTimes) {
  BenchTokenizerOptions options;
  options.model_dir = "tests/golden/tokenizers/families/deepseek_v3";
  options.megabytes = 0.002;
  options.n_threads = 2;
  options.json = true;
  ::testing::internal::CaptureStdout();
  const int rc = RunBenchTokenizer(options);
  const nlohmann::json result = nlohmann::json::parse(::testing::internal::GetCapturedStdout());
  ASSERT_EQ(rc, 0);
  ASSERT_GE(result["inputs"].size(), 10u);
  double worst = 0;
  for (const nlohmann::json& input : result["inputs"]) {
    // Cut before a character of up to four bytes.
    EXPECT_LE(input["bytes"], 2000) << input;
    EXPECT_GT(input["bytes"], 1996) << input;
    EXPECT_GT(input["tokens"], 0) << input;
    EXPECT_GT(input["one_thread_s"], 0) << input;
    EXPECT_GT(input["all_threads_s"], 0) << input;
    worst = std::max(worst, input["ratio"].get<double>());
  }
  EXPECT_DOUBLE_EQ(result["inputs"][0]["ratio"].get<double>(), 1);
  EXPECT_DOUBLE_EQ(result["worst_ratio"].get<double>(), worst);
}

TEST(BenchTokenizer, TheTableEndsWithTheSlowestInput) {
  BenchTokenizerOptions options;
  options.model_dir = "tests/golden/tokenizers/families/llama2";
  options.text_file = "README.md";
  options.megabytes = 0.002;
  ::testing::internal::CaptureStdout();
  ASSERT_EQ(RunBenchTokenizer(options), 0);
  const std::string table = ::testing::internal::GetCapturedStdout();
  EXPECT_NE(table.find("\nEnglish"), std::string::npos) << table;
  EXPECT_NE(table.find("\nslowest: "), std::string::npos) << table;
}

TEST(BenchTokenizer, MissingFilesAreNamed) {
  BenchTokenizerOptions options;
  options.model_dir = "tests/golden/none";
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(RunBenchTokenizer(options), 1);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("tests/golden/none"), std::string::npos);
  options.model_dir = "tests/golden/tokenizers/families/llama2";
  options.text_file = "tests/golden/none.txt";
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(RunBenchTokenizer(options), 1);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("none.txt"), std::string::npos);
}

}  // namespace
}  // namespace longhaul
