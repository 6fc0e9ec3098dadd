// PageTable: the pages of one sequence in token order, and how many tokens they hold.
// Owned by a CacheLease; engine thread only. Grows at the end; never changes the content of a page.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/kv_layout.h"
#include "kvcache/page_pool.h"

namespace longhaul {

class PageTable {
 public:
  PageTable() = default;
  PageTable(PageTable&&) = default;
  PageTable& operator=(PageTable&&) = delete;
  ~PageTable() { Clear(); }

  int64_t n_pages() const { return static_cast<int64_t>(refs_.size()); }
  int64_t capacity_tokens() const { return n_pages() * kPageTokens; }
  // Tokens whose keys and values are complete.
  int64_t n_tokens() const { return n_tokens_; }
  void set_n_tokens(int64_t n_tokens) {
    LH_CHECK(0 <= n_tokens && n_tokens <= capacity_tokens());
    n_tokens_ = n_tokens;
  }

  // Page ids, as the kernels read them. Valid until the next change.
  std::span<const int32_t> pages() const { return pages_; }
  const PageRef& ref(int64_t i) const { return refs_[i]; }

  void Append(PageRef ref) {
    pages_.push_back(ref.page());
    refs_.push_back(std::move(ref));
  }
  // Another page with the same content takes the place of page i.
  void Replace(int64_t i, PageRef ref) {
    pages_[i] = ref.page();
    refs_[i] = std::move(ref);
  }
  // Drops the references from the end to the front: a page goes idle before the pages that lead to
  // it, so that the least recently used idle page never has a successor in the prefix index.
  void Clear() {
    while (!refs_.empty()) refs_.pop_back();
    pages_.clear();
    n_tokens_ = 0;
  }

 private:
  std::vector<PageRef> refs_;
  std::vector<int32_t> pages_;
  int64_t n_tokens_ = 0;
};

}  // namespace longhaul
