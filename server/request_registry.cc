#include "server/request_registry.h"

#include <utility>

namespace longhaul {
namespace {

// A caller has no line feed (it is a digest), so two pairs never have the same key.
std::string Key(std::string_view caller, std::string_view request_id) {
  std::string key(caller);
  key += '\n';
  key += request_id;
  return key;
}

}  // namespace

RequestRegistry::Entry::~Entry() {
  const std::lock_guard lock(registry_->mutex_);
  auto [it, end] = registry_->entries_.equal_range(key_);
  while (it != end && it->second != this) ++it;
  if (it != end) registry_->entries_.erase(it);
}

bool RequestRegistry::Entry::cancelled() const {
  const std::lock_guard lock(registry_->mutex_);
  return cancelled_;
}

void RequestRegistry::Entry::OnCancel(std::function<void()> cancel) {
  const std::lock_guard lock(registry_->mutex_);
  cancel_ = std::move(cancel);
  if (cancelled_) cancel_();
}

std::unique_ptr<RequestRegistry::Entry> RequestRegistry::Add(std::string_view caller,
                                                             std::string_view request_id) {
  std::unique_ptr<Entry> entry(new Entry(shared_from_this(), Key(caller, request_id)));
  const std::lock_guard lock(mutex_);
  entries_.emplace(entry->key_, entry.get());
  return entry;
}

int RequestRegistry::Cancel(std::string_view caller, std::string_view request_id) {
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = entries_.equal_range(Key(caller, request_id));
  int n_cancelled = 0;
  for (auto it = begin; it != end; ++it) {
    Entry& entry = *it->second;
    entry.cancelled_ = true;
    if (entry.cancel_) entry.cancel_();
    ++n_cancelled;
  }
  return n_cancelled;
}

}  // namespace longhaul
