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

TEST(ApiKeysTest, AnEmptyConfiguredKeyOpensNothing) {
  const ApiKeys keys({""});
  EXPECT_TRUE(keys.required());
  EXPECT_FALSE(keys.Allows("Bearer "));
  EXPECT_FALSE(keys.Allows(""));
}

}  // namespace
}  // namespace longhaul
