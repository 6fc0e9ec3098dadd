#include "server/load/prompt_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "server/text/tokenizer.h"

namespace longhaul::load {
namespace {

class PromptTextTest : public testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = LoadTokenizer("models/lookup", /*n_threads=*/1);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  std::vector<int32_t> Tokens(const std::string& text, bool add_bos = true) {
    return *tokenizer_->Encode(text, add_bos, SpecialTokens::kText);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(PromptTextTest, LengthsAreExactForTheBundledModel) {
  PromptText prompts(1, 2);
  for (const int64_t n_tokens :
       {64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 256, 1000, 16384, 131072}) {
    const Prompt prompt = prompts.Make(n_tokens, 8);
    EXPECT_EQ(static_cast<int64_t>(Tokens(prompt.text).size()), n_tokens);
  }
}

TEST_F(PromptTextTest, FillerHasItsPieces) {
  PromptText prompts(1, 2);
  for (int64_t n = 4; n < 80; ++n) {
    EXPECT_EQ(static_cast<int64_t>(Tokens(prompts.Filler(n), /*add_bos=*/false).size()), n);
  }
}

TEST_F(PromptTextTest, ShortestPrompt) {
  PromptText prompts(1, 2);
  for (const int64_t n_answer : {1, 16, 256, 4096}) {
    const int64_t n_tokens = PromptText::MinTokens(n_answer);
    EXPECT_EQ(static_cast<int64_t>(Tokens(prompts.Make(n_tokens, n_answer).text).size()), n_tokens);
  }
}

// No prefix cache helps: two prompts differ within the first page of 64 tokens, of one run and of
// two.
TEST_F(PromptTextTest, EveryPromptOpensDifferently) {
  std::set<std::vector<int32_t>> openings;
  for (const uint64_t run_id : {7, 8}) {
    PromptText prompts(1, run_id);
    for (int i = 0; i < 2000; ++i) {
      std::vector<int32_t> ids = Tokens(prompts.Make(100, 1).text);
      ids.resize(18);
      openings.insert(std::move(ids));
    }
  }
  EXPECT_EQ(openings.size(), 4000u);
}

TEST_F(PromptTextTest, SameSeedAndRunGiveTheSameText) {
  PromptText a(1, 2), b(1, 2), other_seed(2, 2);
  for (int i = 0; i < 10; ++i) {
    const std::string text = a.Make(300, 16).text;
    EXPECT_EQ(text, b.Make(300, 16).text);
    EXPECT_NE(text, other_seed.Make(300, 16).text);
  }
}

TEST_F(PromptTextTest, TheCodeStandsOnceAndIsAskedForAtTheEnd) {
  PromptText prompts(1, 2);
  const Prompt prompt = prompts.Make(512, 16);
  ASSERT_EQ(prompt.code.size(), 48u);
  std::set<std::string> groups;
  for (size_t i = 0; i < prompt.code.size(); i += 3) groups.insert(prompt.code.substr(i, 3));
  EXPECT_EQ(groups.size(), 16u) << "a group that came twice would have two successors";
  const size_t at = prompt.text.find(prompt.code);
  ASSERT_NE(at, std::string::npos);
  EXPECT_EQ(prompt.text.find(prompt.code, at + 1), std::string::npos);
  const size_t question = prompt.text.rfind("The code of");
  EXPECT_EQ(prompt.text.substr(question), prompt.text.substr(at - (prompt.text.size() - question),
                                                             prompt.text.size() - question));
}

TEST(PromptTextScaleTest, TokensPerPieceScalesTheText) {
  PromptText prompts(1, 2);
  const size_t plain = prompts.Make(10000, 1).text.size();
  prompts.SetTokensPerPiece(2);
  const size_t half = prompts.Make(10000, 1).text.size();
  EXPECT_NEAR(static_cast<double>(half) / static_cast<double>(plain), 0.5, 0.02);
}

}  // namespace
}  // namespace longhaul::load
