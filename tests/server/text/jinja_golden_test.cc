// Templates against jinja2, byte for byte: tools/goldens/make_jinja_goldens.py says how the file
// was made. Where Python raises, rendering must fail; the words may differ.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "server/text/jinja/json_value.h"
#include "server/text/jinja/template.h"

namespace longhaul::jinja {
namespace {

using nlohmann::ordered_json;

constexpr std::time_t kNow = 1721984703;  // 2024-07-26 09:05:03 UTC

const ordered_json& Golden() {
  static const ordered_json golden = [] {
    std::ifstream stream("tests/golden/jinja.json", std::ios::binary);
    EXPECT_TRUE(stream.good());
    return ordered_json::parse(stream);
  }();
  return golden;
}

Dict ToDict(const ordered_json& object) {
  const absl::StatusOr<Value> value = ParseJsonValue(object.dump());
  EXPECT_TRUE(value.ok()) << value.status();
  return value->dict();
}

absl::StatusOr<std::string> Render(const std::string& source, const Dict& variables) {
  LH_ASSIGN_OR_RETURN(const auto parsed, Template::Parse(source));
  return parsed->Render(variables, kNow);
}

void ExpectSame(const ordered_json& expected, const absl::StatusOr<std::string>& text,
                const std::string& what) {
  if (expected.is_null()) {
    EXPECT_FALSE(text.ok()) << what << "\nraises in Python, gives here: " << *text;
    if (text.ok()) return;
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_NE(text.status().message().find("line "), std::string::npos) << text.status();
    return;
  }
  ASSERT_TRUE(text.ok()) << what << "\n" << text.status();
  EXPECT_EQ(*text, expected.get<std::string>()) << what;
}

class JinjaGoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_F(JinjaGoldenTest, Templates) {
  ASSERT_GE(Golden()["templates"].size(), 19u);
  for (const auto& [name, entry] : Golden()["templates"].items()) {
    for (const auto& [chat, expected] : entry["rendered"].items()) {
      ordered_json variables = {
          {"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", true}};
      variables.update(Golden()["tokens"]);
      variables.update(Golden()["conversations"][chat]);
      ExpectSame(expected, Render(entry["source"], ToDict(variables)), name + " of " + chat);
    }
  }
}

TEST_F(JinjaGoldenTest, Snippets) {
  const Dict variables = ToDict(Golden()["variables"]);
  ASSERT_GE(Golden()["snippets"].size(), 180u);
  for (const ordered_json& snippet : Golden()["snippets"]) {
    const std::string source = snippet[0];
    ExpectSame(snippet[1], Render(source, variables), source);
  }
}

}  // namespace
}  // namespace longhaul::jinja
