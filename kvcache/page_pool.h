// PagePool: which page ids exist and who refers to them. Ids and counts only, no bytes: what a page
// holds lies in the executor's KV pool at the same id.
//
// A page is in exactly one state:
//   free   nobody refers to it, its content is worthless
//   used   at least one PageRef exists
//   idle   nobody refers to it, but the prefix index retains its content; kept in the order in
//          which the last reference went, so that the first one is the least recently used
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
  std::optional<int32_t> LeastRecentlyUsedIdle() const;

  int32_t n_pages() const { return static_cast<int32_t>(pages_.size()); }
  int32_t n_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t n_idle() const { return n_idle_; }
  int32_t n_used() const { return n_used_; }
  int32_t n_references(int32_t page) const { return pages_[page].n_references; }
  bool retained(int32_t page) const { return pages_[page].retained; }

  // Every page is in exactly one state, and the lists and counts say the same.
  absl::Status CheckIntegrity() const;

 private:
  friend class PageRef;

  struct Page {
    int32_t n_references = 0;
    bool retained = false;
    int32_t idle_prev = -1;  // neighbours in the idle list, -1 at its ends
    int32_t idle_next = -1;
  };

  void AddReference(int32_t page);
  void DropReference(int32_t page);
  void PushIdle(int32_t page);
  void RemoveIdle(int32_t page);

  std::vector<Page> pages_;
  std::vector<int32_t>
      free_;                // a stack: a page that was just written is likely still in a CPU cache
  int32_t idle_head_ = -1;  // least recently used
  int32_t idle_tail_ = -1;
  int32_t n_idle_ = 0;
  int32_t n_used_ = 0;
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
