#include "kvcache/cache_manager.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

namespace longhaul {

CacheLease::~CacheLease() { manager_->Close(*this); }

CacheManager::CacheManager(int32_t n_pages, bool enable_prefix_caching, int64_t max_pinned_pages)
    : enable_prefix_caching_(enable_prefix_caching),
      max_pinned_pages_(max_pinned_pages),
      pool_(n_pages),
      index_(n_pages) {}

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

CacheManager::Walk CacheManager::Follow(const PrefixCursor& from, int64_t known_tokens,
                                        std::span<const int32_t> tokens,
                                        const MatchRule& rule) const {
  LH_DCHECK(rule.grain_tokens % kPageTokens == 0);
  const int64_t limit = std::min<int64_t>(rule.limit_tokens, tokens.size());
  Walk walk{.pages = {}, .cursor = from};
  size_t n_best = 0;  // pages up to the last place where a match may end, the cursor behind them
  PrefixCursor cursor = from;
  for (int64_t end = known_tokens + kPageTokens; end <= limit; end += kPageTokens) {
    const auto page = index_.Find(cursor, tokens.subspan(end - kPageTokens).first<kPageTokens>());
    if (!page.has_value()) break;
    walk.pages.push_back(*page);
    cursor = index_.Behind(cursor, *page);
    if (end % rule.grain_tokens != 0) continue;
    if (rule.needs_state && index_.state(*page) == nullptr) continue;
    n_best = walk.pages.size();
    walk.cursor = cursor;
  }
  walk.pages.resize(n_best);
  return walk;
}

int64_t CacheManager::Match(CacheLease& lease, std::span<const int32_t> tokens,
                            const MatchRule& rule) {
  PageTable& table = lease.table_;
  if (!enable_prefix_caching_ || !lease.publishing_ ||
      table.n_pages() != lease.n_published_pages_) {
    return table.n_tokens();
  }
  Walk walk = Follow(lease.cursor_, table.n_tokens(), tokens, rule);
  if (walk.pages.empty()) return table.n_tokens();
  for (int32_t page : walk.pages) table.Append(pool_.Acquire(page));
  table.set_n_tokens(table.capacity_tokens());
  lease.cursor_ = std::move(walk.cursor);
  lease.n_published_pages_ = table.n_pages();
  lease.state_ = index_.state(walk.pages.back());
  TakeReserved(lease, std::min<int64_t>(walk.pages.size(), lease.n_reserved_pages_));
  return table.n_tokens();
}

int64_t CacheManager::Peek(std::string root_key, std::span<const int32_t> tokens,
                           const MatchRule& rule) const {
  if (!enable_prefix_caching_) return 0;
  const Walk walk = Follow(PrefixIndex::Root(std::move(root_key)), 0, tokens, rule);
  return static_cast<int64_t>(walk.pages.size()) * kPageTokens;
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
  const auto victim = pool_.NextVictim();
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

void CacheManager::Pin(CacheLease& lease, int64_t until_us) {
  const std::span<const int32_t> pages = lease.pages();
  // From the end to the front, so that a page loses its pin before those that lead to it.
  for (int64_t i = std::min(lease.n_published_pages_, max_pinned_pages_) - 1; i >= 0; --i) {
    pool_.Pin(pages[i], until_us);
  }
  while (pool_.n_pinned() > max_pinned_pages_) pool_.UnpinFirst();
}

void CacheManager::ExpirePins(int64_t now_us) {
  for (auto us = pool_.FirstExpiryUs(); us.has_value() && *us <= now_us;
       us = pool_.FirstExpiryUs()) {
    pool_.UnpinFirst();
  }
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
          .n_pages_pinned = pool_.n_pinned_idle(),
          .n_evictions = n_evictions_};
}

absl::Status CacheManager::CheckIntegrity() const {
  LH_RETURN_IF_ERROR(pool_.CheckIntegrity());
  LH_RETURN_IF_ERROR(index_.CheckIntegrity());
  LH_RETURN_IF_ERROR(CheckLeases());
  return CheckEvictionOrder();
}

absl::Status CacheManager::CheckLeases() const {
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
  }
  if (n_reserved != n_reserved_pages_ || available_pages() < 0) {
    return absl::InternalError(fmt::format("{} pages promised by leases, {} counted, {} left over",
                                           n_reserved, n_reserved_pages_, available_pages()));
  }
  return absl::OkStatus();
}

absl::Status CacheManager::CheckEvictionOrder() const {
  if (pool_.n_pinned() > max_pinned_pages_) {
    return absl::InternalError(
        fmt::format("{} pages are pinned, {} may be", pool_.n_pinned(), max_pinned_pages_));
  }
  constexpr int32_t kNever = -1;  // used and not pinned: has no turn yet
  std::vector<int32_t> turn(pool_.n_pages(), kNever);
  const std::vector<int32_t> order = pool_.EvictionOrder();
  for (size_t i = 0; i < order.size(); ++i) turn[order[i]] = static_cast<int32_t>(i);
  for (int32_t page = 0; page < pool_.n_pages(); ++page) {
    if (index_.contains(page) != pool_.retained(page)) {
      return absl::InternalError(fmt::format("page {} is {} but {}", page,
                                             index_.contains(page) ? "indexed" : "not indexed",
                                             pool_.retained(page) ? "retained" : "not retained"));
    }
    const int32_t parent = index_.contains(page) ? index_.parent_page(page) : -1;
    if (parent < 0) continue;
    if (pool_.pinned(page) && !pool_.pinned(parent)) {
      return absl::InternalError(
          fmt::format("page {} is pinned, page {} that leads to it is not", page, parent));
    }
    if (turn[page] != kNever && turn[parent] != kNever && turn[parent] < turn[page]) {
      return absl::InternalError(
          fmt::format("page {} would be evicted before page {} that follows it", parent, page));
    }
  }
  return absl::OkStatus();
}

}  // namespace longhaul
