// TaskGroup: coroutines of one thread that run beside each other, and a wait for all of them. They
// may use what outlives the group's Wait. Destroy it only after Wait, or with the io_context idle.
#pragma once

#include <utility>  // before Boost 1.74's awaitable.hpp, which forgets it

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <exception>

namespace longhaul::load {

class TaskGroup {
 public:
  explicit TaskGroup(boost::asio::io_context* io) : io_(io), all_done_(*io) {}
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  void Spawn(boost::asio::awaitable<void> task) {
    ++n_running_;
    boost::asio::co_spawn(*io_, std::move(task), [this](const std::exception_ptr& error) {
      if (error) std::terminate();  // nothing here throws: our bug, or no memory
      if (--n_running_ == 0) all_done_.cancel();
    });
  }
  int64_t n_running() const { return n_running_; }

  boost::asio::awaitable<void> Wait() {
    while (n_running_ > 0) {
      all_done_.expires_after(std::chrono::hours(1));
      boost::system::error_code ignored;
      co_await all_done_.async_wait(
          boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
    }
  }

 private:
  boost::asio::io_context* const io_;
  boost::asio::steady_timer all_done_;
  int64_t n_running_ = 0;
};

inline boost::asio::awaitable<void> SleepUntil(boost::asio::io_context* io,
                                               std::chrono::steady_clock::time_point time) {
  boost::asio::steady_timer timer(*io, time);
  boost::system::error_code ignored;
  co_await timer.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
}

}  // namespace longhaul::load
