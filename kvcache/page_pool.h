// PagePool: which page ids exist and who refers to them. Ids and counts only, no bytes: what a page
// holds lies in the executor's KV pool at the same id.
//
// A page is in exactly one state:
//   free   nobody refers to it, its content is worthless
//   used   at least one PageRef exists
//   idle   nobody refers to it, but the prefix index retains its content; kept in the order in
//          which the last reference went, so that the first one is the least recently used
// A pin is a mark beside the state: idle pages without one are evicted first, then the pinned ones,
// soonest to expire first. It protects a page from other cached content only, never from a lease.
//
// Owned by CacheManager; engine thread only; must outlive its PageRefs. Does not evict by itself.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/status.h"

namespace longhaul {

class PagePool;

// One counted reference to a page. Copying is explicit: Share().
class PageRef {
 public:
  PageRef() = default;
  PageRef(PageRef&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), page_(other.page_) {}
  PageRef& operator=(PageRef&& other) noexcept {
    if (this == &other) return *this;
    Reset();
    pool_ = std::exchange(other.pool_, nullptr);
    page_ = other.page_;
    return *this;
  }
  ~PageRef() { Reset(); }

  explicit operator bool() const { return pool_ != nullptr; }
  int32_t page() const {
    LH_DCHECK(pool_ != nullptr);
    return page_;
  }
  PageRef Share() const;
  void Reset();

 private:
  friend class PagePool;
  PageRef(PagePool* pool, int32_t page) : pool_(pool), page_(page) {}

  PagePool* pool_ = nullptr;
  int32_t page_ = -1;
};

class PagePool {
 public:
  explicit PagePool(int32_t n_pages);
  ~PagePool() { LH_DCHECK(n_used_ == 0); }
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A free page; an empty reference when there is none.
  PageRef Allocate();
  // One more reference to a page that is used or idle.
  PageRef Acquire(int32_t page);

  // The page becomes idle instead of free when its last reference goes.
  void Retain(int32_t page);
  // Undoes Retain. An idle page becomes free.
  void Forget(int32_t page);

  // Pins a used and retained page, or pins it anew. It becomes the last to expire, so an `until_us`
  // earlier than that of another pin counts as equal to it.
  void Pin(int32_t page, int64_t until_us);
  // Takes the pin that expires first off its page; an idle page becomes the most recently used.
  void UnpinFirst();
  // When the first pin expires; nothing where no page is pinned.
  std::optional<int64_t> FirstExpiryUs() const;

  // The idle page to evict next. Pins of used pages that stand before it in the order are lost:
  // every pin is passed over once, so this is O(1) per pin.
  std::optional<int32_t> NextVictim();

  int32_t n_pages() const { return static_cast<int32_t>(pages_.size()); }
  int32_t n_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t n_idle() const { return n_idle_; }
  int32_t n_used() const { return n_used_; }
  int32_t n_pinned() const { return n_pinned_; }  // used ones too
  int32_t n_pinned_idle() const { return n_pinned_idle_; }
  int32_t n_references(int32_t page) const { return pages_[page].n_references; }
  bool retained(int32_t page) const { return pages_[page].retained; }
  bool pinned(int32_t page) const { return pages_[page].pinned; }

  // Every page is in exactly one state, pins are in the order of their expiry, and the lists and
  // counts say the same.
  absl::Status CheckIntegrity() const;
  // For checks: the idle pages without a pin, least recently used first, and after them the pinned
  // pages, idle or used, soonest to expire first.
  std::vector<int32_t> EvictionOrder() const;

 private:
  friend class PageRef;

  struct Page {
    int32_t n_references = 0;
    bool retained = false;
    bool pinned = false;  // then it is in pinned_, else in idle_ when idle
    int32_t prev = -1;    // neighbours in its list, -1 at the ends
    int32_t next = -1;
    int64_t pinned_until_us = 0;
  };
  struct List {
    int32_t head = -1;
    int32_t tail = -1;
  };

  void AddReference(int32_t page);
  void DropReference(int32_t page);
  void PushBack(List& list, int32_t page);
  void Remove(List& list, int32_t page);

  std::vector<Page> pages_;
  std::vector<int32_t>
      free_;     // a stack: a page that was just written is likely still in a CPU cache
  List idle_;    // idle and not pinned, least recently used first
  List pinned_;  // idle or used, soonest to expire first
  int32_t n_idle_ = 0;
  int32_t n_used_ = 0;
  int32_t n_pinned_ = 0;
  int32_t n_pinned_idle_ = 0;
};

inline PageRef PageRef::Share() const {
  LH_DCHECK(pool_ != nullptr);
  pool_->AddReference(page_);
  return PageRef(pool_, page_);
}

inline void PageRef::Reset() {
  if (PagePool* pool = std::exchange(pool_, nullptr)) pool->DropReference(page_);
}

}  // namespace longhaul
