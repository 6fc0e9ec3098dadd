// Every lie a safetensors file or a shard index can tell is an error that names file and tensor.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "engine/model/safetensors.h"
#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::SafetensorsBytes;
using testing::TempDir;

absl::StatusOr<TensorMap> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), "x.safetensors");
}

std::string MessageOf(const std::string& header, const std::string& data = std::string(16, 'd')) {
  const auto tensors = Parse(SafetensorsBytes(header, data));
  EXPECT_FALSE(tensors.ok()) << header;
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tensors.status().message()), HasSubstr("x.safetensors"));
  return std::string(tensors.status().message());
}

constexpr char kGood[] = R"({"__metadata__":{"format":"pt"},)"
                         R"("b":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},)"
                         R"("a":{"data_offsets":[0,8],"dtype":"BF16","shape":[4]}}   )";

TEST(SafetensorsTest, ReadsAGoodFile) {
  std::string data(16, '\0');
  for (int i = 0; i < 16; ++i) data[i] = static_cast<char>(i);
  const std::string file = SafetensorsBytes(kGood, data);
  const auto tensors = Parse(file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  const StoredTensor& b = tensors->at("b");
  EXPECT_EQ(b.dtype, "F32");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{1, 2}));
  ASSERT_EQ(b.data.size(), 8u);
  EXPECT_EQ(b.data[0], std::byte{8});
}

TEST(SafetensorsTest, ReadsEmptyTensorsAndScalars) {
  const auto tensors =
      Parse(SafetensorsBytes(R"({"e":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
                             R"("s":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
                             "x"));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_TRUE(tensors->at("e").data.empty());
  EXPECT_EQ(tensors->at("s").data.size(), 1u);
  EXPECT_TRUE(Parse(SafetensorsBytes("{}", "")).ok());
}

TEST(SafetensorsTest, EveryTruncationFails) {
  const std::string file = SafetensorsBytes(kGood, std::string(16, 'd'));
  for (size_t n = 0; n < file.size(); ++n) {
    EXPECT_FALSE(Parse(file.substr(0, n)).ok()) << n << " bytes";
  }
  EXPECT_TRUE(Parse(file).ok());
}

TEST(SafetensorsTest, RefusesBadLengths) {
  std::string huge = SafetensorsBytes(kGood, std::string(16, 'd'));
  huge.replace(0, 8, std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8));
  EXPECT_THAT(std::string(Parse(huge).status().message()), HasSubstr("100000000"));
  EXPECT_THAT(MessageOf(kGood, std::string(15, 'd')),
              AllOf(HasSubstr("'b'"), HasSubstr("truncated")));
  EXPECT_THAT(MessageOf(kGood, std::string(17, 'd')), HasSubstr("1 bytes behind the last tensor"));
}

TEST(SafetensorsTest, RefusesBadTensors) {
  const auto tensor = [](const std::string& fields) {
    return MessageOf(R"({"t":{)" + fields + "}}");
  };
  EXPECT_THAT(tensor(R"("dtype":"F33","shape":[4],"data_offsets":[0,16])"),
              AllOf(HasSubstr("'t'"), HasSubstr("F33")));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[5],"data_offsets":[0,16])"),
              HasSubstr("need 20 bytes"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])"), HasSubstr("[16, 0]"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4],"data_offsets":[4,20])"), HasSubstr("[4, 20]"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0])"), HasSubstr("two numbers"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16])"),
              HasSubstr("overflows"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[9223372036854775807,1],"data_offsets":[0,16])"),
              HasSubstr("overflows"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16])"),
              HasSubstr("no size"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[-4],"data_offsets":[0,16])"), HasSubstr("negative"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4.0],"data_offsets":[0,16])"), HasSubstr("4.0"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16])"),
              HasSubstr("more than 8"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4])"), HasSubstr("needs the fields"));
  EXPECT_THAT(tensor(R"("shape":[4],"data_offsets":[0,16])"), HasSubstr("needs the fields"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4],"shape":[4],"data_offsets":[0,16])"),
              HasSubstr("twice"));
  EXPECT_THAT(tensor(R"("dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16])"),
              HasSubstr("twice"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16],"extra":[1])"),
              HasSubstr("extra"));
  EXPECT_THAT(tensor(R"("dtype":"F32","shape":"4","data_offsets":[0,16])"), HasSubstr("shape"));
  EXPECT_THAT(tensor(R"("dtype":4,"shape":[4],"data_offsets":[0,16])"), HasSubstr("a number"));
  EXPECT_THAT(tensor(R"("dtype":null,"shape":[4],"data_offsets":[0,16])"), HasSubstr("null"));
}

