// The hand-written matchers against PCRE2 running the very patterns they stand for.
#include "server/text/pretokenizer.h"

#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

std::vector<uint32_t> Split(const PreTokenizer& pretokenizer, std::string_view text) {
  std::vector<uint32_t> ends;
  const absl::Status status = pretokenizer.Split(text, &ends);
  EXPECT_TRUE(status.ok()) << status;
  return ends;
}

class MatcherTest : public ::testing::TestWithParam<std::string_view> {};

TEST_P(MatcherTest, CutsWherePcre2Cuts) {
  PreTokenizer fast, slow;
  ASSERT_TRUE(fast.AddPattern(std::string(GetParam())).ok());
  // The group hides the pattern from recognition.
  ASSERT_TRUE(slow.AddPattern("(?:" + std::string(GetParam()) + ")").ok());
  for (uint32_t seed = 1; seed <= 3000; ++seed) {
    const std::string text = RandomText(seed, seed % 60);
    ASSERT_EQ(Split(fast, text), Split(slow, text)) << "seed " << seed << ": " << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, MatcherTest,
                         ::testing::Values(kGpt2Pattern, kLlama3Pattern, kQwen2Pattern));

TEST(PreTokenizerTest, PiecesAreNeverEmptyAndCoverTheText) {
  PreTokenizer pretokenizer;
  ASSERT_TRUE(pretokenizer.AddPattern("x*").ok());      // may match nothing
  ASSERT_TRUE(pretokenizer.AddPattern("\\p{N}").ok());  // leaves gaps
  EXPECT_EQ(Split(pretokenizer, "axxb12"), (std::vector<uint32_t>{1, 3, 4, 5, 6}));
  EXPECT_EQ(Split(pretokenizer, ""), std::vector<uint32_t>{});
  EXPECT_EQ(Split(PreTokenizer(), "a b"), std::vector<uint32_t>{3});
}

TEST(PreTokenizerTest, HostilePatternsFailInsteadOfHanging) {
  PreTokenizer broken;
  EXPECT_TRUE(absl::IsUnimplemented(broken.AddPattern("(unclosed")));
  EXPECT_TRUE(absl::IsUnimplemented(broken.AddPattern(std::string(1 << 20, 'a'))));
  PreTokenizer exponential;
  ASSERT_TRUE(exponential.AddPattern("(a+)+$").ok());
  std::vector<uint32_t> ends;
  EXPECT_TRUE(absl::IsInvalidArgument(exponential.Split(std::string(40, 'a') + "b", &ends)));
}

}  // namespace
}  // namespace longhaul
