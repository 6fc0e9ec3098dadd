#include "kvcache/prefix_index.h"

#include <array>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

using Page = std::array<int32_t, kPageTokens>;

Page Filled(int32_t first) {
  Page page;
  for (int i = 0; i < kPageTokens; ++i) page[i] = first + i;
  return page;
}

TEST(PrefixIndex, FindsAChainAndNothingElse) {
  PrefixIndex index(8);
  const PrefixCursor root = PrefixIndex::Root("model");
  const Page a = Filled(0);
  const Page b = Filled(100);
  EXPECT_FALSE(index.Find(root, a).has_value());
  ASSERT_TRUE(index.Insert(root, a, 5));
  const PrefixCursor behind_a = index.Behind(root, 5);
  ASSERT_TRUE(index.Insert(behind_a, b, 2));

  EXPECT_EQ(index.Find(root, a), 5);
  EXPECT_EQ(index.Find(behind_a, b), 2);
  EXPECT_EQ(index.parent_page(2), 5);
  EXPECT_FALSE(index.Find(root, b).has_value()) << "the same tokens elsewhere are other content";
  EXPECT_FALSE(index.Find(behind_a, a).has_value());
  EXPECT_EQ(index.Find(PrefixIndex::Root("model"), a), 5) << "roots are compared by content";
  EXPECT_FALSE(index.Find(PrefixIndex::Root("other"), a).has_value());
  EXPECT_TRUE(index.CheckIntegrity().ok());
}

TEST(PrefixIndex, EveryTokenCounts) {
  PrefixIndex index(4);
  const PrefixCursor root = PrefixIndex::Root("");
  const Page a = Filled(7);
  ASSERT_TRUE(index.Insert(root, a, 0));
  for (int i = 0; i < kPageTokens; ++i) {
    Page changed = a;
    ++changed[i];
    EXPECT_FALSE(index.Find(root, changed).has_value()) << i;
  }
}

// A hash hit with other tokens must be a miss: the cursor below has the hash of another root.
TEST(PrefixIndex, ACollisionIsAMissAndIsNotEntered) {
  PrefixIndex index(4);
  const PrefixCursor root = PrefixIndex::Root("one tenant");
  const Page a = Filled(1);
  ASSERT_TRUE(index.Insert(root, a, 0));
  PrefixCursor forged = PrefixIndex::Root("another tenant");
  forged.hash = root.hash;
  EXPECT_FALSE(index.Find(forged, a).has_value());
  EXPECT_FALSE(index.Insert(forged, a, 1));
  EXPECT_EQ(index.n_nodes(), 1);
}

TEST(PrefixIndex, AStaleCursorFindsNothing) {
  PrefixIndex index(4);
  const PrefixCursor root = PrefixIndex::Root("m");
  const Page a = Filled(1);
  const Page b = Filled(2);
  ASSERT_TRUE(index.Insert(root, a, 0));
  const PrefixCursor stale = index.Behind(root, 0);
  index.Erase(0);
  ASSERT_TRUE(index.Insert(root, a, 3));  // the same prefix again, another node
  EXPECT_FALSE(index.Insert(stale, b, 1));
  ASSERT_TRUE(index.Insert(index.Behind(root, 3), b, 1));
  EXPECT_FALSE(index.Find(stale, b).has_value());
  EXPECT_TRUE(index.CheckIntegrity().ok());
}

TEST(PrefixIndex, KeepsState) {
  PrefixIndex index(2);
  const PrefixCursor root = PrefixIndex::Root("m");
  ASSERT_TRUE(index.Insert(root, Filled(0), 0));
  EXPECT_EQ(index.state(0), nullptr);
  auto state = std::make_shared<const int>(42);
  index.set_state(0, state);
  EXPECT_EQ(index.state(0), state);
  index.Erase(0);
  EXPECT_EQ(state.use_count(), 1);
}

TEST(PrefixIndexDeathTest, ANodeWithChildrenIsNotErased) {
  PrefixIndex index(2);
  const PrefixCursor root = PrefixIndex::Root("m");
  ASSERT_TRUE(index.Insert(root, Filled(0), 0));
  ASSERT_TRUE(index.Insert(index.Behind(root, 0), Filled(9), 1));
  EXPECT_DEATH(index.Erase(0), "CHECK failed");
}

}  // namespace
}  // namespace longhaul
