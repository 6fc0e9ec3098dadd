// SentencePieceBpe against the sentencepiece library, id by id.
#include "server/text/sentencepiece_bpe.h"

#include <algorithm>
#include <cmath>

#include "server/text/json_file.h"
#include "server/text/sentencepiece_model.h"
#include "tests/server/text/golden_folder.h"

namespace longhaul {
namespace {

std::string ModelBytes(const std::string& folder) {
  const auto bytes = ReadFileCapped(GoldenFolder(folder) + "/tokenizer.model", 1 << 24);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return *bytes;
}

// Few kinds of parts, so that merges overlap; runs of spaces and letters.
std::string DenseText(std::mt19937* random, size_t n_bytes) {
  static constexpr std::string_view kParts[] = {
      "a",  "e",  "t",         "th",           "the", "<tool>", "o",    "or", " ",
      "  ", "\n", "<|three|>", "\xE2\x96\x81", "é",   "日",     "🙂", "</", "<"};
  std::string text;
  while (text.size() < n_bytes) {
    const std::string_view part = kParts[(*random)() % std::size(kParts)];
    for (size_t n = (*random)() % 20 == 0 ? (*random)() % 40 : 1; n > 0; --n) text.append(part);
  }
  return text;
}

class SentencePieceBpeTest : public ::testing::TestWithParam<const char*> {};

TEST_P(SentencePieceBpeTest, GivesTheIdsOfTheLibrary) {
  const std::string bytes = ModelBytes(GetParam());
  const auto library = SentencePieceModel::Load(bytes);
  ASSERT_TRUE(library.ok()) << library.status();
  const auto bpe = SentencePieceBpe::Create(*ReadSentencePieceFile(bytes));
  ASSERT_NE(bpe, nullptr);
  ThreadPool pool(3);
  std::mt19937 random(3);
  for (int round = 0; round < 800; ++round) {
    const size_t n_bytes = round < 780 ? 1 + random() % 200 : 70000;
    const std::string text =
        round % 2 == 0 ? DenseText(&random, n_bytes) : RandomText(round, n_bytes);
    std::vector<int32_t> expected, ids;
    std::string error;
    ASSERT_TRUE((*library)->Encode(text, &expected, &error)) << error;
    bpe->Encode(text, /*at_start=*/true, n_bytes < 200 ? nullptr : &pool, &ids);
    ASSERT_TRUE(ids == expected) << "round " << round << ": " << text.substr(0, 200);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SentencePieceBpeTest,
                         ::testing::Values("spm_bpe", "families/spm_bpe",
                                           "families/spm_bpe_no_prefix",
                                           "families/spm_bpe_user_symbols"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '/', '_');
                           return name;
                         });

TEST(SentencePieceBpe, IsNotForOtherModels) {
  for (const char* folder :
       {"spm_unigram", "families/spm_bpe_nfkc", "families/spm_unigram_trims"}) {
    const std::string bytes = ModelBytes(folder);
    const auto file = ReadSentencePieceFile(bytes);
    ASSERT_TRUE(file.has_value()) << folder;
    EXPECT_EQ(SentencePieceBpe::Create(*file), nullptr) << folder;
  }
}

SentencePieceFile SmallFile() {
  using Type = SentencePieceFile::PieceType;
  SentencePieceFile file;
  file.model_type = SentencePieceFile::ModelType::kBpe;
  file.remove_extra_whitespaces = file.add_dummy_prefix = false;
  file.pieces = {{"<unk>", 0, Type::kUnknown}, {"a", -9, Type::kNormal}, {"b", -10, Type::kNormal},
                 {"ab", -1, Type::kNormal},    {"aa", 0, Type::kNormal}, {"aaa", 1, Type::kNormal}};
  return file;
}

TEST(SentencePieceBpe, MergesByScoreAndFusesUnknowns) {
  const auto bpe = SentencePieceBpe::Create(SmallFile());
  ASSERT_NE(bpe, nullptr);
  std::vector<int32_t> ids;
  bpe->Encode("aaaaab??ab", /*at_start=*/true, nullptr, &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{5, 4, 2, 0, 3}));
}

// Two ways to one result: the leftmost goes first, though the other is listed first.
TEST(BpeModelTest, NeighboursWithOneResultMayShareARank) {
  for (const bool share : {false, true}) {
    BpeSpec spec;
    spec.results_share_rank = share;
    spec.byte_ids.fill(-1);
    spec.tokens = {"p", "q", "r", "R"};
    spec.merges = {{1, 2, 3}, {0, 1, 3}};
    const BpeModel model(spec);
    BpeModel::Scratch scratch;
    for (const int n_repeats : {1, 10, 5000}) {
      std::string piece;
      std::vector<int32_t> expected, ids;
      for (int i = 0; i < n_repeats; ++i) {
        piece.append("pqr");
        expected.insert(expected.end(), {share ? 3 : 0, share ? 2 : 3});
      }
      model.Encode(piece, &scratch, &ids);
      EXPECT_TRUE(ids == expected) << share << " " << n_repeats;
    }
  }
}

TEST(SentencePieceBpe, RefusesWhatRanksCannotOrder) {
  EXPECT_NE(SentencePieceBpe::Create(SmallFile()), nullptr);
  using Type = SentencePieceFile::PieceType;
  const SentencePieceFile::Piece kBad[] = {
      {"ba", -1, Type::kNormal},             // the score of "ab"
      {"ac", -7, Type::kNormal},             // no piece "c"
      {"bb", std::nanf(""), Type::kNormal},  // no score
      {"c", -7, Type::kControl},             // a control piece that a text spells
      {"bb", -7, Type::kUnused},
      {"", -7, Type::kNormal}};
  for (const SentencePieceFile::Piece& piece : kBad) {
    SentencePieceFile file = SmallFile();
    file.pieces.push_back(piece);
    EXPECT_EQ(SentencePieceBpe::Create(file), nullptr) << piece.text;
  }
}

TEST(SentencePieceFileTest, EveryTruncationIsReadOrRefused) {
  const std::string bytes = ModelBytes("spm_bpe");
  const size_t n_pieces = ReadSentencePieceFile(bytes)->pieces.size();
  EXPECT_EQ(n_pieces, 900u);
  for (size_t n = 0; n < bytes.size(); n += 1 + n / 50) {
    const auto file = ReadSentencePieceFile(std::string_view(bytes).substr(0, n));
    EXPECT_TRUE(!file || file->pieces.size() <= n_pieces) << n;
  }
  EXPECT_FALSE(ReadSentencePieceFile("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"));
  EXPECT_FALSE(ReadSentencePieceFile("\x0B"));
}

}  // namespace
}  // namespace longhaul
