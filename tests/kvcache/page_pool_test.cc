#include "kvcache/page_pool.h"

#include <vector>

#include "gtest/gtest.h"
#include "kvcache/page_table.h"

namespace longhaul {
namespace {

TEST(PagePool, GivesEveryPageOnceAndThenNone) {
  PagePool pool(3);
  std::vector<PageRef> refs;
  std::vector<bool> seen(3, false);
  for (int i = 0; i < 3; ++i) {
    refs.push_back(pool.Allocate());
    ASSERT_TRUE(refs.back());
    EXPECT_FALSE(seen[refs.back().page()]);
    seen[refs.back().page()] = true;
  }
  EXPECT_FALSE(pool.Allocate());
  EXPECT_EQ(pool.n_used(), 3);
  refs.pop_back();
  EXPECT_EQ(pool.n_free(), 1);
  EXPECT_TRUE(pool.CheckIntegrity().ok());
}

TEST(PagePool, ReferencesAreCounted) {
  PagePool pool(1);
  PageRef a = pool.Allocate();
  PageRef b = a.Share();
  PageRef c = std::move(a);
  EXPECT_FALSE(a);  // NOLINT: moved from on purpose
  EXPECT_EQ(pool.n_references(0), 2);
  b.Reset();
  EXPECT_EQ(pool.n_used(), 1);
  c = PageRef();
  EXPECT_EQ(pool.n_free(), 1);
}

TEST(PagePool, RetainedPagesGoIdleInTheOrderOfTheirLastUse) {
  PagePool pool(3);
  PageRef refs[3] = {pool.Allocate(), pool.Allocate(), pool.Allocate()};
  for (const PageRef& ref : refs) pool.Retain(ref.page());
  const int32_t first = refs[1].page();
  const int32_t second = refs[0].page();
  refs[1].Reset();
  refs[0].Reset();
  EXPECT_EQ(pool.n_idle(), 2);
  EXPECT_EQ(pool.n_free(), 0);
  EXPECT_EQ(pool.NextVictim(), first);

  PageRef again = pool.Acquire(first);  // used again: no longer the oldest
  EXPECT_EQ(pool.NextVictim(), second);
  EXPECT_TRUE(pool.CheckIntegrity().ok());
  again.Reset();
  pool.Forget(second);
  EXPECT_EQ(pool.n_free(), 1);
  EXPECT_EQ(pool.NextVictim(), first);
  EXPECT_TRUE(pool.CheckIntegrity().ok());
}

TEST(PagePool, ForgettingAUsedPageFreesItWithItsLastReference) {
  PagePool pool(1);
  PageRef ref = pool.Allocate();
  pool.Retain(0);
  pool.Forget(0);
  EXPECT_EQ(pool.n_used(), 1);
  ref.Reset();
  EXPECT_EQ(pool.n_free(), 1);
  EXPECT_EQ(pool.n_idle(), 0);
}

// `n` pages that become idle when the result goes.
std::vector<PageRef> Retained(PagePool& pool, int n) {
  std::vector<PageRef> refs;
  for (int i = 0; i < n; ++i) {
    refs.push_back(pool.Allocate());
    pool.Retain(refs.back().page());
  }
  return refs;
}

TEST(PagePool, PinnedPagesAreTheLastVictimsInTheOrderOfTheirExpiry) {
  PagePool pool(4);
  std::vector<PageRef> refs = Retained(pool, 4);
  pool.Pin(refs[1].page(), 20);
  pool.Pin(refs[0].page(), 30);
  pool.Pin(refs[1].page(), 40);  // anew
  const std::vector<int32_t> expected = {refs[2].page(), refs[3].page(), refs[0].page(),
                                         refs[1].page()};
  for (PageRef& ref : refs) ref.Reset();
  EXPECT_EQ(pool.n_idle(), 4);
  EXPECT_EQ(pool.n_pinned_idle(), 2);
  EXPECT_EQ(pool.FirstExpiryUs(), 30);
  EXPECT_EQ(pool.EvictionOrder(), expected);
  EXPECT_TRUE(pool.CheckIntegrity().ok());
  for (int32_t page : expected) {
    ASSERT_EQ(pool.NextVictim(), page);
    pool.Forget(page);
    EXPECT_TRUE(pool.CheckIntegrity().ok());
  }
  EXPECT_EQ(pool.NextVictim(), std::nullopt);
  EXPECT_EQ(pool.n_pinned(), 0);
  EXPECT_EQ(pool.FirstExpiryUs(), std::nullopt);
}

TEST(PagePool, APinOutlivesUseAndAnEarlierTimeCountsAsTheLatest) {
  PagePool pool(2);
  std::vector<PageRef> refs = Retained(pool, 2);
  const int32_t page = refs[0].page();
  pool.Pin(page, 50);
  pool.Pin(refs[1].page(), 10);
  refs[0].Reset();
  EXPECT_EQ(pool.n_pinned_idle(), 1);
  refs[0] = pool.Acquire(page);
  EXPECT_EQ(pool.n_pinned_idle(), 0);
  EXPECT_EQ(pool.n_pinned(), 2);
  EXPECT_TRUE(pool.CheckIntegrity().ok()) << "the second pin counts as one until 50";
  pool.UnpinFirst();
  EXPECT_FALSE(pool.pinned(page));
  EXPECT_EQ(pool.FirstExpiryUs(), 50);
  // Both are used: no victim, and the pin that stood in the way is lost.
  EXPECT_EQ(pool.NextVictim(), std::nullopt);
  EXPECT_EQ(pool.n_pinned(), 0);
  refs.clear();
  EXPECT_EQ(pool.n_idle(), 2);
  EXPECT_TRUE(pool.CheckIntegrity().ok());
}

TEST(PagePoolDeathTest, OnlyUsedRetainedPagesArePinned) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Pin(0, 1), "CHECK failed");
  PageRef ref = pool.Allocate();
  EXPECT_DEATH(pool.Pin(0, 1), "CHECK failed");
}

TEST(PagePoolDeathTest, AFreePageCannotBeAcquired) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Acquire(0), "CHECK failed");
}

TEST(PageTable, KeepsOrderAndReleasesFromTheEnd) {
  PagePool pool(3);
  PageTable table;
  EXPECT_EQ(table.capacity_tokens(), 0);
  for (int i = 0; i < 3; ++i) {
    PageRef ref = pool.Allocate();
    pool.Retain(ref.page());
    table.Append(std::move(ref));
  }
  table.set_n_tokens(3 * kPageTokens - 1);
  const std::vector<int32_t> pages(table.pages().begin(), table.pages().end());
  table.Clear();
  EXPECT_EQ(table.n_tokens(), 0);
  EXPECT_EQ(pool.NextVictim(), pages[2]);
}

TEST(PageTableDeathTest, TokensNeedPages) {
  PageTable table;
  EXPECT_DEATH(table.set_n_tokens(1), "CHECK failed");
}

}  // namespace
}  // namespace longhaul
