// A small tokenizer of every published kind against tokenizers and sentencepiece, on lines of every
// script, space and emoji sequence: ids, decoded text, one long text, several threads.
#include "server/text/unicode.h"
#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

using nlohmann::json;

const std::string kFamilies = "families/";

std::vector<std::string> TortureLines() {
  return ReadGolden(GoldenFolder(kFamilies + "torture.json")).get<std::vector<std::string>>();
}

std::string WholeText() {
  const json whole = ReadGolden(GoldenFolder(kFamilies + "whole.json"));
  std::string text;
  for (int i = whole["repeats"]; i > 0; --i) {
    for (const std::string& line : TortureLines()) {
      text.append(line).append(whole["separator"].get<std::string>());
    }
  }
  text.pop_back();
  return text;
}

std::string Fnv1a(const std::vector<int32_t>& ids) {
  uint64_t value = 0xCBF29CE484222325u;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      value = (value ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x100000001B3u;
    }
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

class TokenizerFamilyTest : public ::testing::TestWithParam<const char*> {
 protected:
  json golden_ = ReadGolden(GoldenFolder(kFamilies + GetParam()) + "/ids.json");
};

TEST_P(TokenizerFamilyTest, EveryLineHasTheIdsAndTheTextOfTheReference) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kFamilies + GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<std::string> lines = TortureLines();
  ASSERT_GT(lines.size(), 200u);
  ASSERT_EQ(golden_["plain"].size(), lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string shown = json(lines[i]).dump(-1, ' ', true), key = std::to_string(i);
    const std::vector<int32_t> plain = golden_["plain"][i];
    EXPECT_EQ(EncodeOrFail(*tokenizer, lines[i]), plain) << shown;
    const json& parsed = golden_["parsed"].contains(key) ? golden_["parsed"][key] : json(plain);
    if (!std::string_view(GetParam()).starts_with("spm_")) {
      EXPECT_EQ(EncodeOrFail(*tokenizer, lines[i], SpecialTokens::kParse),
                parsed.get<std::vector<int32_t>>())
          << shown;
    }
    EXPECT_EQ(tokenizer->Decode(plain), golden_["decoded"].value(key, lines[i])) << shown;
  }
  EXPECT_EQ(*tokenizer->Encode(lines[0], /*add_bos=*/true, SpecialTokens::kText),
            golden_["with_special"].get<std::vector<int32_t>>());
}

TEST_P(TokenizerFamilyTest, OneLongTextOnAnyNumberOfThreads) {
  const std::string text = WholeText();
  ASSERT_GT(text.size(), 128u << 10);
  for (const int n_threads : {1, 4}) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kFamilies + GetParam(), n_threads);
    ASSERT_NE(tokenizer, nullptr);
    const std::vector<int32_t> ids = EncodeOrFail(*tokenizer, text);
    EXPECT_EQ(ids.size(), golden_["whole"]["n"].get<size_t>()) << n_threads << " threads";
    EXPECT_EQ(Fnv1a(ids), golden_["whole"]["fnv1a"].get<std::string>()) << n_threads << " threads";
  }
}

// Any characters: every plane, unassigned ones too.
std::string RandomUnicode(std::mt19937* random) {
  static constexpr uint32_t kLimits[] = {0x80, 0x800, 0x3100, 0xD800, 0x20000, 0x110000};
  std::string text;
  for (size_t n = (*random)() % 80; n > 0; --n) {
    const uint32_t c = (*random)() % kLimits[(*random)() % std::size(kLimits)];
    // U+2581 is sentencepiece's space, and comes back as one.
    if ((c >= 0xD800 && c < 0xE000) || c == 0x2581) continue;
    for (size_t repeats = (*random)() % 8 == 0 ? (*random)() % 70 : 1; repeats > 0; --repeats) {
      AppendUtf8(c, &text);
    }
  }
  return text;
}

class RoundTripTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RoundTripTest, AnyUnicodeComesBack) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kFamilies + GetParam());
  ASSERT_NE(tokenizer, nullptr);
  std::mt19937 random(11);
  for (int round = 0; round < 500; ++round) {
    const std::string text = RandomUnicode(&random);
    ASSERT_EQ(tokenizer->Decode(EncodeOrFail(*tokenizer, text)), text)
        << "round " << round << ": " << json(text).dump(-1, ' ', true);
  }
}

// One unit over and over, ended by something else: what makes backtracking patterns and merges
// quadratic. A quadratic one would run for minutes here.
TEST_P(RoundTripTest, LongRunsComeBack) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kFamilies + GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const char* unit : {"a", "A", "Ab", " ", "\n", " \n", "\t", "7", "!", "<", "'s", "🙂",
                           "日本語文", "한", "\u0301", "\u00a0", "\u3000", "<|one|>"}) {
    std::string text;
    while (text.size() < 300000) text.append(unit);
    for (const char* tail : {"", "5", "!", "x", "\n"}) {
      const std::string run = text + tail;
      EXPECT_TRUE(tokenizer->Decode(EncodeOrFail(*tokenizer, run)) == run)
          << json(unit).dump(-1, ' ', true) << " and " << json(tail).dump();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, RoundTripTest,
                         ::testing::Values("gpt2", "starcoder", "llama3", "glm4", "deepseek_v2",
                                           "deepseek_v3", "tekken", "cl100k", "o200k", "gemma"),
                         [](const auto& info) { return std::string(info.param); });

INSTANTIATE_TEST_SUITE_P(
    Kinds, TokenizerFamilyTest,
    ::testing::Values("gpt2", "gpt2_prefix_space", "gpt_neox", "starcoder", "llama3", "qwen2",
                      "glm4", "deepseek_v2", "deepseek_v3", "tekken", "cl100k", "o200k",
                      "regex_words", "digits_together", "single_word", "split_merged_with_previous",
                      "split_merged_with_next", "split_contiguous", "split_removed",
                      "split_removed_inverted", "replace_regex", "nfkc_lowercase", "nfd_strip",
                      "nfkd_replace", "llama2", "phi3", "gemma", "unknown_fused", "unknown_single",
                      "metaspace_always", "metaspace_always_split", "metaspace_first",
                      "metaspace_first_split", "metaspace_never", "metaspace_never_split",
                      "spm_bpe", "spm_bpe_no_prefix", "spm_bpe_nfkc", "spm_bpe_user_symbols",
                      "spm_unigram", "spm_unigram_trims"),
    [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace longhaul
