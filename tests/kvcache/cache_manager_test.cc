#include "kvcache/cache_manager.h"

#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

std::vector<int32_t> Tokens(int64_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A lease with all of `tokens` computed and its full pages published.
std::unique_ptr<CacheLease> Compute(CacheManager& cache, const std::vector<int32_t>& tokens) {
  auto lease = cache.Open("root");
  const auto n = static_cast<int64_t>(tokens.size());
  EXPECT_TRUE(cache.Reserve(*lease, CeilDiv(n, kPageTokens)));
  cache.Append(*lease, n);
  cache.SetComplete(*lease, n);
  cache.Publish(*lease, std::span(tokens).first(n / kPageTokens * kPageTokens), nullptr);
  return lease;
}

TEST(CacheManager, PromisesAreKept) {
  CacheManager cache(4, true);
  auto a = cache.Open("r");
  auto b = cache.Open("r");
  EXPECT_TRUE(cache.Reserve(*a, 3));
  EXPECT_FALSE(cache.Reserve(*b, 2));
  EXPECT_EQ(b->n_reserved_pages(), 0);
  EXPECT_TRUE(cache.Reserve(*b, 1));
  EXPECT_EQ(cache.available_pages(), 0);
  cache.Append(*a, 130);
  EXPECT_EQ(a->n_pages(), 3);
  EXPECT_EQ(a->n_reserved_pages(), 0);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  a.reset();
  EXPECT_EQ(cache.available_pages(), 3);
  cache.TrimReserve(*b, 0);
  EXPECT_EQ(cache.available_pages(), 4);
}

TEST(CacheManager, MatchesWhatWasPublishedUpToTheLimit) {
  CacheManager cache(16, true);
  const std::vector<int32_t> tokens = Tokens(300);
  const auto first = Compute(cache, tokens);  // 4 full pages and a partial one
  auto lease = cache.Open("root");
  EXPECT_EQ(cache.Match(*lease, tokens, {.limit_tokens = 300}), 256);
  EXPECT_EQ(lease->pages()[3], first->pages()[3]);
  EXPECT_EQ(lease->n_tokens(), 256);

  auto limited = cache.Open("root");
  EXPECT_EQ(cache.Match(*limited, tokens, {.limit_tokens = 255}), 192);
  EXPECT_EQ(cache.Match(*limited, tokens, {.limit_tokens = 300}), 256) << "and further later";
  auto grain = cache.Open("root");
  EXPECT_EQ(cache.Match(*grain, tokens, {.limit_tokens = 255, .grain_tokens = 128}), 128);
  auto stateful = cache.Open("root");
  EXPECT_EQ(cache.Match(*stateful, tokens, {.limit_tokens = 300, .needs_state = true}), 0);
  auto other = cache.Open("other root");
  EXPECT_EQ(cache.Match(*other, tokens, {.limit_tokens = 300}), 0);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
}

TEST(CacheManager, StateIsFoundWhereItWasStored) {
  CacheManager cache(16, true);
  const std::vector<int32_t> tokens = Tokens(256);
  auto a = cache.Open("r");
  ASSERT_TRUE(cache.Reserve(*a, 4));
  cache.Append(*a, 256);
  cache.SetComplete(*a, 256);
  const auto state = std::make_shared<const int>(7);
  cache.Publish(*a, std::span(tokens).first(128), state);
  cache.Publish(*a, std::span(tokens).subspan(128, 128), nullptr);
  auto b = cache.Open("r");
  EXPECT_EQ(
      cache.Match(*b, tokens, {.limit_tokens = 256, .grain_tokens = 128, .needs_state = true}),
      128);
  EXPECT_EQ(b->state(), state);
}

TEST(CacheManager, WithoutPrefixCachingNothingIsKept) {
  CacheManager cache(8, false);
  const std::vector<int32_t> tokens = Tokens(128);
  Compute(cache, tokens).reset();
  EXPECT_EQ(cache.Stats().n_pages_idle, 0);
  auto lease = cache.Open("root");
  EXPECT_EQ(cache.Match(*lease, tokens, {.limit_tokens = 128}), 0);
}

TEST(CacheManager, EvictsTheLeastRecentlyUsedPrefixFromItsEnd) {
  CacheManager cache(6, true);
  const std::vector<int32_t> old_tokens = Tokens(192, 0);
  const std::vector<int32_t> new_tokens = Tokens(192, 5000);
  Compute(cache, old_tokens).reset();
  Compute(cache, new_tokens).reset();
  EXPECT_EQ(cache.Stats().n_pages_idle, 6);
  auto big = cache.Open("root");
  ASSERT_TRUE(cache.Reserve(*big, 2));
  cache.Append(*big, 128);
  EXPECT_EQ(cache.Stats().n_evictions, 2);
  auto a = cache.Open("root");
  EXPECT_EQ(cache.Match(*a, old_tokens, {.limit_tokens = 192}), 64) << "its beginning is left";
  auto b = cache.Open("root");
  EXPECT_EQ(cache.Match(*b, new_tokens, {.limit_tokens = 192}), 192);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
}

// Pins what was published of a request that breaks off.
void BreakOff(CacheManager& cache, std::unique_ptr<CacheLease> lease, int64_t until_us) {
  cache.Pin(*lease, until_us);
}

int64_t Known(CacheManager& cache, const std::vector<int32_t>& tokens) {
  const int64_t known =
      cache.Peek("root", tokens, {.limit_tokens = static_cast<int64_t>(tokens.size())});
  auto lease = cache.Open("root");
  EXPECT_EQ(cache.Match(*lease, tokens, {.limit_tokens = static_cast<int64_t>(tokens.size())}),
            known);
  return known;
}

TEST(CacheManager, PeekTakesAndRefreshesNothing) {
  CacheManager cache(6, true);
  const std::vector<int32_t> old_tokens = Tokens(192, 0);
  const std::vector<int32_t> new_tokens = Tokens(192, 5000);
  Compute(cache, old_tokens).reset();
  Compute(cache, new_tokens).reset();
  EXPECT_EQ(cache.Peek("root", old_tokens, {.limit_tokens = 191}), 128);
  EXPECT_EQ(cache.Peek("root", old_tokens, {.limit_tokens = 192, .grain_tokens = 128}), 128);
  EXPECT_EQ(cache.Peek("root", old_tokens, {.limit_tokens = 192, .needs_state = true}), 0);
  EXPECT_EQ(cache.Peek("other", old_tokens, {.limit_tokens = 192}), 0);
  EXPECT_EQ(cache.Peek("root", {}, {.limit_tokens = 192}), 0);
  EXPECT_EQ(cache.Stats().n_pages_used, 0);
  Compute(cache, Tokens(192, 9000)).reset();
  EXPECT_EQ(Known(cache, old_tokens), 0) << "still the least recently used";
  EXPECT_EQ(Known(cache, new_tokens), 192);
  EXPECT_EQ(CacheManager(4, false).Peek("root", old_tokens, {.limit_tokens = 192}), 0);
}

TEST(CacheManager, APinOutlivesOtherCachedPrefixes) {
  CacheManager cache(8, true, 4);
  const std::vector<int32_t> kept = Tokens(256, 0);
  BreakOff(cache, Compute(cache, kept), 100);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 4);
  EXPECT_EQ(cache.available_pages(), 8) << "a promise never waits for a pin";
  for (int32_t text = 1; text < 9; ++text) Compute(cache, Tokens(256, 1000 * text)).reset();
  EXPECT_EQ(cache.Stats().n_evictions, 28);
  EXPECT_EQ(Known(cache, kept), 256);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 4) << "as long as its time is not over";

  cache.ExpirePins(99);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 4);
  cache.ExpirePins(100);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 0);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  Compute(cache, Tokens(512, 20'000)).reset();
  EXPECT_EQ(Known(cache, kept), 0);
}

TEST(CacheManager, WhoRunsTakesPinnedPagesFromTheirEnd) {
  CacheManager cache(8, true, 8);
  BreakOff(cache, Compute(cache, Tokens(256, 0)), 100);
  BreakOff(cache, Compute(cache, Tokens(256, 5000)), 200);
  auto big = cache.Open("root");
  ASSERT_TRUE(cache.Reserve(*big, 8));
  cache.Append(*big, 3 * kPageTokens);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 5);
  EXPECT_EQ(cache.Peek("root", Tokens(256, 0), {.limit_tokens = 256}), 64) << "expires first";
  EXPECT_EQ(cache.Peek("root", Tokens(256, 5000), {.limit_tokens = 256}), 256);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  cache.Append(*big, 8 * kPageTokens);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 0);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
}

