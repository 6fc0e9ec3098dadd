#include "kernels/base/thread_pool.h"

#include <sched.h>

#include <algorithm>

namespace longhaul {
namespace {

int AvailableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

// Leaves the core to its other hardware thread for a moment.
void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as the condition holds, false when it has not for `limit`.
template <typename Condition>
bool SpinUntil(std::chrono::microseconds limit, const Condition& condition) {
  constexpr int kLooksPerClock = 32;
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (condition()) return true;
      Relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
  if (n_threads <= 0) n_threads = AvailableProcessors();
  workers_.reserve(n_threads - 1);
  for (int thread = 1; thread < n_threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_ready_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int64_t n, const std::function<void(int64_t, int)>& body) {
  if (n <= 1 || workers_.empty()) {
    for (int64_t i = 0; i < n; ++i) body(i, 0);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    n_ = n;
    next_.store(0, std::memory_order_relaxed);
    open_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  work_ready_.notify_all();
  RunIndices(/*thread=*/0);
  {
    // A worker that is not awake yet has missed it: nothing is left for it to do.
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
  }
  const auto done = [this] { return n_running_.load(std::memory_order_acquire) == 0; };
  if (SpinUntil(kSpin, done)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  work_done_.wait(lock, done);
}

void ThreadPool::RunIndices(int thread) {
  for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_;) (*body_)(i, thread);
}

bool ThreadPool::EnterLoop(uint64_t& seen) {
  for (;;) {
    SpinUntil(kSpin, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    std::unique_lock<std::mutex> lock(mutex_);
    work_ready_.wait(lock, [&] { return stopping_ || generation_.load() != seen; });
    if (stopping_) return false;
    seen = generation_.load();
    if (!open_) continue;
    n_running_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
}

void ThreadPool::WorkerLoop(int thread) {
  uint64_t seen = 0;
  while (EnterLoop(seen)) {
    RunIndices(thread);
    std::lock_guard<std::mutex> lock(mutex_);
    if (n_running_.fetch_sub(1, std::memory_order_release) == 1) work_done_.notify_one();
  }
}

}  // namespace longhaul
