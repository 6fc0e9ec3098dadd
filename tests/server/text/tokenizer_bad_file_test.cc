// Folders that are missing, cut off or lying: an error that names file and field, never a crash.
#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

using nlohmann::json;

absl::Status LoadWith(const std::string& tokenizer_json, const std::string& config = "{}") {
  TempFolder folder;
  folder.Write("tokenizer.json", tokenizer_json);
  folder.Write("tokenizer_config.json", config);
  return LoadTokenizer(folder.path(), 1).status();
}

void ExpectError(const absl::Status& status, absl::StatusCode code, std::string_view text) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_NE(std::string(status.message()).find(text), std::string::npos)
      << status << "\nexpected to contain: " << text;
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(TokenizerBadFile, MissingFilesAreNamed) {
  TempFolder folder;
  ExpectError(LoadTokenizer(folder.path(), 1).status(), absl::StatusCode::kNotFound,
              "neither tokenizer.json nor tokenizer.model");
  std::filesystem::create_directory(folder.path() + "/tokenizer.json");
  ExpectError(LoadTokenizer(folder.path(), 1).status(), kInvalid, "not a regular file");
}

TEST(TokenizerBadFile, EveryTruncationOfAGoodFileIsRefused) {
  std::ifstream stream(GoldenFolder("llama3") + "/tokenizer.json", std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(stream)), {});
  ASSERT_TRUE(LoadWith(good).ok());
  for (size_t n = 0; n < good.size(); n += 997) {
    ExpectError(LoadWith(good.substr(0, n)), kInvalid, "tokenizer.json");
  }
}

TEST(TokenizerBadFile, DeepNestingAndNonObjects) {
  ExpectError(LoadWith(std::string(100000, '[')), kInvalid, "nested deeper than");
  ExpectError(LoadWith("[]"), kInvalid, "expected an object");
  ExpectError(LoadWith("{}"), kInvalid, "model: is missing");
  ExpectError(LoadWith(R"({"model": 3})"), kInvalid, "model: is number");
  ExpectError(LoadWith("{\"model\": {\"type\": \"BPE\", \"vocab\": {\"\xff\": 1}}}"), kInvalid,
              "not valid JSON");
}

// One change to a good file, given as a JSON merge patch, and what the error must say.
struct Change {
  const char* patch;
  absl::StatusCode code;
  const char* text;
};

class TokenizerBadFieldTest : public ::testing::TestWithParam<Change> {};

TEST_P(TokenizerBadFieldTest, IsRefusedByName) {
  json file = {{"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
               {"added_tokens", json::array()},
               {"model",
                {{"type", "BPE"},
                 {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}, {"<s>", 3}}},
                 {"merges", {"a b"}}}}};
  ASSERT_TRUE(LoadWith(file.dump()).ok());
  file.merge_patch(json::parse(GetParam().patch));
  const absl::Status status = LoadWith(file.dump());
  ExpectError(status, GetParam().code, GetParam().text);
  ExpectError(status, GetParam().code, "tokenizer.json: ");
}