TEST(CacheManager, TheShareOfPinsIsBounded) {
  CacheManager cache(16, true, 5);
  const std::vector<int32_t> first = Tokens(192, 0);
  const std::vector<int32_t> second = Tokens(256, 5000);
  BreakOff(cache, Compute(cache, first), 100);
  BreakOff(cache, Compute(cache, second), 200);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 5);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  // 4 pages of the second, one of the first: the others went back to the least recently used.
  Compute(cache, Tokens(11 * kPageTokens, 9000)).reset();
  Compute(cache, Tokens(11 * kPageTokens, 20'000)).reset();
  EXPECT_EQ(Known(cache, first), 64);
  EXPECT_EQ(Known(cache, second), 256);

  // More than the share at once: its beginning is kept.
  const std::vector<int32_t> large = Tokens(8 * kPageTokens, 40'000);
  BreakOff(cache, Compute(cache, large), 300);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 5);
  Compute(cache, Tokens(11 * kPageTokens, 60'000)).reset();
  EXPECT_EQ(Known(cache, large), 5 * kPageTokens);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
}

TEST(CacheManager, WithoutAShareNothingIsPinned) {
  CacheManager cache(8, true, 0);
  BreakOff(cache, Compute(cache, Tokens(256)), 100);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 0);
  EXPECT_EQ(cache.Stats().n_pages_idle, 4);
  CacheManager off(8, false, 8);
  BreakOff(off, Compute(off, Tokens(256)), 100);
  EXPECT_EQ(off.Stats().n_pages_pinned, 0);
  EXPECT_EQ(off.Stats().n_pages_idle, 0);
}

TEST(CacheManager, ARetryThatBreaksOffIsPinnedAnew) {
  CacheManager cache(16, true, 16);
  const std::vector<int32_t> tokens = Tokens(256, 0);
  BreakOff(cache, Compute(cache, tokens), 100);
  auto retry = cache.Open("root");
  ASSERT_EQ(cache.Match(*retry, tokens, {.limit_tokens = 128}), 128);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 2) << "used pages are not counted";
  BreakOff(cache, std::move(retry), 200);
  cache.ExpirePins(150);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 2) << "the half that it had taken over";
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  cache.ExpirePins(200);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 0);
}

