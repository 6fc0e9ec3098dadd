#include "kvcache/page_pool.h"

#include <algorithm>
#include <limits>

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
  Page& entry = pages_[page];
  LH_CHECK(entry.retained && !entry.pinned);
  entry.retained = false;
  if (entry.n_references > 0) return;
  Remove(idle_, page);
  --n_idle_;
  free_.push_back(page);
}

void PagePool::Pin(int32_t page, int64_t until_us) {
  Page& entry = pages_[page];
  LH_CHECK(entry.n_references > 0 && entry.retained);
  if (entry.pinned) {
    Remove(pinned_, page);
  } else {
    entry.pinned = true;
    ++n_pinned_;
  }
  if (pinned_.tail >= 0) until_us = std::max(until_us, pages_[pinned_.tail].pinned_until_us);
  entry.pinned_until_us = until_us;
  PushBack(pinned_, page);
}

void PagePool::UnpinFirst() {
  const int32_t page = pinned_.head;
  LH_CHECK(page >= 0);
  Remove(pinned_, page);
  pages_[page].pinned = false;
  --n_pinned_;
  if (pages_[page].n_references > 0) return;
  --n_pinned_idle_;
  PushBack(idle_, page);
}

std::optional<int64_t> PagePool::FirstExpiryUs() const {
  if (pinned_.head < 0) return std::nullopt;
  return pages_[pinned_.head].pinned_until_us;
}

std::optional<int32_t> PagePool::NextVictim() {
  while (idle_.head < 0 && pinned_.head >= 0) UnpinFirst();
  if (idle_.head < 0) return std::nullopt;
  return idle_.head;
}

void PagePool::AddReference(int32_t page) {
  Page& entry = pages_[page];
  if (entry.n_references == 0) {
    LH_CHECK(entry.retained);  // a free page is given out by Allocate only
    if (entry.pinned) {
      --n_pinned_idle_;
    } else {
      Remove(idle_, page);
    }
    --n_idle_;
    ++n_used_;
  }
  ++entry.n_references;
}

void PagePool::DropReference(int32_t page) {
  Page& entry = pages_[page];
  LH_CHECK(entry.n_references > 0);
  if (--entry.n_references > 0) return;
  --n_used_;
  if (!entry.retained) {
    free_.push_back(page);
    return;
  }
  ++n_idle_;
  if (entry.pinned) {
    ++n_pinned_idle_;
  } else {
    PushBack(idle_, page);
  }
}

void PagePool::PushBack(List& list, int32_t page) {
  Page& entry = pages_[page];
  entry.prev = list.tail;
  entry.next = -1;
  (list.tail < 0 ? list.head : pages_[list.tail].next) = page;
  list.tail = page;
}

void PagePool::Remove(List& list, int32_t page) {
  const Page& entry = pages_[page];
  (entry.prev < 0 ? list.head : pages_[entry.prev].next) = entry.next;
  (entry.next < 0 ? list.tail : pages_[entry.next].prev) = entry.prev;
}

std::vector<int32_t> PagePool::EvictionOrder() const {
  std::vector<int32_t> order;
  for (const List* list : {&idle_, &pinned_}) {
    for (int32_t page = list->head; page >= 0; page = pages_[page].next) order.push_back(page);
  }
  return order;
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
  for (int32_t page = idle_.head; page >= 0; page = pages_[page].next) {
    const Page& entry = pages_[page];
    if (states[page] != State::kUnseen || entry.n_references != 0 || !entry.retained ||
        entry.pinned) {
      return absl::InternalError(fmt::format("page {} is in the idle list but not idle", page));
    }
    states[page] = State::kIdle;
    ++n_idle;
  }
  int32_t n_pinned = 0;
  int32_t n_pinned_idle = 0;
  int64_t last_until_us = std::numeric_limits<int64_t>::min();
  for (int32_t page = pinned_.head; page >= 0; page = pages_[page].next) {
    const Page& entry = pages_[page];
    if (states[page] != State::kUnseen || !entry.retained || !entry.pinned ||
        entry.pinned_until_us < last_until_us) {
      return absl::InternalError(
          fmt::format("page {} is in the wrong place of the list of pins", page));
    }
    last_until_us = entry.pinned_until_us;
    ++n_pinned;
    if (entry.n_references > 0) continue;
    states[page] = State::kIdle;
    ++n_pinned_idle;
  }
  n_idle += n_pinned_idle;
  int32_t n_used = 0;
  for (int32_t page = 0; page < n_pages(); ++page) {
    if (states[page] != State::kUnseen) continue;
    if (pages_[page].n_references <= 0) {
      return absl::InternalError(
          fmt::format("page {} is lost: no reference, neither free nor idle", page));
    }
    ++n_used;
  }
  if (n_idle != n_idle_ || n_used != n_used_ || n_pinned != n_pinned_ ||
      n_pinned_idle != n_pinned_idle_) {
    return absl::InternalError(fmt::format(
        "page counts are wrong: idle {} (counted {}), used {} ({}), pinned {} ({}), of them idle "
        "{} ({})",
        n_idle_, n_idle, n_used_, n_used, n_pinned_, n_pinned, n_pinned_idle_, n_pinned_idle));
  }
  return absl::OkStatus();
}

}  // namespace longhaul
