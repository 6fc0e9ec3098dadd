// The packed weights of a model on disk: what a second start maps, and what it refuses.
#include "engine/model/weight_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using testing::TempDir;

class WeightCacheTest : public ::testing::Test {
 protected:
  void SetUp() override { testing::WriteTinyModel(model_); }

  absl::StatusOr<std::vector<float>> Logits(std::optional<WeightFormat> format,
                                            std::string cache_dir,
                                            const std::string& backend = "cpu") {
    EngineConfig config;
    config.epoch_tokens = 64;
    config.max_model_len = 128;
    config.kv_cache_bytes = 1 << 20;
    config.weight_format = format;
    config.weight_cache_dir = std::move(cache_dir);
    LH_ASSIGN_OR_RETURN(const std::unique_ptr<Executor> executor,
                        LoadRunner(model_.path(), testing::MakeBackend(backend), config, nullptr));
    auto sequence = testing::MakeSequence({1, 17, 5, 63, 40, 8, 22}, 0);
    return testing::Prefill(*executor, sequence, 64);
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(cache_.path())) {
      files.push_back(entry.path().string());
    }
    return files;
  }
  static std::string Read(const std::string& path) {
    std::stringstream content;
    content << std::ifstream(path, std::ios::binary).rdbuf();
    return content.str();
  }
  static void Write(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
  }

  TempDir model_;
  TempDir cache_;
};

TEST_F(WeightCacheTest, ALaterStartMapsWhatTheFirstPacked) {
  for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
    const auto plain = Logits(format, "");
    const auto first = Logits(format, cache_.path());
    ASSERT_TRUE(first.ok()) << first.status();
    const std::vector<std::string> files = Files();
    const auto written = std::filesystem::last_write_time(files.back());
    EXPECT_EQ(*first, *plain);
    EXPECT_EQ(*Logits(format, cache_.path()), *plain);
    EXPECT_EQ(Files(), files);
    EXPECT_EQ(std::filesystem::last_write_time(files.back()), written);
  }
  EXPECT_EQ(Files().size(), 3u);  // one per format, and nothing temporary
}

TEST_F(WeightCacheTest, DamagedFilesAreReplaced) {
  const auto expected = Logits(WeightFormat::kInt8, cache_.path());
  ASSERT_EQ(Files().size(), 1u);
  const std::string path = Files()[0];
  const std::string good = Read(path);
  const auto flipped = [&](size_t at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    return bad;
  };
  std::vector<std::string> bad_files = {"",
                                        "short",
                                        good.substr(0, 63),
                                        good.substr(0, 64),
                                        good.substr(0, good.size() - 1),
                                        good + "x",
                                        std::string(good.size(), 'x')};
  for (size_t at : {size_t{0}, size_t{8}, size_t{12}, size_t{16}, size_t{24}, size_t{40},
                    size_t{56}, size_t{64}, good.size() / 2, good.size() - 1}) {
    bad_files.push_back(flipped(at));
  }
  for (const std::string& bad : bad_files) {
    Write(path, bad);
    const auto logits = Logits(WeightFormat::kInt8, cache_.path());
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_EQ(*logits, *expected);
    ASSERT_EQ(Files().size(), 1u);
    EXPECT_EQ(Read(path), good);
  }
}

TEST_F(WeightCacheTest, FindsByIdAndKey) {
  const std::string path = cache_.path() + "/file";
  const std::vector<std::byte> bytes(200, std::byte{7});
  const PackedMatrixId id{.name = "a", .n_out = 10, .n_in = 20};
  {
    auto writer = WeightCacheWriter::Create(path, "key").value();
    ASSERT_TRUE(writer.Add(id, bytes).ok());
    ASSERT_TRUE(writer.Add({.name = "b"}, {}).ok());
    ASSERT_TRUE(writer.Commit().ok());
  }
  const auto reader = WeightCacheReader::Open(path, "key");
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_TRUE(std::ranges::equal(reader->Find(id), bytes));
  EXPECT_TRUE(reader->Find({.name = "a", .n_out = 20, .n_in = 10}).empty());
  EXPECT_EQ(WeightCacheReader::Open(path, "other key").status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(WeightCacheReader::Open(path + "x", "key").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(WeightCacheTest, AWriterThatIsNotCommittedLeavesNothing) {
  const std::string path = cache_.path() + "/file";
  {
    auto writer = WeightCacheWriter::Create(path, "key").value();
    ASSERT_TRUE(writer.Add({.name = "a"}, std::vector<std::byte>(100)).ok());
  }
  EXPECT_TRUE(Files().empty());
}

TEST_F(WeightCacheTest, AnotherModelHasItsOwnFile) {
  const auto first = Logits(WeightFormat::kInt8, cache_.path());
  testing::WriteTinyModel(model_, testing::TinyTensors(/*seed=*/2));
  const auto second = Logits(WeightFormat::kInt8, cache_.path());
  EXPECT_EQ(Files().size(), 2u);
  EXPECT_NE(*first, *second);
  EXPECT_EQ(*second, *Logits(WeightFormat::kInt8, ""));
}

TEST_F(WeightCacheTest, FolderThatCannotBeMade) {
  cache_.Write("file", "");
  const auto logits = Logits(WeightFormat::kInt8, cache_.path() + "/file/folder");
  EXPECT_EQ(logits.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(logits.status().message()), ::testing::HasSubstr("/file/folder"));
}

TEST_F(WeightCacheTest, ABackendWithoutPackedWeightsKeepsNone) {
  ASSERT_TRUE(Logits(WeightFormat::kInt8, cache_.path(), "ref").ok());
  EXPECT_TRUE(Files().empty());
}

}  // namespace
}  // namespace longhaul
