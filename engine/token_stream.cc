#include "engine/token_stream.h"

#include <utility>
#include <variant>

#include "engine/stream_state.h"

namespace longhaul {

void StreamState::Emit(StreamEvent event) {
  {
    std::lock_guard lock(mutex_);
    const bool replaces = std::holds_alternative<ProgressEvent>(event) && !events_.empty() &&
                          std::holds_alternative<ProgressEvent>(events_.back());
    if (replaces) {
      events_.back() = std::move(event);
      return;
    }
    events_.push_back(std::move(event));
    if (events_.size() >= kMaxUnread) cancelled_.store(true, std::memory_order_relaxed);
    if (events_.size() > 1) return;
  }
  changed_.notify_one();
  CallReady();
}

std::optional<StreamEvent> StreamState::Pop() {
  std::optional<StreamEvent> event;
  if (events_.empty()) return event;
  event = std::move(events_.front());
  events_.pop_front();
  if (std::holds_alternative<DoneEvent>(*event)) done_was_read_ = true;
  return event;
}

std::optional<StreamEvent> StreamState::TryNext() {
  std::lock_guard lock(mutex_);
  return Pop();
}

std::optional<StreamEvent> StreamState::Next(std::chrono::microseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [this] { return !events_.empty() || done_was_read_; });
  return Pop();
}

void StreamState::SetReadyCallback(std::function<void()> on_ready) {
  {
    std::lock_guard lock(callback_mutex_);
    on_ready_ = std::move(on_ready);
  }
  bool waiting;
  {
    std::lock_guard lock(mutex_);
    waiting = !events_.empty();
  }
  if (waiting) CallReady();
}

void StreamState::CallReady() {
  std::lock_guard lock(callback_mutex_);
  if (on_ready_) on_ready_();
}

void StreamState::Cancel() {
  if (!cancelled_.exchange(true, std::memory_order_relaxed)) wake_();
}

bool StreamState::done_was_read() const {
  std::lock_guard lock(mutex_);
  return done_was_read_;
}

TokenStream::TokenStream(std::shared_ptr<StreamState> state) : state_(std::move(state)) {}

TokenStream& TokenStream::operator=(TokenStream&& other) noexcept {
  std::swap(state_, other.state_);  // the destructor of `other` cancels what was here
  return *this;
}

TokenStream::~TokenStream() {
  if (state_ == nullptr) return;
  state_->SetReadyCallback(nullptr);
  if (!state_->done_was_read()) state_->Cancel();
}

std::optional<StreamEvent> TokenStream::TryNext() { return state_->TryNext(); }

std::optional<StreamEvent> TokenStream::Next(std::chrono::microseconds timeout) {
  return state_->Next(timeout);
}

void TokenStream::SetReadyCallback(std::function<void()> on_ready) {
  state_->SetReadyCallback(std::move(on_ready));
}

void TokenStream::Cancel() { state_->Cancel(); }

}  // namespace longhaul
