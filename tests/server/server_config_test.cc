#include "server/server_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace longhaul {
namespace {

using testing::HasSubstr;

std::string Text(const absl::Status& status) { return std::string(status.message()); }

// A YAML file that lives as long as the test.
class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text)
      : path_(testing::TempDir() + "longhaul_config_" +
              testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml") {
    std::ofstream(path_) << text;
  }
  ~ConfigFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

TEST(ServerConfig, FlagBeforeEnvironmentBeforeFileBeforeDefault) {
  const ConfigFile file("port: 1\nmax-num-seqs: 2\nmax-model-len: 3\nhost: filehost\n");
  const auto config = LoadServerConfig(file.path(), {{"port", {"11"}}},
                                       {{"LONGHAUL_PORT", "21"}, {"LONGHAUL_MAX_NUM_SEQS", "22"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->port, 11);
  EXPECT_EQ(config->max_num_seqs, 22);
  EXPECT_EQ(config->max_model_len, 3);
  EXPECT_EQ(config->host, "filehost");
  EXPECT_EQ(config->grpc_port, 8001);
}

TEST(ServerConfig, EveryTypeFromText) {
  const auto config = LoadServerConfig("",
                                       {{"kv-cache-memory", {"1.5G"}},
                                        {"sparse-alpha", {"0.9"}},
                                        {"enable-prefix-caching", {"false"}},
                                        {"api-key", {"a", "b"}},
                                        {"kv-cache-dtype", {"bfloat16"}},
                                        {"max-body-bytes", {"64k"}}},
                                       {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_cache_memory_bytes, int64_t{3} << 29);
  EXPECT_EQ(config->sparse_alpha, 0.9);
  EXPECT_FALSE(config->enable_prefix_caching);
  EXPECT_EQ(config->api_keys, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(config->max_body_bytes, 64 << 10);
}

TEST(ServerConfig, KvCacheTypes) {
  const auto dtype = [](const std::string& name, const std::string& weights = "auto") {
    const auto config = LoadServerConfig("",
                                         {{"model", {"m"}},
                                          {"kv-cache-dtype", {name}},
                                          {"dtype", {weights}},
                                          {"quantization", {"int8"}}},
                                         {});
    return config->ToEngineConfig()->kv_dtype;
  };
  EXPECT_EQ(dtype("auto"), std::nullopt);
  EXPECT_EQ(dtype("auto", "float32"), DType::kF32);
  EXPECT_EQ(dtype("auto", "bfloat16"), DType::kBF16);
  EXPECT_EQ(dtype("float32", "bfloat16"), DType::kF32);
  EXPECT_EQ(dtype("bfloat16", "float32"), DType::kBF16);
  EXPECT_EQ(dtype("fp8"), DType::kF8E4M3);
  EXPECT_EQ(dtype("fp8_e4m3"), DType::kF8E4M3);
}

TEST(ServerConfig, WeightFormats) {
  const auto format = [](const std::string& dtype, const std::string& quantization) {
    const auto config = LoadServerConfig(
        "", {{"model", {"m"}}, {"dtype", {dtype}}, {"quantization", {quantization}}}, {});
    return config->ToEngineConfig()->weight_format;
  };
  EXPECT_EQ(format("auto", "none"), std::nullopt);
  EXPECT_EQ(format("float32", "none"), WeightFormat::kF32);
  EXPECT_EQ(format("bfloat16", "none"), WeightFormat::kBF16);
  EXPECT_EQ(format("bfloat16", "int8"), WeightFormat::kInt8);
}

TEST(ServerConfig, YamlListsAndComments) {
  const ConfigFile file("# keys\napi-key: [a, b]\nenable-prefix-caching: no\n");
  const auto config = LoadServerConfig(file.path(), {}, {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->api_keys.size(), 2u);
  EXPECT_FALSE(config->enable_prefix_caching);
  const ConfigFile empty("");
  EXPECT_TRUE(LoadServerConfig(empty.path(), {}, {}).ok());
}

TEST(ServerConfig, FileNamedByTheEnvironment) {
  const ConfigFile file("port: 77\n");
  EXPECT_EQ(LoadServerConfig("", {}, {{"LONGHAUL_CONFIG", file.path()}})->port, 77);
}

TEST(ServerConfig, UnknownNamesFailWithASuggestion) {
  const ConfigFile file("model: x\nmax-model-length: 5\n");
  const auto from_file = LoadServerConfig(file.path(), {}, {});
  ASSERT_FALSE(from_file.ok());
  EXPECT_THAT(Text(from_file.status()), HasSubstr(":2: unknown setting 'max-model-length'"));
  const auto from_environment = LoadServerConfig("", {}, {{"LONGHAUL_PROT", "5"}});
  ASSERT_FALSE(from_environment.ok());
  EXPECT_THAT(Text(from_environment.status()), HasSubstr("did you mean 'LONGHAUL_PORT'"));
  const auto from_flag = LoadServerConfig("", {{"modle", {"x"}}}, {});
  EXPECT_THAT(Text(from_flag.status()), HasSubstr("did you mean 'model'"));
}

TEST(ServerConfig, KubernetesServiceLinksAreNotSettings) {
  const auto config = LoadServerConfig("", {},
                                       {{"LONGHAUL_PORT", "tcp://10.0.0.1:8000"},
                                        {"LONGHAUL_SERVICE_HOST", "10.0.0.1"},
                                        {"LONGHAUL_PORT_8000_TCP", "tcp://10.0.0.1:8000"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->port, 8000);
}

struct BadValue {
  const char* name;
  const char* value;
  const char* text;
};
class BadFlag : public testing::TestWithParam<BadValue> {};

TEST_P(BadFlag, SaysWhatIsAllowed) {
  const auto config = LoadServerConfig("", {{GetParam().name, {GetParam().value}}}, {});
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Text(config.status()), HasSubstr(std::string("--") + GetParam().name));
  EXPECT_THAT(Text(config.status()), HasSubstr(GetParam().text));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadFlag,
    testing::Values(
        BadValue{"port", "65536", "from 0 to 65535"}, BadValue{"port", "-1", "from 0 to 65535"},
        BadValue{"port", "80x", "got '80x'"}, BadValue{"port", "", "integer"},
        BadValue{"max-model-len", "99999999999999999999", "integer"},
        BadValue{"tensor-parallel-size", "2", "from 1 to 1"},
        BadValue{"kv-cache-memory", "8X", "bytes"}, BadValue{"kv-cache-memory", "-8G", "bytes"},
        BadValue{"dtype", "float8", "bfloat16"}, BadValue{"quantization", "q4", "int8"},
        BadValue{"kv-cache-dtype", "fp4", "fp8_e4m3"}, BadValue{"sparse-alpha", "nan", "number"},
        BadValue{"sparse-alpha", "1.5", "from 0 to 1"},
        BadValue{"retry-keep-share", "1.1", "from 0 to 1"},
        BadValue{"retry-keep-seconds", "-1", "seconds"},
        BadValue{"max-num-queued-tokens", "0", "tokens"},
        BadValue{"sparse-mode", "magic", "streaming"},
        BadValue{"enable-prefix-caching", "maybe", "true or false"}));

TEST(ServerConfig, KeysThatNobodyCanSendAreRefused) {
  for (const char* key : {"", " ", "key ", "two words", "line\n", "schl\xc3\xbcssel"}) {
    const auto config = LoadServerConfig("", {}, {{"LONGHAUL_API_KEY", key}});
    ASSERT_FALSE(config.ok()) << '"' << key << '"';
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Text(config.status()), HasSubstr("LONGHAUL_API_KEY"));
    EXPECT_FALSE(LoadServerConfig("", {{"api-key", {"good", key}}}, {}).ok());
  }
  const auto config = LoadServerConfig("", {{"api-key", {"a", "sk-B_2.~!"}}}, {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->api_keys.size(), 2u);
}

TEST(ServerConfig, BadFiles) {
  EXPECT_EQ(LoadServerConfig("/nonexistent/x.yaml", {}, {}).status().code(),
            absl::StatusCode::kNotFound);
  for (const char* text : {"port: [1", "- a\n- b\n", "port: {a: 1}\n", "port: [1, 2]\n",
                           "? [a]\n: 1\n", "port: *nowhere\n"}) {
    const ConfigFile file(text);
    EXPECT_EQ(LoadServerConfig(file.path(), {}, {}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(ServerConfig, EngineConfig) {
  ServerConfig config;
  EXPECT_FALSE(config.ToEngineConfig().ok());  // no model
  config.model = "models/lookup/";
  config.slice_ms = 1.5;
  config.retry_keep_s = 0.25;
  config.retry_keep_share = 0.125;
  config.max_num_queued_tokens = 7;
  const auto engine = config.ToEngineConfig();
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ(engine->slice_us, 1500);
  EXPECT_EQ(engine->retry_keep_us, 250'000);
  EXPECT_EQ(engine->retry_keep_share, 0.125);
  EXPECT_EQ(engine->max_num_queued_tokens, 7);
  EXPECT_EQ(config.ServedModelName(), "lookup");
  config.sparse_window = 100;  // not a multiple of 64
  EXPECT_FALSE(config.ToEngineConfig().ok());
}

TEST(FlagTable, DefaultsAreInRangeAndTheBundledFileLoads) {
  for (const FlagSpec& flag : FlagTable()) {
    if (std::holds_alternative<std::vector<std::string> ServerConfig::*>(flag.target)) continue;
    const std::string text = DefaultText(flag);
    if (std::holds_alternative<std::string ServerConfig::*>(flag.target) && text.empty()) continue;
    const auto config = LoadServerConfig("", {{flag.name, {text}}}, {});
    EXPECT_TRUE(config.ok()) << config.status();
  }
  const auto bundled = LoadServerConfig("configs/cpu.yaml", {}, {});
  ASSERT_TRUE(bundled.ok()) << bundled.status();
  EXPECT_EQ(bundled->port, ServerConfig().port);
}

}  // namespace
}  // namespace longhaul