TEST(SafetensorsTest, RefusesBadLayouts) {
  EXPECT_THAT(MessageOf(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
                        R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              AllOf(HasSubstr("'b'"), HasSubstr("overlaps")));
  EXPECT_THAT(MessageOf(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                        R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              HasSubstr("4 bytes before tensor 'b'"));
  EXPECT_THAT(MessageOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                        R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})"),
              AllOf(HasSubstr("'a'"), HasSubstr("twice")));
  EXPECT_THAT(MessageOf("{}"), HasSubstr("16 bytes behind"));
}

TEST(SafetensorsTest, RefusesBadJson) {
  for (const char* header : {"", "[]", "null", "7", "\"x\"", "{", "{\"a\"", "{\"a\":1}",
                             "{\"a\":[1]}", "{\"a\":{\"b\":{}}}", "{\"a\":{\"shape\":[[1]]}}",
                             "{} {}", "{\"\xff\":{}}", "{\"__metadata__\":{\"a\":{}}}",
                             "{\"__metadata__\":{\"a\":1}}", "{\"__metadata__\":\"x\"}"}) {
    EXPECT_FALSE(MessageOf(header).empty());
  }
  MessageOf("{\"a\":" + std::string(1'000'000, '['));
  MessageOf("{\"a\":" + std::string(1'000'000, '{'));
}

constexpr char kTensorA[] = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
constexpr char kTensorB[] = R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})";

TEST(CheckpointTest, ReadsShardsAndDigestsThemLikeOneFile) {
  TempDir sharded, single;
  sharded.Write("1.safetensors", SafetensorsBytes(kTensorA, "xy"));
  sharded.Write("2.safetensors", SafetensorsBytes(kTensorB, "abc"));
  sharded.Write("model.safetensors.index.json",
                R"({"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  single.Write("model.safetensors",
               SafetensorsBytes(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                                R"("a":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
                                "abcxy"));
  const auto two = Checkpoint::Open(sharded.path());
  const auto one = Checkpoint::Open(single.path());
  ASSERT_TRUE(two.ok()) << two.status();
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(two->n_files(), 2);
  EXPECT_EQ(two->tensors().at("b").data[2], std::byte{'c'});
  EXPECT_EQ(two->Digest(), one->Digest());
  single.Write("model.safetensors",
               SafetensorsBytes(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                                R"("a":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
                                "abcxz"));
  EXPECT_NE(Checkpoint::Open(single.path())->Digest(), two->Digest());
}

class IndexTest : public ::testing::Test {
 protected:
  IndexTest() {
    dir_.Write("1.safetensors", SafetensorsBytes(kTensorA, "xy"));
    dir_.Write("2.safetensors", SafetensorsBytes(kTensorB, "abc"));
  }
  std::string MessageOfIndex(const std::string& index) {
    dir_.Write("model.safetensors.index.json", index);
    const auto checkpoint = Checkpoint::Open(dir_.path());
    EXPECT_FALSE(checkpoint.ok()) << index;
    return std::string(checkpoint.status().message());
  }
  TempDir dir_;
};

TEST_F(IndexTest, RefusesNamesThatLeaveTheFolder) {
  for (const char* name : {"../1.safetensors", "/etc/passwd", "sub/1.safetensors", "..", ".hidden",
                           "", "a\\\\b", "a\\u0000b"}) {
    EXPECT_THAT(MessageOfIndex(std::string(R"({"weight_map":{"a":")") + name + "\"}}"),
                HasSubstr("no file of this folder"));
  }
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":{"a":")" + std::string(300, 'x') + "\"}}"),
              HasSubstr("no file of this folder"));
}

TEST_F(IndexTest, RefusesAnIndexThatDisagreesWithItsShards) {
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":{"a":"1.safetensors","c":"1.safetensors"}})"),
              AllOf(HasSubstr("'c'"), HasSubstr("does not hold it")));
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":{"a":"2.safetensors"}})"),
              AllOf(HasSubstr("'b'"), HasSubstr("does not place there")));
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":{"a":"3.safetensors"}})"),
              HasSubstr("3.safetensors"));
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":{"a":5}})"), HasSubstr("does not name a file"));
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":{}})"), HasSubstr("weight_map"));
  EXPECT_THAT(MessageOfIndex(R"({"weight_map":[]})"), HasSubstr("weight_map"));
  EXPECT_THAT(MessageOfIndex("[]"), HasSubstr("weight_map"));
  EXPECT_THAT(MessageOfIndex(std::string(1'000'000, '[')), HasSubstr("not valid JSON"));
}

TEST(CheckpointTest, SaysWhatIsMissing) {
  TempDir empty;
  const auto checkpoint = Checkpoint::Open(empty.path());
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(checkpoint.status().message()),
              HasSubstr("model.safetensors.index.json"));
  empty.Write("model.safetensors", "");
  EXPECT_THAT(std::string(Checkpoint::Open(empty.path()).status().message()),
              HasSubstr("truncated"));
}

}  // namespace
}  // namespace longhaul
