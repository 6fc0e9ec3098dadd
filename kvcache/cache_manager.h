// CacheManager: the only owner of KV pages. Sequences hold leases; a lease is what one sequence may
// use: its pages in order, a place in the prefix index, and pages promised but not yet taken.
//
// Promises are what keeps the engine free of deadlock: free + idle pages are never fewer than the
// pages promised, so Append cannot fail and nobody is preempted. Reserve says no instead, and the
// request waits. Idle pages (kept only for the prefix cache) are evicted, least recently used
// first, when no page is free.
//
// Pins keep what a request that broke off had computed, for its retry. They change the order of
// eviction only: pinned pages go last. They count as idle, so no promise waits for them.
//
// Immutable: a page that was published or is shared by a fork is full, and full pages are not
// written. Engine thread only, no mutex. Does not know requests, epochs or attention policies: the
// caller says up to which token a prefix may be shared.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "kernels/base/status.h"
#include "kvcache/page_pool.h"
#include "kvcache/page_table.h"
#include "kvcache/prefix_index.h"

namespace longhaul {

class CacheManager;

// What one sequence holds. Dropping it gives everything back.
class CacheLease {
 public:
  ~CacheLease();
  CacheLease(const CacheLease&) = delete;
  CacheLease& operator=(const CacheLease&) = delete;

  std::span<const int32_t> pages() const { return table_.pages(); }
  int64_t n_pages() const { return table_.n_pages(); }
  int64_t n_tokens() const { return table_.n_tokens(); }
  int64_t n_reserved_pages() const { return n_reserved_pages_; }
  // Tokens [0, published) are in the prefix index.
  int64_t published_tokens() const { return n_published_pages_ * kPageTokens; }
  // State behind the last matched page; null if none was stored there.
  const PrefixState& state() const { return state_; }

 private:
  friend class CacheManager;
  CacheLease(CacheManager* manager, PrefixCursor cursor)
      : manager_(manager), cursor_(std::move(cursor)) {}

  CacheManager* manager_;
  PageTable table_;
  PrefixCursor cursor_;  // behind the last published page
  int64_t n_published_pages_ = 0;
  bool publishing_ = true;  // false for good after a hash collision
  int64_t n_reserved_pages_ = 0;
  PrefixState state_;
};

// How far cached pages may be taken over: a match ends on a multiple of `grain_tokens` (itself a
// multiple of 64), at or before `limit_tokens`, and, if `needs_state`, where a state was stored.
struct MatchRule {
  int64_t limit_tokens = 0;
  int64_t grain_tokens = kPageTokens;
  bool needs_state = false;
};

// Copies that a fork needs before its next step. Both references keep the pages until ClearCopies.
struct PendingCopy {
  PageRef src;
  PageRef dst;
};

struct CacheStats {
  int64_t n_pages_total = 0;
  int64_t n_pages_used = 0;
  int64_t n_pages_idle = 0;      // held by the prefix cache alone
  int64_t n_pages_reserved = 0;  // promised, not yet taken
  int64_t n_pages_pinned = 0;    // idle pages that a pin protects
  int64_t n_evictions = 0;
};

class CacheManager {
 public:
  // At most `max_pinned_pages` pages are pinned at a time.
  CacheManager(int32_t n_pages, bool enable_prefix_caching, int64_t max_pinned_pages = 0);
  ~CacheManager();
  CacheManager(const CacheManager&) = delete;
  CacheManager& operator=(const CacheManager&) = delete;

  // `root_key` names everything that page content depends on besides the tokens before it.
  std::unique_ptr<CacheLease> Open(std::string root_key);

  // Extends a lease by cached pages of `tokens` (from position 0), as far as the rule allows. Only
  // where all its tokens are published, i.e. before anything unpublished was appended. Takes back
  // as many promises as it adds pages. Returns the tokens now known.
  int64_t Match(CacheLease& lease, std::span<const int32_t> tokens, const MatchRule& rule);
  // What Match of a new lease would return. Takes nothing, refreshes nothing.
  int64_t Peek(std::string root_key, std::span<const int32_t> tokens, const MatchRule& rule) const;

  // Promises `n_pages` more pages to the lease. False, and nothing changed, if there are not
  // enough.
  bool Reserve(CacheLease& lease, int64_t n_pages);
  // Gives back what is promised beyond `n_pages`.
  void TrimReserve(CacheLease& lease, int64_t n_pages);
  int64_t available_pages() const { return pool_.n_free() + pool_.n_idle() - n_reserved_pages_; }

  // Makes room for tokens [0, n_tokens), from the promised pages.
  void Append(CacheLease& lease, int64_t n_tokens);
  // Keys and values of tokens [0, n_tokens) are written.
  void SetComplete(CacheLease& lease, int64_t n_tokens) { lease.table_.set_n_tokens(n_tokens); }

  // Shares complete pages from published_tokens() on. `tokens` are their ids, a multiple of 64;
  // `state` is kept behind the last of them. A page that the index already has takes the place of
  // the lease's own one, which becomes free.
  void Publish(CacheLease& lease, std::span<const int32_t> tokens, PrefixState state);

  // Protects the published pages of the lease from eviction by other cached content until
  // `until_us`, its beginning at least where there are too many. The pins that expire first give
  // way. Times do not go back from call to call.
  void Pin(CacheLease& lease, int64_t until_us);
  // Pages whose pin is over become plain ones, used just now.
  void ExpirePins(int64_t now_us);

  // A second sequence with the same tokens so far: full pages are shared, a partial one is copied
  // (see pending_copies). `n_pages` of the parent's promises go to the child, the copy comes out of
  // them.
  std::unique_ptr<CacheLease> Fork(CacheLease& parent, int64_t n_pages);
  std::span<const PendingCopy> pending_copies() const { return copies_; }
  void ClearCopies() { copies_.clear(); }

  CacheStats Stats() const;
  // free + used + idle == total; references equal those of leases and copies; promises are covered;
  // exactly the indexed pages are retained; whoever holds a page holds the pages that lead to it;
  // no page is evicted or loses its pin before those that follow it.
  absl::Status CheckIntegrity() const;

 private:
  friend class CacheLease;

  // Indexed pages that follow a cursor, as far as a rule allows.
  struct Walk {
    std::vector<int32_t> pages;
    PrefixCursor cursor;  // behind the last of them
  };

  Walk Follow(const PrefixCursor& cursor, int64_t known_tokens, std::span<const int32_t> tokens,
              const MatchRule& rule) const;
  absl::Status CheckLeases() const;
  absl::Status CheckEvictionOrder() const;
  void Close(CacheLease& lease);
  PageRef TakePage();
  void TakeReserved(CacheLease& lease, int64_t n_pages);

  const bool enable_prefix_caching_;
  const int64_t max_pinned_pages_;
  PagePool pool_;
  PrefixIndex index_;
  absl::flat_hash_set<CacheLease*> leases_;
  std::vector<PendingCopy> copies_;
  int64_t n_reserved_pages_ = 0;
  int64_t n_evictions_ = 0;
};

}  // namespace longhaul
