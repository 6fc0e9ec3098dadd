#include "server/auth.h"

#include <gtest/gtest.h>

namespace longhaul {
namespace {

TEST(ApiKeysTest, WithoutKeysEverybodyIsAllowed) {
  const ApiKeys keys({});
  EXPECT_FALSE(keys.required());
  EXPECT_TRUE(keys.Allows(""));
  EXPECT_TRUE(keys.Allows("Bearer whatever"));
}

TEST(ApiKeysTest, AnyOfTheKeysIsAllowed) {
  const ApiKeys keys({"first-key", "second-key"});
  EXPECT_TRUE(keys.required());
  EXPECT_TRUE(keys.Allows("Bearer first-key"));
  EXPECT_TRUE(keys.Allows("Bearer second-key"));
  EXPECT_TRUE(keys.Allows("bearer  second-key "));
}

TEST(ApiKeysTest, OtherValuesAreRefused) {
  const ApiKeys keys({"first-key"});
  for (const char* value :
       {"", "Bearer", "Bearer ", "Bearer first-ke", "Bearer first-keys", "Bearer First-key",
        "first-key", "Basic first-key", "Bearer: first-key", "BearerX first-key"}) {
    EXPECT_FALSE(keys.Allows(value)) << value;
  }
}

TEST(ApiKeysTest, CallersAreKnownByADigestOfTheirKey) {
  const ApiKeys keys({"first-key", "second-key"});
  const auto first = keys.Caller("Bearer first-key"), second = keys.Caller("Bearer second-key");
  ASSERT_TRUE(first && second);
  EXPECT_NE(*first, *second);
  EXPECT_EQ(*first, keys.Caller("bearer  first-key "));
  EXPECT_EQ(first->size(), 64u);
  EXPECT_EQ(first->find("first"), std::string::npos);
  EXPECT_EQ(keys.Caller("Bearer third-key"), std::nullopt);
  EXPECT_EQ(ApiKeys({}).Caller("Bearer any"), "");
}

TEST(ApiKeysTest, AnEmptyConfiguredKeyOpensNothing) {
  const ApiKeys keys({""});
  EXPECT_TRUE(keys.required());
  EXPECT_FALSE(keys.Allows("Bearer "));
  EXPECT_FALSE(keys.Allows(""));
}

}  // namespace
}  // namespace longhaul
