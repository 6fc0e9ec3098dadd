// Pattern files of vertical-slash: what is read, and each kind of file that is refused.
#include "engine/head_budgets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace longhaul {
namespace {

using ::testing::HasSubstr;

TEST(HeadBudgetsTest, ReadsThePublishedForm) {
  const auto budgets = ParseHeadBudgets(
      R"([{"0": ["vertical_and_slash", 1000, 6096, 0.33], "1": ["stream_llm", 100, 800, 0.96]},
          {"1": ["vertical_and_slash", 3500, 100, 1], "0": ["vertical_and_slash", 0, 0]}])");
  ASSERT_TRUE(budgets.ok()) << budgets.status();
  EXPECT_EQ(budgets->n_layers, 2);
  EXPECT_EQ(budgets->n_heads, 2);
  ASSERT_EQ(budgets->budgets.size(), 4u);
  const auto expect = [&](size_t at, int32_t n_columns, int32_t n_bands, int32_t by_place) {
    const HeadBudget& b = budgets->budgets[at];
    EXPECT_EQ(b.n_columns, n_columns) << at;
    EXPECT_EQ(b.n_bands, n_bands) << at;
    EXPECT_EQ(b.by_place, by_place) << at;
  };
  expect(0, 1000, 96, 0);  // 6096 / 64 = 95.25
  expect(1, 100, 13, 1);
  expect(2, 0, 0, 0);
  expect(3, 3500, 2, 0);
  // The digest follows the content.
  const auto other = ParseHeadBudgets(R"([{"0": ["vertical_and_slash", 1001, 6096, 0.33]}])");
  const auto same = ParseHeadBudgets(R"([{"0": ["vertical_and_slash", 1001, 6096, 0.5]}])");
  EXPECT_NE(other->digest, budgets->digest);
  EXPECT_EQ(other->digest, same->digest);
}

TEST(HeadBudgetsTest, SaysWhatIsWrong) {
  const std::pair<std::string, const char*> bad[] = {
      {"", "valid JSON"},
      {"[{\"0\": [\"vertical_and_slash\", 1", "valid JSON"},
      {"{}", "list of 1"},
      {"[]", "list of 1"},
      {"[[]]", "list of 1"},
      {"[{}]", "list of 1"},
      {std::string(100000, '['), "nested"},
      {R"([{"1": ["vertical_and_slash", 1, 1, 1]}])", "layer 0, head 0: is missing"},
      {R"([{"0": ["vertical_and_slash", 1, 1, 1]}, {}])", "layer 1 must"},
      {R"([{"0": ["vertical_and_slash", 1, 1, 1]}, 7])", "layer 1 must"},
      {R"([{"0": ["vertical_and_slash", 1]}])", "layer 0, head 0: must be [pattern"},
      {R"([{"0": [1, 1, 1]}])", "layer 0, head 0: must be [pattern"},
      {R"([{"0": ["block_sparse", 1000, 1, 1]}])", "'block_sparse' is not supported"},
      {R"([{"0": ["flex_vertical_and_slash", [0.95, 4096], [0.95, 4096], 0]}])", "not supported"},
      {R"([{"0": ["vertical_and_slash", -1, 1, 1]}])", "number of columns"},
      {R"([{"0": ["vertical_and_slash", 1.5, 1, 1]}])", "number of columns"},
      {R"([{"0": ["vertical_and_slash", 1, 16777217, 1]}])", "number of diagonals"},
      {R"([{"0": ["vertical_and_slash", 1, 18446744073709551615, 1]}])", "number of diagonals"},
  };
  for (const auto& [text, what] : bad) {
    const auto budgets = ParseHeadBudgets(text);
    EXPECT_EQ(budgets.status().code(), absl::StatusCode::kInvalidArgument) << text.substr(0, 80);
    EXPECT_THAT(std::string(budgets.status().message()), HasSubstr(what)) << text.substr(0, 80);
  }
}

TEST(HeadBudgetsTest, FilesAreNamedInErrors) {
  const auto missing = ReadHeadBudgets("no/such/file.json");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("no/such/file.json"));
  const std::string path = ::testing::TempDir() + "/head_budgets_test.json";
  std::ofstream(path) << R"([{"0": ["vertical_and_slash", 30, 800, 1.0]}])";
  const auto good = ReadHeadBudgets(path);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ((*good)->budgets[0].n_bands, 13);
  std::ofstream(path) << "nonsense";
  EXPECT_THAT(std::string(ReadHeadBudgets(path).status().message()), HasSubstr(path));
  std::remove(path.c_str());
  EXPECT_FALSE(ReadHeadBudgets(::testing::TempDir()).ok()) << "a folder";
}

}  // namespace
}  // namespace longhaul
