// Signal: wakes one coroutine of a strand from other threads, or at a deadline. Set before the wait
// counts as well. Shared by the waiter and whoever notifies.
#pragma once

#include <utility>  // before Boost 1.74's awaitable.hpp, which forgets it

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <mutex>

namespace longhaul {

class Signal : public std::enable_shared_from_this<Signal> {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  explicit Signal(const boost::asio::any_io_executor& strand) : strand_(strand), timer_(strand) {}

  // Any thread. Nothing happens after Close().
  void Notify() {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    boost::asio::post(strand_, [self = shared_from_this()] { self->Set(); });
  }
  // After this returns, Notify() touches the strand no more.
  void Close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }

  // On the strand.
  void Set() {
    set_ = true;
    timer_.cancel();
  }
  // On the strand. True when it was set, false at the deadline.
  boost::asio::awaitable<bool> Wait(TimePoint deadline) {
    if (!set_) {
      boost::system::error_code error;
      timer_.expires_at(deadline);
      co_await timer_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, error));
    }
    co_return std::exchange(set_, false);
  }

 private:
  const boost::asio::any_io_executor strand_;
  boost::asio::steady_timer timer_;
  bool set_ = false;  // on the strand
  std::mutex mutex_;
  bool closed_ = false;  // guarded by mutex_
};

// Closes a signal when a coroutine ends, however it ends.
class SignalCloser {
 public:
  explicit SignalCloser(std::shared_ptr<Signal> signal) : signal_(std::move(signal)) {}
  ~SignalCloser() { signal_->Close(); }
  SignalCloser(const SignalCloser&) = delete;
  SignalCloser& operator=(const SignalCloser&) = delete;

 private:
  const std::shared_ptr<Signal> signal_;
};

}  // namespace longhaul