TEST(CacheManager, ATwinPageIsReplacedByThePublishedOne) {
  CacheManager cache(8, true);
  const std::vector<int32_t> tokens = Tokens(128);
  const auto a = Compute(cache, tokens);
  const auto b = Compute(cache, tokens);  // computed at the same time, published second
  EXPECT_EQ(a->pages()[0], b->pages()[0]);
  EXPECT_EQ(a->pages()[1], b->pages()[1]);
  EXPECT_EQ(cache.Stats().n_pages_used, 2);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
}

TEST(CacheManager, MatchTakesBackPromises) {
  CacheManager cache(4, true);
  const std::vector<int32_t> tokens = Tokens(128);
  const auto a = Compute(cache, tokens);
  auto b = cache.Open("root");
  ASSERT_TRUE(cache.Reserve(*b, 2));
  EXPECT_EQ(cache.Match(*b, tokens, {.limit_tokens = 127}), 64);
  EXPECT_EQ(b->n_reserved_pages(), 1);
  EXPECT_EQ(cache.available_pages(), 1);
}

TEST(CacheManager, ForkSharesFullPagesAndCopiesThePartialOne) {
  CacheManager cache(8, true);
  const std::vector<int32_t> tokens = Tokens(100);
  auto parent = Compute(cache, tokens);
  ASSERT_TRUE(cache.Reserve(*parent, 3));
  auto child = cache.Fork(*parent, 2);
  EXPECT_EQ(child->pages()[0], parent->pages()[0]);
  EXPECT_NE(child->pages()[1], parent->pages()[1]);
  EXPECT_EQ(child->n_tokens(), 100);
  EXPECT_EQ(child->n_reserved_pages(), 1);
  EXPECT_EQ(parent->n_reserved_pages(), 1);
  ASSERT_EQ(cache.pending_copies().size(), 1u);
  EXPECT_EQ(cache.pending_copies()[0].src.page(), parent->pages()[1]);
  EXPECT_EQ(cache.pending_copies()[0].dst.page(), child->pages()[1]);

  // The source outlives its owner until the copy is done.
  const int64_t n_used = cache.Stats().n_pages_used;
  parent.reset();
  EXPECT_EQ(cache.Stats().n_pages_used, n_used);
  EXPECT_TRUE(cache.CheckIntegrity().ok());
  cache.ClearCopies();
  EXPECT_EQ(cache.Stats().n_pages_used, n_used - 1);
}

