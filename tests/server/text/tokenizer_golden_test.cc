// Ids and texts equal to what tokenizers and sentencepiece produced.
#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

using nlohmann::json;

class TokenizerGoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerGoldenTest, EncodesAndDecodesLikeTheReference) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const json cases = ReadGolden(GoldenFolder(GetParam()) + "/cases.json");
  ASSERT_GT(cases["texts"].size(), 100u);
  for (const json& item : cases["texts"]) {
    const std::string text = item["text"];
    const std::vector<int32_t> plain = item["plain"];
    EXPECT_EQ(EncodeOrFail(*tokenizer, text), plain) << item["text"].dump(-1, ' ', true);
    if (item.contains("decoded")) {
      EXPECT_EQ(tokenizer->Decode(plain), item["decoded"].get<std::string>())
          << item["text"].dump(-1, ' ', true);
    }
    if (!item.contains("parsed")) continue;
    EXPECT_EQ(EncodeOrFail(*tokenizer, text, SpecialTokens::kParse),
              item["parsed"].get<std::vector<int32_t>>())
        << item["text"].dump(-1, ' ', true);
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, TokenizerGoldenTest,
                         ::testing::Values("gpt2", "llama3", "qwen2", "regex_sequence", "llama2",
                                           "mistral_control", "spm_bpe", "spm_unigram"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TokenizerFolder, BosAndEosComeFromTheFilesThatNameThem) {
  const auto llama3 = LoadGolden("llama3");
  EXPECT_EQ(llama3->bos_id(), llama3->SpecialId("<|begin_of_text|>"));
  EXPECT_EQ(llama3->eos_ids(), std::vector<int32_t>{llama3->SpecialId("<|end_of_text|>")});
  const auto with_bos = llama3->Encode("hi", /*add_bos=*/true, SpecialTokens::kText);
  ASSERT_TRUE(with_bos.ok());
  EXPECT_EQ(with_bos->front(), llama3->bos_id());
  EXPECT_EQ(*llama3->Encode("", true, SpecialTokens::kText),
            std::vector<int32_t>{llama3->bos_id()});

  // Qwen2 has no bos; add_bos asks in vain.
  const auto qwen2 = LoadGolden("qwen2");
  EXPECT_EQ(qwen2->bos_id(), -1);
  EXPECT_EQ(*qwen2->Encode("hi", true, SpecialTokens::kText), EncodeOrFail(*qwen2, "hi"));

  const auto spm = LoadGolden("spm_bpe");
  EXPECT_EQ(spm->bos_id(), 1);
  EXPECT_EQ(spm->eos_ids(), std::vector<int32_t>{2});
  EXPECT_EQ(spm->Encode("hi", true, SpecialTokens::kText)->front(), 1);
}

TEST(TokenizerFolder, EosIdsAreTheUnionOfAllFiles) {
  TempFolder folder;
  std::filesystem::copy(GoldenFolder("llama3") + "/tokenizer.json", folder.path());
  folder.Write("tokenizer_config.json", R"({"eos_token": "<|eot_id|>"})");
  folder.Write("generation_config.json", R"({"eos_token_id": [7, 900, 7]})");
  folder.Write("config.json", R"({"eos_token_id": 8, "bos_token_id": 3})");
  const auto tokenizer = LoadTokenizer(folder.path(), 1);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->eos_ids(),
            (std::vector<int32_t>{7, 900, 8, (*tokenizer)->SpecialId("<|eot_id|>")}));
}

TEST(TokenizerFolder, AddedTokensOfAFileOfTheirOwn) {
  TempFolder folder;
  std::filesystem::copy(GoldenFolder("spm_bpe") + "/tokenizer.model", folder.path());
  folder.Write("added_tokens.json", R"({"<|im_end|>": 900, "<tool>": 901})");
  folder.Write("tokenizer_config.json",
               R"({"added_tokens_decoder": {"900": {"content": "<|im_end|>", "special": true}}})");
  const auto tokenizer = LoadTokenizer(folder.path(), 1);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->SpecialId("<|im_end|>"), 900);
  EXPECT_TRUE((*tokenizer)->IsSpecial(900));
  EXPECT_FALSE((*tokenizer)->IsSpecial(901));
  EXPECT_EQ(EncodeOrFail(**tokenizer, "a<tool>").back(), 901);
  EXPECT_EQ((*tokenizer)->Decode(EncodeOrFail(**tokenizer, "a<tool>b")), "a<tool>b");
  for (const char* bad : {R"({"x": -1})", R"({"x": "7"})", R"({"": 7})", "[]", "{"}) {
    folder.Write("added_tokens.json", bad);
    const absl::Status status = LoadTokenizer(folder.path(), 1).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
    EXPECT_NE(std::string(status.message()).find("added_tokens.json"), std::string::npos) << bad;
  }
}

TEST(TokenizerText, SpecialTokensHaveNamesButNoBytes) {
  const auto tokenizer = LoadGolden("qwen2");
  const int32_t end = tokenizer->SpecialId("<|im_end|>");
  ASSERT_GE(end, 0);
  EXPECT_TRUE(tokenizer->IsSpecial(end));
  EXPECT_EQ(tokenizer->TokenBytes(end), "");
  EXPECT_EQ(tokenizer->TokenText(end), "<|im_end|>");
  // Added but not special: part of the text.
  const int32_t think = tokenizer->SpecialId("<think>");
  EXPECT_FALSE(tokenizer->IsSpecial(think));
  EXPECT_EQ(tokenizer->TokenBytes(think), "<think>");
  for (const int32_t id : {-1, tokenizer->vocab_size(), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_EQ(tokenizer->TokenText(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

TEST(TokenizerText, PlainTextForgesNoControlToken) {
  for (const char* name :
       {"gpt2", "llama3", "qwen2", "llama2", "mistral_control", "spm_bpe", "spm_unigram"}) {
    const auto tokenizer = LoadGolden(name);
    ASSERT_NE(tokenizer, nullptr);
    for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
      if (!tokenizer->IsSpecial(id)) continue;
      for (const int32_t got : EncodeOrFail(*tokenizer, "x" + tokenizer->TokenText(id) + " y")) {
        EXPECT_FALSE(tokenizer->IsSpecial(got) && got != 0) << name << ": " << id;
      }
    }
  }
}

TEST(TokenizerText, InvalidUtf8IsRefusedWithItsOffset) {
  for (const char* name : {"llama3", "llama2", "spm_bpe"}) {
    const auto tokenizer = LoadGolden(name);
    ASSERT_NE(tokenizer, nullptr);
    for (const std::string bad :
         {"\x80", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE3\x81"}) {
      const auto ids = tokenizer->Encode("caf\xC3\xA9 " + bad, true, SpecialTokens::kText);
      ASSERT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_NE(std::string(ids.status().message()).find("byte 6"), std::string::npos)
          << ids.status();
    }
  }
}

}  // namespace
}  // namespace longhaul
