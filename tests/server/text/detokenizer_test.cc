#include "server/text/detokenizer.h"

#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

TEST(Utf8Test, FirstInvalidByte) {
  constexpr size_t kNone = std::string_view::npos;
  EXPECT_EQ(FindInvalidUtf8(""), kNone);
  EXPECT_EQ(FindInvalidUtf8("caf\xC3\xA9 \xE6\x97\xA5 \xF0\x9F\x99\x82"), kNone);
  EXPECT_EQ(FindInvalidUtf8(std::string("\0x", 2)), kNone);
  EXPECT_EQ(FindInvalidUtf8("abcdefgh\x80"), 8u);
  EXPECT_EQ(FindInvalidUtf8("a\xC0\xAF"), 1u);         // overlong
  EXPECT_EQ(FindInvalidUtf8("\xE0\x9F\xBF"), 0u);      // overlong
  EXPECT_EQ(FindInvalidUtf8("\xED\xA0\x80"), 0u);      // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("abc\xF0\x9F\x99"), 3u);   // cut off
}

TEST(Utf8Test, ReplacesMaximalSubparts) {
  // The example of the Unicode standard, section 3.9.
  EXPECT_EQ(SanitizeUtf8("a\xF1\x80\x80\xE1\x80\xC2"
                         "b\x80"
                         "c\x80\xBF"
                         "d"),
            std::string("a") + kReplacement + kReplacement + kReplacement + "b" + kReplacement +
                "c" + kReplacement + kReplacement + "d");
  EXPECT_EQ(SanitizeUtf8("\xED\xA0\x80"), std::string(kReplacement) + kReplacement + kReplacement);
}

TEST(Utf8Test, HoldsBackOnlyWhatCanBeCompleted) {
  EXPECT_EQ(CompleteUtf8Prefix(""), 0u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xF0\x9F\x99"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xE6"), 2u);
  EXPECT_EQ(CompleteUtf8Prefix("ab\xE0\x80"), 4u);  // overlong: never valid
  EXPECT_EQ(CompleteUtf8Prefix("\xF0\x9F\x99\x82"), 4u);
  EXPECT_EQ(CompleteUtf8Prefix("\x80\x80\x80"), 3u);
}

class StreamDetokenizerTest : public ::testing::TestWithParam<const char*> {};

TEST_P(StreamDetokenizerTest, StreamsWholeCharactersThatAddUpToTheText) {
  const auto tokenizer = LoadGolden(GetParam());
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    const std::vector<int32_t> ids = EncodeOrFail(*tokenizer, RandomText(seed, 80));
    StreamDetokenizer detokenizer(tokenizer.get());
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = detokenizer.Push(id);
      ASSERT_EQ(FindInvalidUtf8(piece), std::string_view::npos);
      ASSERT_EQ(piece.find(kReplacement), std::string::npos);
      text += piece;
    }
    EXPECT_EQ(detokenizer.Finish(), "");
    EXPECT_EQ(text, tokenizer->Decode(ids)) << "seed " << seed;
  }
}

// Any tokens a model may write, valid or not: the stream adds up to Decode.
TEST_P(StreamDetokenizerTest, RandomTokensAddUpToDecode) {
  const auto tokenizer = LoadGolden(GetParam());
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(random() % 30);
    // The first 300 ids hold the single bytes.
    for (int32_t& id : ids) id = random() % std::min(300, tokenizer->vocab_size());
    StreamDetokenizer detokenizer(tokenizer.get());
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = detokenizer.Push(id);
      ASSERT_EQ(FindInvalidUtf8(piece), std::string_view::npos);
      text += piece;
    }
    text += detokenizer.Finish();
    ASSERT_EQ(text, tokenizer->Decode(ids)) << "round " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, StreamDetokenizerTest,
                         ::testing::Values("gpt2", "llama3", "qwen2", "llama2", "spm_bpe"),
                         [](const auto& info) { return std::string(info.param); });

TEST(StreamDetokenizerTest, AnUnfinishedCharacterComesOutAtTheEnd) {
  const auto tokenizer = LoadGolden("spm_bpe");
  // Byte pieces <0x00> ... follow <unk>, <s> and </s>.
  const auto byte = [](int value) { return 3 + value; };
  ASSERT_EQ(tokenizer->TokenBytes(byte(0xF0)), "\xF0");
  StreamDetokenizer detokenizer(tokenizer.get());
  EXPECT_EQ(detokenizer.Push(byte(0xF0)), "");
  EXPECT_EQ(detokenizer.Push(byte(0x9F)), "");
  EXPECT_EQ(detokenizer.Finish(), kReplacement);
}

}  // namespace
}  // namespace longhaul
