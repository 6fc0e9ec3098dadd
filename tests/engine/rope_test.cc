// Frequencies and attention factors of published configurations against transformers
// (tests/golden/rope.json, made by tools/goldens/make_model_goldens.py). That angles stay exact at
// positions of millions is tested with the op, in tests/kernels/token_ops_test.cc.
#include "engine/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

namespace longhaul {
namespace {

using Json = nlohmann::json;

RopeConfig Parse(const Json& config, const RopeDefaults& defaults) {
  Fields fields(config, "config.json");
  const RopeConfig rope = ParseRope(fields, defaults);
  EXPECT_TRUE(fields.status().ok()) << fields.status();
  return rope;
}

TEST(RopeTest, FrequenciesOfPublishedModels) {
  const Json cases = Json::parse(std::ifstream("tests/golden/rope.json"));
  ASSERT_GE(cases.size(), 9u);
  for (const Json& c : cases) {
    SCOPED_TRACE(c["name"]);
    RopeConfig rope =
        Parse(c, {.head_dim = c["head_dim"], .max_positions = c["max_position_embeddings"]});
    rope.context_tokens = c["context_tokens"];
    EXPECT_NEAR(rope.attention_factor, c["attention_factor"].get<double>(), 1e-12);
    const std::vector<double> inv_freq = InverseFrequencies(rope);
    const std::vector<double> golden = c["inv_freq"];
    ASSERT_EQ(inv_freq.size(), golden.size());
    for (size_t i = 0; i < golden.size(); ++i) {
      EXPECT_NEAR(inv_freq[i] / golden[i], 1, 2e-6) << i;  // the golden is float32
    }
  }
}

TEST(RopeTest, DynamicReachesTheContextServed) {
  const Json config = {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.5}}}};
  RopeConfig rope = Parse(config, {.head_dim = 128, .max_positions = 1000});
  const std::vector<double> original = InverseFrequencies(rope);
  EXPECT_DOUBLE_EQ(original[1], std::pow(10000.0, -1.0 / 64));
  rope.context_tokens = 500;  // shorter changes nothing
  EXPECT_EQ(InverseFrequencies(rope), original);
  rope.context_tokens = 2000;
  const std::vector<double> longer = InverseFrequencies(rope);
  EXPECT_EQ(longer[0], original[0]);
  // The slowest pair is stretched by factor * 2 - (factor - 1).
  EXPECT_NEAR(original[63] / longer[63], 3.5, 1e-9);
}

TEST(RopeTest, OldNamesOfLongRope) {
  const Json lists = {{"short_factor", {1.0, 1.0}}, {"long_factor", {2.0, 4.0}}};
  Json config = {{"rope_scaling", lists}, {"original_max_position_embeddings", 64}};
  config["rope_scaling"]["type"] = "su";
  const RopeDefaults defaults{.head_dim = 4, .max_positions = 256, .yarn_is_longrope = true};
  const RopeConfig su = Parse(config, defaults);
  EXPECT_EQ(su.kind, RopeKind::kLongRope);
  EXPECT_EQ(su.original_positions, 64);  // beside the section
  EXPECT_DOUBLE_EQ(su.attention_factor, std::sqrt(1 + std::log(4.0) / std::log(64.0)));
  EXPECT_EQ(InverseFrequencies(su)[0], 0.5);
  config["rope_scaling"]["type"] = "yarn";  // the first Phi-3
  EXPECT_EQ(Parse(config, defaults).kind, RopeKind::kLongRope);
}

}  // namespace
}  // namespace longhaul
