#include "server/task_queue.h"

#include <utility>

namespace longhaul {

TaskQueue::TaskQueue(int n_threads, int64_t max_waiting) : max_waiting_(max_waiting) {
  for (int i = 0; i < n_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TaskQueue::~TaskQueue() { Stop(); }

bool TaskQueue::Post(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_ || int64_t(tasks_.size()) >= max_waiting_) return false;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

bool TaskQueue::full() const {
  std::lock_guard lock(mutex_);
  return stopping_ || int64_t(tasks_.size()) >= max_waiting_;
}

void TaskQueue::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void TaskQueue::Work() {
  while (true) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace longhaul
