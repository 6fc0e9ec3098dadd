// ThreadPool: a fixed team of worker threads for data-parallel loops inside one op.
// Owned by a CpuBackend (and by whoever else needs one, e.g. the tokenizer). One loop at a time:
// ParallelFor is called from one thread and returns when every index ran. No nesting.
//
// Between loops that follow each other closely (the ops of a decode step) a worker does not sleep:
// it looks for work for kSpin first, since being woken takes longer than many an op.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace longhaul {

class ThreadPool {
 public:
  // n_threads counts the calling thread; 0 means one per processor of this process's affinity mask.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) for every index in [0, n), dynamically scheduled; thread is in
  // [0, n_threads()) and unique among concurrent calls, so it can select scratch memory.
  void ParallelFor(int64_t n, const std::function<void(int64_t index, int thread)>& body);

 private:
  static constexpr std::chrono::microseconds kSpin{50};

  void WorkerLoop(int thread);
  // Waits for a loop that this worker has not seen and enters it; false: the pool is going down.
  bool EnterLoop(uint64_t& seen);
  void RunIndices(int thread);

  std::mutex mutex_;
  std::condition_variable work_ready_;
  std::condition_variable work_done_;
  std::atomic<uint64_t> generation_{0};  // bumped under mutex_ for each loop
  bool open_ = false;                    // guarded by mutex_; workers may enter the current loop
  std::atomic<int> n_running_{0};        // changed under mutex_; workers inside the current loop
  bool stopping_ = false;                // guarded by mutex_
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t n_ = 0;
  std::atomic<int64_t> next_{0};
  std::vector<std::thread> workers_;
};

}  // namespace longhaul