TEST(CacheManager, ForkAtAPageBorderCopiesNothing) {
  CacheManager cache(4, true);
  auto parent = Compute(cache, Tokens(128));
  ASSERT_TRUE(cache.Reserve(*parent, 2));
  auto child = cache.Fork(*parent, 1);
  EXPECT_TRUE(cache.pending_copies().empty());
  cache.Append(*child, 129);
  EXPECT_EQ(cache.Stats().n_pages_used, 3);
}

TEST(CacheManagerDeathTest, AppendBeyondThePromise) {
  CacheManager cache(4, true);
  auto lease = cache.Open("r");
  ASSERT_TRUE(cache.Reserve(*lease, 1));
  EXPECT_DEATH(cache.Append(*lease, 65), "CHECK failed");
}

// Random leases over few distinct texts, a pool far too small, some break off: whatever is done,
// the books balance, and a match is always a prefix that somebody published.
class RandomUse : public ::testing::TestWithParam<int64_t> {};

TEST_P(RandomUse, TheBooksBalance) {
  std::mt19937 random(20260101);
  const int64_t max_pinned_pages = GetParam();
  CacheManager cache(24, true, max_pinned_pages);
  int64_t n_pinned_steps = 0;
  struct Live {
    std::unique_ptr<CacheLease> lease;
    std::vector<int32_t> tokens;
  };
  std::vector<Live> live;
  int64_t n_hits = 0;
  for (int step = 0; step < 20'000; ++step) {
    const int action = static_cast<int>(random() % 10);
    if (action < 4 && live.size() < 8) {
      Live next{.lease = cache.Open("root"), .tokens = Tokens(64 + random() % 512, 0)};
      // Texts branch at page 2 and page 4.
      for (size_t i = 128; i < next.tokens.size(); ++i) {
        next.tokens[i] += static_cast<int32_t>(1000 * (random() % 4) * (i % 128 == 0));
      }
      const auto n = static_cast<int64_t>(next.tokens.size());
      n_hits += cache.Match(*next.lease, next.tokens, {.limit_tokens = n - 1}) > 0;
      const int64_t n_new = CeilDiv(n, kPageTokens) - next.lease->n_pages();
      if (cache.Reserve(*next.lease, n_new + static_cast<int64_t>(random() % 3))) {
        live.push_back(std::move(next));
      }
    } else if (action < 7 && !live.empty()) {
      Live& one = live[random() % live.size()];
      const auto n = static_cast<int64_t>(one.tokens.size());
      const int64_t end = std::min<int64_t>(n, one.lease->n_tokens() + 128);
      cache.Append(*one.lease, end);
      cache.SetComplete(*one.lease, end);
      const int64_t from = one.lease->published_tokens();
      const int64_t to = end / kPageTokens * kPageTokens;
      cache.Publish(*one.lease, std::span(one.tokens).subspan(from, to - from), nullptr);
    } else if (action < 8 && !live.empty() && live.size() < 8) {
      Live& one = live[random() % live.size()];
      if (one.lease->n_tokens() == static_cast<int64_t>(one.tokens.size()) &&
          cache.Reserve(*one.lease, 1)) {
        std::unique_ptr<CacheLease> child = cache.Fork(*one.lease, one.lease->n_reserved_pages());
        live.push_back({.lease = std::move(child), .tokens = one.tokens});
        cache.ClearCopies();
      }
    } else if (!live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      if (random() % 2 == 0) cache.Pin(*live.back().lease, step + 40);
      live.pop_back();
    }
    if (random() % 8 == 0) cache.ExpirePins(step);
    n_pinned_steps += cache.Stats().n_pages_pinned > 0;
    const absl::Status status = cache.CheckIntegrity();
    ASSERT_TRUE(status.ok()) << "step " << step << ": " << status.ToString();
  }
  EXPECT_GT(n_hits, 1000);
  EXPECT_GT(cache.Stats().n_evictions, 300);
  EXPECT_EQ(n_pinned_steps > 1000, max_pinned_pages > 0);
  live.clear();
  EXPECT_EQ(cache.Stats().n_pages_used, 0);
  EXPECT_EQ(cache.available_pages(), 24);
  cache.ExpirePins(30'000);
  EXPECT_EQ(cache.Stats().n_pages_pinned, 0);
}

INSTANTIATE_TEST_SUITE_P(MaxPinned, RandomUse, ::testing::Values(0, 5, 12, 24));

}  // namespace
}  // namespace longhaul
