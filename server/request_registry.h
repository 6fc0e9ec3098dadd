// RequestRegistry: the requests under way by who asked and by id, so that somebody who is not their
// reader can tell them to end. As large as what runs. Any thread. It keeps no request alive: each
// one owns its Entry, and an Entry keeps the registry.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

namespace longhaul {

class RequestRegistry : public std::enable_shared_from_this<RequestRegistry> {
 public:
  // One request; not under way any more when this is destroyed.
  class Entry {
   public:
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

    // Told to end.
    bool cancelled() const;
    // `cancel` is called as long as this lives when the request is told to end, at once if that
    // was before. With the registry's mutex held: it must only set a flag.
    void OnCancel(std::function<void()> cancel);

   private:
    friend class RequestRegistry;
    Entry(std::shared_ptr<RequestRegistry> registry, std::string key)
        : registry_(std::move(registry)), key_(std::move(key)) {}

    const std::shared_ptr<RequestRegistry> registry_;
    const std::string key_;
    bool cancelled_ = false;        // guarded by registry_->mutex_
    std::function<void()> cancel_;  // guarded by registry_->mutex_
  };

  // Ids need not be unique.
  std::unique_ptr<Entry> Add(std::string_view caller, std::string_view request_id);
  // Tells all requests of `caller` with this id to end; how many there were.
  int Cancel(std::string_view caller, std::string_view request_id);

 private:
  std::mutex mutex_;
  std::unordered_multimap<std::string, Entry*> entries_;  // guarded by mutex_
};

}  // namespace longhaul
