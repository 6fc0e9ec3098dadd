// ThreadPool: every index runs exactly once, whatever the workers are doing when a loop starts.

#include "kernels/base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

// Runs a loop of n indices and expects each once, on a thread number in range.
void ExpectEachOnce(ThreadPool& pool, int64_t n) {
  std::vector<int> n_calls(n, 0);  // plain: a loop's writes are visible when it returns
  std::atomic<bool> threads_in_range{true};
  pool.ParallelFor(n, [&](int64_t i, int thread) {
    ++n_calls[i];
    if (thread < 0 || thread >= pool.n_threads()) threads_in_range = false;
  });
  EXPECT_TRUE(threads_in_range);
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(n_calls[i], 1) << "index " << i << " of " << n;
}

TEST(ThreadPoolTest, EachIndexOnce) {
  for (int n_threads : {1, 2, 5}) {
    ThreadPool pool(n_threads);
    EXPECT_EQ(pool.n_threads(), n_threads);
    for (int64_t n : {0, 1, 2, 7, 1000}) ExpectEachOnce(pool, n);
  }
}

// Loops shorter than a wake-up: workers enter late, or not at all.
TEST(ThreadPoolTest, ManyShortLoops) {
  ThreadPool pool(4);
  for (int i = 0; i < 5000; ++i) ExpectEachOnce(pool, 2 + i % 5);
}

// Pauses around the time that workers look for work before they sleep.
TEST(ThreadPoolTest, LoopsAfterPauses) {
  ThreadPool pool(3);
  for (int pause_us = 0; pause_us < 200; pause_us += 5) {
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    ExpectEachOnce(pool, 16);
  }
}

TEST(ThreadPoolTest, GoesDownAtOnce) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool idle(3);
    ThreadPool used(3);
    ExpectEachOnce(used, 8);
  }
}

}  // namespace
}  // namespace longhaul
