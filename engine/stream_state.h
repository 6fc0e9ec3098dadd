// StreamState: the two ends of one request's events. The engine thread emits, one reader takes out.
// Shared by the TokenStream and the engine; outlives either.
//
// Memory: progress that was not read yet is replaced by the next one, so what can pile up is one
// event per generated token. When kMaxUnread of them wait, nobody reads: the request is cancelled.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>

#include "engine/request.h"
#include "engine/sequence.h"

namespace longhaul {

class StreamState : public EventSink {
 public:
  static constexpr size_t kMaxUnread = 65536;  // events, of about 100 bytes

  // `wake` tells the engine that something was cancelled; may be called from any thread, at any
  // time.
  explicit StreamState(std::function<void()> wake) : wake_(std::move(wake)) {}

  // EventSink
  void Emit(StreamEvent event) override;
  bool cancelled() const override { return cancelled_.load(std::memory_order_relaxed); }

  // Reader
  std::optional<StreamEvent> TryNext();
  std::optional<StreamEvent> Next(std::chrono::microseconds timeout);
  void SetReadyCallback(std::function<void()> on_ready);
  void Cancel();
  bool done_was_read() const;

 private:
  std::optional<StreamEvent> Pop();  // needs mutex_
  void CallReady();

  const std::function<void()> wake_;
  std::atomic<bool> cancelled_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<StreamEvent> events_;  // guarded by mutex_
  bool done_was_read_ = false;      // guarded by mutex_

  // A lock of its own, held during the call: after SetReadyCallback returned, the callback before
  // is not running and will not be called. Events can be read meanwhile.
  std::mutex callback_mutex_;
  std::function<void()> on_ready_;  // guarded by callback_mutex_
};

}  // namespace longhaul
