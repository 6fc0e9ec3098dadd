// Reads the folders that tools/goldens/make_tokenizer_goldens.py writes, and makes small model
// folders of a test's own.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "server/text/tokenizer.h"

namespace longhaul {

inline std::string GoldenFolder(const std::string& name) {
  return "tests/golden/tokenizers/" + name;
}

inline nlohmann::json ReadGolden(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  return nlohmann::json::parse(stream);
}

inline std::unique_ptr<Tokenizer> LoadGolden(const std::string& name, int n_threads = 2) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      LoadTokenizer(GoldenFolder(name), n_threads);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline std::vector<int32_t> EncodeOrFail(const Tokenizer& tokenizer, std::string_view text,
                                         SpecialTokens special = SpecialTokens::kText) {
  const absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, false, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

// A folder that disappears with its test.
class TempFolder {
 public:
  TempFolder() {
    std::string path = ::testing::TempDir() + "/tokenizer_XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    path_ = path;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  void Write(const std::string& name, std::string_view content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
  }

 private:
  std::string path_;
};

// Valid UTF-8 of about n_bytes: words, numbers, spaces, several scripts, now and then a control
// token.
inline std::string RandomText(uint32_t seed, size_t n_bytes) {
  static constexpr std::string_view kParts[] = {"the",    "con",
                                                "re",     "world",
                                                "hello",  "I'm",
                                                "WE'LL",  "12345",
                                                "7",      ".",
                                                ", ",     "!?",
                                                "\n",     "\r\n",
                                                "\n\n  ", "\t",
                                                "   ",    "日本語",
                                                "é",      "e\u0301",
                                                "🙂",   "👩‍👩‍👧",
                                                "\u00a0", "\u3000",
                                                "½",      "д",
                                                "(x)",    "<|im_end|>",
                                                "</s>",   "_",
                                                "▁",      "\u1e9b\u0323",
                                                "ſ",      "'",
                                                "\u0085", "--"};
  std::mt19937 random(seed);
  std::string text;
  while (text.size() < n_bytes) {
    text.append(kParts[random() % std::size(kParts)]);
    if (random() % 2 == 0) text.append(" ");
  }
  return text;
}

}  // namespace longhaul
