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

// Also where parts never meet: runs that are one match, and digits in threes out of step.
TEST_P(MatcherTest, ThreadsCutWhereOneThreadCuts) {
  PreTokenizer pretokenizer;
  ASSERT_TRUE(pretokenizer.AddPattern(std::string(GetParam())).ok());
  ThreadPool pool(3);
  std::vector<std::string> texts = {std::string(300000, 'a'), std::string(300000, ' '),
                                    "12" + std::string(299999, '7'),
                                    "a" + std::string(290000, '7') + RandomText(3, 90000)};
  for (uint32_t seed = 1; seed <= 12; ++seed) texts.push_back(RandomText(seed, 70000 + 999 * seed));
  for (const std::string& text : texts) {
    std::vector<uint32_t> ends;
    ASSERT_TRUE(pretokenizer.Split(text, &ends, &pool).ok());
    EXPECT_TRUE(ends == Split(pretokenizer, text)) << text.substr(0, 40);
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, MatcherTest,
                         ::testing::Values(kGpt2Pattern, kLlama3Pattern, kQwen2Pattern));

// ICU alone needs time quadratic in such a run: minutes for these.
TEST(NormalFormTest, LongRunsOfMarksAreInOrder) {
  for (const auto& [form, first, second] :
       {std::tuple<NormalForm, std::string, std::string>{NormalForm::kNfc, "\u0323", "\u0301"},
        {NormalForm::kNfd, "\u0323", "\u0301"},
        {NormalForm::kNfkd, "\u3099", "\u0301"}}) {
    const size_t n = 300000;
    std::string text = "x", expected = "x";
    // U+FF9E is U+3099 in compatibility forms.
    const std::string typed = form == NormalForm::kNfkd ? "\uFF9E" : first;
    for (size_t i = 0; i < n; ++i) text.append(second).append(typed);
    if (form == NormalForm::kNfc) text.append("e\u0301");
    for (const std::string* mark : {&first, &second}) {
      for (size_t i = 0; i < n; ++i) expected.append(*mark);
    }
    if (form == NormalForm::kNfc) expected.append("\u00E9");
    const auto result = ToNormalForm(form, text, size_t{1} << 30);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->value_or(text) == expected);
  }
}

TEST(PreTokenizerTest, PiecesAreNeverEmptyAndCoverTheText) {
  PreTokenizer pretokenizer;
  ASSERT_TRUE(pretokenizer.AddPattern("x*").ok());      // may match nothing
  ASSERT_TRUE(pretokenizer.AddPattern("\\p{N}").ok());  // leaves gaps
  EXPECT_EQ(Split(pretokenizer, "axxb12"), (std::vector<uint32_t>{1, 3, 4, 5, 6}));
  EXPECT_EQ(Split(pretokenizer, ""), std::vector<uint32_t>{});
  EXPECT_EQ(Split(PreTokenizer(), "a b"), std::vector<uint32_t>{3});
}

TEST(PreTokenizerTest, PatternsMeanWhatOnigurumaReads) {
  const auto split = [](const char* pattern, std::string_view text) {
    PreTokenizer pretokenizer;
    EXPECT_TRUE(pretokenizer.AddPattern(pattern).ok()) << pattern;
    return Split(pretokenizer, text);
  };
  using Ends = std::vector<uint32_t>;
  EXPECT_EQ(split("x$", "ax\nbx\rcx"), (Ends{1, 2, 7, 8}));
  EXPECT_EQ(split("^a", "aab\naa"), (Ends{1, 4, 5, 6}));
  EXPECT_EQ(split("\\s+", "a\u180e\u0085b"), (Ends{4, 6, 7}));
  EXPECT_EQ(split("[^\\s]+", "a\u180e b"), (Ends{4, 5, 6}));
  EXPECT_EQ(split("\\w+", "a\u0301b_c-d"), (Ends{6, 7, 8}));
  EXPECT_EQ(split("\\w+", "-\u00B2a\u2074"), (Ends{1, 4, 7}));
  EXPECT_EQ(split("[\\w]+", "-\u00B2a"), (Ends{3, 4}));
  EXPECT_EQ(split("\\W+", "a\u00BC-"), (Ends{3, 4}));
  EXPECT_EQ(split("\\h+", "xaf9g"), (Ends{1, 4, 5}));
  EXPECT_EQ(split("[]a]+", "x]a"), (Ends{1, 3}));
}

TEST(PreTokenizerTest, BehaviorsOfAMatch) {
  const auto split = [](SplitBehavior behavior, std::string_view text) {
    PreTokenizer pretokenizer;
    EXPECT_TRUE(pretokenizer.AddPattern("-", behavior).ok());
    return Split(pretokenizer, text);
  };
  using Ends = std::vector<uint32_t>;
  EXPECT_EQ(split(SplitBehavior::kIsolated, "a-b--c"), (Ends{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithPrevious, "a-b--c"), (Ends{2, 4, 5, 6}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithNext, "a-b--c"), (Ends{1, 3, 4, 6}));
  EXPECT_EQ(split(SplitBehavior::kContiguous, "a-b--c"), (Ends{1, 2, 3, 5, 6}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithPrevious, "-a-"), (Ends{1, 3}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithNext, "-a-"), (Ends{2, 3}));
  EXPECT_EQ(split(SplitBehavior::kContiguous, "--"), Ends{2});
}

TEST(PreTokenizerTest, RemovedPartsAreNotSeenByLaterSteps) {
  const auto split = [](SplitBehavior behavior, std::string_view text) {
    PreTokenizer pretokenizer;
    EXPECT_TRUE(pretokenizer.AddPattern("-", behavior).ok());
    EXPECT_TRUE(pretokenizer.AddPattern("ab|--", SplitBehavior::kIsolated).ok());
    EXPECT_TRUE(pretokenizer.removes());
    std::vector<uint32_t> ends;
    std::string kept;
    EXPECT_TRUE(pretokenizer.Split(text, &ends, nullptr, &kept).ok());
    return std::pair(kept, ends);
  };
  using Result = std::pair<std::string, std::vector<uint32_t>>;
  EXPECT_EQ(split(SplitBehavior::kRemoved, "-a-b--cab-"), (Result{"abcab", {1, 2, 3, 5}}));
  EXPECT_EQ(split(SplitBehavior::kOthersRemoved, "a-b--cab"), (Result{"---", {1, 2, 3}}));
  EXPECT_EQ(split(SplitBehavior::kRemoved, "---"), (Result{"", {}}));
  EXPECT_EQ(split(SplitBehavior::kOthersRemoved, "ab"), (Result{"", {}}));
  EXPECT_EQ(split(SplitBehavior::kRemoved, ""), (Result{"", {}}));
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