INSTANTIATE_TEST_SUITE_P(
    Changes, TokenizerBadFieldTest,
    ::testing::Values(
        Change{R"({"model": {"type": "WordPiece"}})", kUnimplemented, "\"WordPiece\""},
        Change{R"({"model": {"vocab": {"b": 0}}})", kInvalid, "id 0 belongs to"},
        Change{R"({"model": {"vocab": {"b": -1}}})", kInvalid, "\"b\" has no id"},
        Change{R"({"model": {"vocab": {"b": 99999999}}})", kInvalid, "\"b\" has no id"},
        Change{R"({"model": {"vocab": {"b": 18446744073709551615}}})", kInvalid, "\"b\" has no id"},
        Change{R"({"model": {"vocab": {"b": 1.5}}})", kInvalid, "\"b\" has no id"},
        Change{R"({"model": {"vocab": {"b": "1"}}})", kInvalid, "\"b\" has no id"},
        Change{R"({"model": {"vocab": []}})", kInvalid, "model.vocab: is array"},
        Change{R"({"model": {"vocab": null}})", kInvalid, "model.vocab: is missing"},
        Change{R"({"model": {"merges": ["a c"]}})", kInvalid, "merges: entry 0 needs token \"c\""},
        Change{R"({"model": {"merges": ["b a"]}})", kInvalid, "needs token \"ba\""},
        Change{R"({"model": {"merges": ["ab"]}})", kInvalid, "not two tokens"},
        Change{R"({"model": {"merges": ["a b", ["a"]]}})", kInvalid, "entry 1"},
        Change{R"({"model": {"merges": [7]}})", kInvalid, "entry 0"},
        Change{R"({"model": {"merges": {"a": "b"}}})", kInvalid, "model.merges: is object"},
        Change{R"({"model": {"unk_token": "?"}})", kInvalid, "unk_token"},
        Change{R"({"model": {"dropout": 0.1}})", kUnimplemented, "dropout"},
        Change{R"({"model": {"end_of_word_suffix": "</w>"}})", kUnimplemented,
               "end_of_word_suffix"},
        Change{R"({"model": {"ignore_merges": 1}})", kInvalid, "model.ignore_merges: is number"},
        Change{R"({"pre_tokenizer": {"type": "BertPreTokenizer"}})", kUnimplemented,
               "\"BertPreTokenizer\""},
        Change{R"({"pre_tokenizer": 5})", kInvalid, "pre_tokenizer: is number"},
        Change{R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 1}})", kInvalid,
               "pretokenizers"},
        Change{R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [1]}})", kInvalid,
               "not an object"},
        Change{R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("},
                   "behavior": "Isolated"}})",
               kUnimplemented, "does not compile"},
        Change{R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"},
                   "behavior": "Sideways"}})",
               kUnimplemented, "\"Sideways\" is not supported; supported are Isolated"},
        Change{R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"},
                   "behavior": "MergedWithNext", "invert": true}})",
               kUnimplemented, "invert"},
        Change{R"({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[^(a|[bc])]"},
                   "behavior": "Isolated"}})",
               kUnimplemented, "a set inside a set at offset 5"},
        Change{R"({"normalizer": {"type": "BertNormalizer"}})", kUnimplemented,
               "\"BertNormalizer\""},
        Change{R"({"normalizer": {"type": "Replace", "pattern": {"String": "a"},
                   "content": "xxxxxxxx"}})",
               kUnimplemented, "three times"},
        Change{R"({"normalizer": {"type": "Replace", "pattern": {"Regex": "a|bcd"},
                   "content": "xxxx"}})",
               kUnimplemented, "three times"},
        Change{R"({"normalizer": {"type": "Replace", "pattern": {"Regex": "a*"},
                   "content": "x"}})",
               kUnimplemented, "may match an empty text"},
        Change{R"({"normalizer": {"type": "Replace", "pattern": {"Regex": "(("},
                   "content": "x"}})",
               kUnimplemented, "pattern.Regex: the pattern (( does not compile"},
        Change{R"({"normalizer": {"type": "Replace", "pattern": {}, "content": "x"}})", kInvalid,
               "needs Regex or String"},
        Change{R"({"post_processor": {"type": "BertProcessing"}})", kUnimplemented,
               "BertProcessing"},
        Change{R"({"post_processor": {"type": "TemplateProcessing",
                   "single": [{"SpecialToken": {"id": "<bos>"}}]}})",
               kInvalid, "\"<bos>\" does not exist"},
        Change{R"({"added_tokens": [{"id": 1, "content": "<s>"}]})", kInvalid,
               "\"<s>\" has id 1, in the vocabulary 3"},
        Change{R"({"added_tokens": [{"id": -4, "content": "x"}]})", kInvalid, "added_tokens.id"},
        Change{R"({"added_tokens": [{"id": 4}]})", kInvalid, "added_tokens.content"},
        Change{R"({"added_tokens": [{"id": 4, "content": ""}]})", kInvalid, "added_tokens.content"},
        Change{R"({"added_tokens": ["x"]})", kInvalid, "not an object"},
        Change{R"({"added_tokens": [{"id": 4, "content": "x", "single_word": 1}]})", kInvalid,
               "single_word: is number"}));

TEST(TokenizerBadFile, FilesBesideTheTokenizer) {
  const std::string good = ReadGolden(GoldenFolder("gpt2") + "/tokenizer.json").dump();
  ExpectError(LoadWith(good, "{"), kInvalid, "tokenizer_config.json");
  ExpectError(LoadWith(good, R"({"eos_token": 5})"), kInvalid, "eos_token: is number");
  ExpectError(LoadWith(good, R"({"eos_token": "</nope>"})"), kInvalid, "\"</nope>\"");
  ExpectError(LoadWith(good, R"({"add_bos_token": "yes"})"), kInvalid, "add_bos_token: is string");
  ExpectError(LoadWith(good, R"({"added_tokens_decoder": {"-1": {"content": "x"}}})"), kInvalid,
              "added_tokens_decoder");
  for (const char* eos : {"-1", "4294967296", "[1, -2]", "\"2\"", "1e3", "[[1]]"}) {
    TempFolder folder;
    folder.Write("tokenizer.json", good);
    folder.Write("generation_config.json", std::string("{\"eos_token_id\": ") + eos + "}");
    ExpectError(LoadTokenizer(folder.path(), 1).status(), kInvalid,
                "generation_config.json: eos_token_id");
  }
}

TEST(TokenizerBadFile, DamagedSentencePieceModels) {
  std::ifstream stream(GoldenFolder("spm_bpe") + "/tokenizer.model", std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(stream)), {});
  TempFolder folder;
  for (const size_t n : {size_t{0}, size_t{1}, good.size() / 3, good.size() - 1}) {
    folder.Write("tokenizer.model", good.substr(0, n));
    ExpectError(LoadTokenizer(folder.path(), 1).status(), kInvalid, "tokenizer.model");
  }
  folder.Write("tokenizer.model", good);
  ASSERT_TRUE(LoadTokenizer(folder.path(), 1).ok());
  folder.Write("tokenizer_config.json",
               R"({"added_tokens_decoder": {"1": {"content": "<bos>", "special": true}}})");
  ExpectError(LoadTokenizer(folder.path(), 1).status(), kInvalid, "id 1 is \"<bos>\"");
}

}  // namespace
}  // namespace longhaul
