#include "kvcache/page_pool.h"

#include "fmt/format.h"

namespace longhaul {

PagePool::PagePool(int32_t n_pages) : pages_(n_pages) {
  free_.reserve(n_pages);
  for (int32_t page = n_pages - 1; page >= 0; --page) free_.push_back(page);
}

PageRef PagePool::Allocate() {
  if (free_.empty()) return PageRef();
  const int32_t page = free_.back();
  free_.pop_back();
  pages_[page].n_references = 1;
  ++n_used_;
  return PageRef(this, page);
}

PageRef PagePool::Acquire(int32_t page) {
  AddReference(page);
  return PageRef(this, page);
}

void PagePool::Retain(int32_t page) {
  LH_CHECK(pages_[page].n_references > 0 && !pages_[page].retained);
  pages_[page].retained = true;
}

void PagePool::Forget(int32_t page) {
  LH_CHECK(pages_[page].retained);
  pages_[page].retained = false;
  if (pages_[page].n_references > 0) return;
  RemoveIdle(page);
  free_.push_back(page);
}

std::optional<int32_t> PagePool::LeastRecentlyUsedIdle() const {
  if (idle_head_ < 0) return std::nullopt;
  return idle_head_;
}

void PagePool::AddReference(int32_t page) {
  Page& entry = pages_[page];
  if (entry.n_references == 0) {
    LH_CHECK(entry.retained);  // a free page is given out by Allocate only
    RemoveIdle(page);
    ++n_used_;
  }
  ++entry.n_references;
}

void PagePool::DropReference(int32_t page) {
  Page& entry = pages_[page];
  LH_CHECK(entry.n_references > 0);
  if (--entry.n_references > 0) return;
  --n_used_;
  if (entry.retained) {
    PushIdle(page);
  } else {
    free_.push_back(page);
  }
}

void PagePool::PushIdle(int32_t page) {
  Page& entry = pages_[page];
  entry.idle_prev = idle_tail_;
  entry.idle_next = -1;
  (idle_tail_ < 0 ? idle_head_ : pages_[idle_tail_].idle_next) = page;
  idle_tail_ = page;
  ++n_idle_;
}

void PagePool::RemoveIdle(int32_t page) {
  const Page& entry = pages_[page];
  (entry.idle_prev < 0 ? idle_head_ : pages_[entry.idle_prev].idle_next) = entry.idle_next;
  (entry.idle_next < 0 ? idle_tail_ : pages_[entry.idle_next].idle_prev) = entry.idle_prev;
  --n_idle_;
}

absl::Status PagePool::CheckIntegrity() const {
  enum class State : uint8_t { kUnseen, kFree, kIdle };
  std::vector<State> states(pages_.size(), State::kUnseen);
  for (int32_t page : free_) {
    if (states[page] != State::kUnseen || pages_[page].n_references != 0 || pages_[page].retained) {
      return absl::InternalError(fmt::format("page {} is in the free list but not free", page));
    }
    states[page] = State::kFree;
  }
  int32_t n_idle = 0;
  for (int32_t page = idle_head_; page >= 0; page = pages_[page].idle_next) {
    if (states[page] != State::kUnseen || pages_[page].n_references != 0 ||
        !pages_[page].retained) {
      return absl::InternalError(fmt::format("page {} is in the idle list but not idle", page));
    }
    states[page] = State::kIdle;
    ++n_idle;
  }
  int32_t n_used = 0;
  for (int32_t page = 0; page < n_pages(); ++page) {
    if (states[page] != State::kUnseen) continue;
    if (pages_[page].n_references <= 0) {
      return absl::InternalError(
          fmt::format("page {} is lost: no reference, neither free nor idle", page));
    }
    ++n_used;
  }
  if (n_idle != n_idle_ || n_used != n_used_) {
    return absl::InternalError(
        fmt::format("page counts are wrong: idle {} (counted {}), used {} ({})", n_idle_, n_idle,
                    n_used_, n_used));
  }
  return absl::OkStatus();
}

}  // namespace longhaul
