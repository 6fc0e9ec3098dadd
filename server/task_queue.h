// TaskQueue: a few threads that run posted functions in order of arrival, with a bound on how many
// may wait. For work that must not run on a network thread. Owned by a front end; Post from any
// thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace longhaul {

class TaskQueue {
 public:
  TaskQueue(int n_threads, int64_t max_waiting);
  ~TaskQueue();  // Stop()
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  // False, and `task` is dropped, when max_waiting tasks wait already or after Stop().
  [[nodiscard]] bool Post(std::function<void()> task);

  // Post would answer false now.
  bool full() const;

  // Runs what waits, then joins the threads. Must not be called from a task.
  void Stop();

 private:
  void Work();

  const int64_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace longhaul
