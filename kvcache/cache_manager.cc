#include "kvcache/cache_manager.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

namespace longhaul {

CacheLease::~CacheLease() { manager_->Close(*this); }

CacheManager::CacheManager(int32_t n_pages, bool enable_prefix_caching)
    : enable_prefix_caching_(enable_prefix_caching), pool_(n_pages), index_(n_pages) {}

CacheManager::~CacheManager() { LH_CHECK(leases_.empty()); }

std::unique_ptr<CacheLease> CacheManager::Open(std::string root_key) {
  auto lease =
      std::unique_ptr<CacheLease>(new CacheLease(this, PrefixIndex::Root(std::move(root_key))));
  leases_.insert(lease.get());
  return lease;
}

void CacheManager::Close(CacheLease& lease) {
  n_reserved_pages_ -= lease.n_reserved_pages_;
  lease.n_reserved_pages_ = 0;
  lease.table_.Clear();
  leases_.erase(&lease);
}

int64_t CacheManager::Match(CacheLease& lease, std::span<const int32_t> tokens,
                            const MatchRule& rule) {
  LH_DCHECK(rule.grain_tokens % kPageTokens == 0);
  PageTable& table = lease.table_;
  if (!enable_prefix_caching_ || !lease.publishing_ ||
      table.n_pages() != lease.n_published_pages_) {
    return table.n_tokens();
  }
  // Walk without taking anything, remember the last place where a match may end.
  const int64_t limit = std::min<int64_t>(rule.limit_tokens, tokens.size());
  const int64_t begin = table.n_tokens();
  PrefixCursor cursor = lease.cursor_;
  PrefixCursor best_cursor = cursor;
  std::vector<int32_t> found;
  size_t n_best = 0;
  for (int64_t end = begin + kPageTokens; end <= limit; end += kPageTokens) {
    const auto page = index_.Find(cursor, tokens.subspan(end - kPageTokens).first<kPageTokens>());
    if (!page.has_value()) break;
    found.push_back(*page);
    cursor = index_.Behind(cursor, *page);
    if (end % rule.grain_tokens != 0) continue;
    if (rule.needs_state && index_.state(*page) == nullptr) continue;
    n_best = found.size();
    best_cursor = cursor;
  }
  if (n_best == 0) return table.n_tokens();

  for (size_t i = 0; i < n_best; ++i) table.Append(pool_.Acquire(found[i]));
  table.set_n_tokens(begin + static_cast<int64_t>(n_best) * kPageTokens);
  lease.cursor_ = std::move(best_cursor);
  lease.n_published_pages_ = table.n_pages();
  lease.state_ = index_.state(found[n_best - 1]);
  TakeReserved(lease, std::min<int64_t>(n_best, lease.n_reserved_pages_));
  return table.n_tokens();
}

bool CacheManager::Reserve(CacheLease& lease, int64_t n_pages) {
  LH_CHECK(n_pages >= 0);
  if (n_pages > available_pages()) return false;
  lease.n_reserved_pages_ += n_pages;
  n_reserved_pages_ += n_pages;
  return true;
}

void CacheManager::TakeReserved(CacheLease& lease, int64_t n_pages) {
  LH_CHECK(n_pages <= lease.n_reserved_pages_);
  lease.n_reserved_pages_ -= n_pages;
  n_reserved_pages_ -= n_pages;
}

void CacheManager::TrimReserve(CacheLease& lease, int64_t n_pages) {
  TakeReserved(lease, std::max<int64_t>(0, lease.n_reserved_pages_ - n_pages));
}

PageRef CacheManager::TakePage() {
  if (PageRef ref = pool_.Allocate()) return ref;
  const auto victim = pool_.LeastRecentlyUsedIdle();
  LH_CHECK(victim.has_value());  // promises are covered, see Reserve
  index_.Erase(*victim);
  pool_.Forget(*victim);
  ++n_evictions_;
  return pool_.Allocate();
}

void CacheManager::Append(CacheLease& lease, int64_t n_tokens) {
  const int64_t n_new = CeilDiv(n_tokens, kPageTokens) - lease.table_.n_pages();
  if (n_new <= 0) return;
  TakeReserved(lease, n_new);
  for (int64_t i = 0; i < n_new; ++i) lease.table_.Append(TakePage());
}

void CacheManager::Publish(CacheLease& lease, std::span<const int32_t> tokens, PrefixState state) {
  LH_CHECK(tokens.size() % kPageTokens == 0);
  LH_CHECK(lease.published_tokens() + static_cast<int64_t>(tokens.size()) <= lease.n_tokens());
  if (!enable_prefix_caching_ || !lease.publishing_ || tokens.empty()) return;
  int32_t page = -1;
  for (; !tokens.empty(); tokens = tokens.subspan(kPageTokens)) {
    const PageTokens page_tokens = tokens.first<kPageTokens>();
    const int64_t i = lease.n_published_pages_;
    page = lease.table_.pages()[i];
    if (const auto known = index_.Find(lease.cursor_, page_tokens)) {
      if (*known != page) lease.table_.Replace(i, pool_.Acquire(*known));
      page = *known;
    } else if (index_.Insert(lease.cursor_, page_tokens, page)) {
      pool_.Retain(page);
    } else {
      lease.publishing_ = false;  // two prefixes with one hash: the second stays private
      return;
    }
    lease.cursor_ = index_.Behind(lease.cursor_, page);
    ++lease.n_published_pages_;
  }
  if (state != nullptr) index_.set_state(page, std::move(state));
}

std::unique_ptr<CacheLease> CacheManager::Fork(CacheLease& parent, int64_t n_pages) {
  auto child = std::unique_ptr<CacheLease>(new CacheLease(this, parent.cursor_));
  leases_.insert(child.get());
  child->n_published_pages_ = parent.n_published_pages_;
  child->publishing_ = parent.publishing_;
  LH_CHECK(n_pages <= parent.n_reserved_pages_);
  parent.n_reserved_pages_ -= n_pages;
  child->n_reserved_pages_ = n_pages;

  const int64_t n_full = parent.n_tokens() / kPageTokens;
  // A page held by two may not be replaced by its published twin in one of them only.
  if (n_full > parent.n_published_pages_) parent.publishing_ = child->publishing_ = false;
  for (int64_t i = 0; i < n_full; ++i) child->table_.Append(parent.table_.ref(i).Share());
  if (parent.n_tokens() % kPageTokens != 0) {
    Append(*child, parent.n_tokens());
    copies_.push_back(
        {.src = parent.table_.ref(n_full).Share(), .dst = child->table_.ref(n_full).Share()});
  }
  SetComplete(*child, parent.n_tokens());
  return child;
}

CacheStats CacheManager::Stats() const {
  return {.n_pages_total = pool_.n_pages(),
          .n_pages_used = pool_.n_used(),
          .n_pages_idle = pool_.n_idle(),
          .n_pages_reserved = n_reserved_pages_,
          .n_evictions = n_evictions_};
}

absl::Status CacheManager::CheckIntegrity() const {
  LH_RETURN_IF_ERROR(pool_.CheckIntegrity());
  LH_RETURN_IF_ERROR(index_.CheckIntegrity());

  std::vector<int32_t> n_references(pool_.n_pages(), 0);
  int64_t n_reserved = 0;
  for (const CacheLease* lease : leases_) {
    n_reserved += lease->n_reserved_pages_;
    const std::span<const int32_t> pages = lease->pages();
    for (size_t i = 0; i < pages.size(); ++i) {
      ++n_references[pages[i]];
      if (!index_.contains(pages[i])) continue;
      if (index_.parent_page(pages[i]) != (i == 0 ? -1 : pages[i - 1])) {
        return absl::InternalError(
            fmt::format("page {} is held without the page that leads to it", pages[i]));
      }
    }
  }
  for (const PendingCopy& copy : copies_) {
    ++n_references[copy.src.page()];
    ++n_references[copy.dst.page()];
  }
  for (int32_t page = 0; page < pool_.n_pages(); ++page) {
    if (n_references[page] != pool_.n_references(page)) {
      return absl::InternalError(fmt::format("page {} has {} references, counts {}", page,
                                             n_references[page], pool_.n_references(page)));
    }
    if (index_.contains(page) != pool_.retained(page)) {
      return absl::InternalError(fmt::format("page {} is {} but {}", page,
                                             index_.contains(page) ? "indexed" : "not indexed",
                                             pool_.retained(page) ? "retained" : "not retained"));
    }
  }
  if (n_reserved != n_reserved_pages_ || available_pages() < 0) {
    return absl::InternalError(fmt::format("{} pages promised by leases, {} counted, {} left over",
                                           n_reserved, n_reserved_pages_, available_pages()));
  }
  return absl::OkStatus();
}

}  // namespace longhaul
