// Loop over rows in chunks that are worth a thread's wake-up.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/base/checked_math.h"
#include "kernels/base/thread_pool.h"

namespace longhaul::cpu {

// Calls body(begin, end), or body(begin, end, thread), for chunks that cover [0, n_rows).
// row_elements: elements that one row touches; a chunk has 32 Ki of them at least (128 KiB of f32,
// some 10 us of memory traffic, which is what waking a worker costs), so small tensors stay on the
// calling thread.
template <typename Body>
void ParallelRows(ThreadPool& pool, int64_t n_rows, int64_t row_elements, const Body& body) {
  constexpr int64_t kChunkElements = 32 * 1024;
  const int64_t chunk = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, row_elements));
  pool.ParallelFor(CeilDiv(n_rows, chunk), [&](int64_t i, int thread) {
    const int64_t begin = i * chunk, end = std::min(n_rows, begin + chunk);
    if constexpr (std::is_invocable_v<Body, int64_t, int64_t, int>) {
      body(begin, end, thread);
    } else {
      body(begin, end);
    }
  });
}

}  // namespace longhaul::cpu
