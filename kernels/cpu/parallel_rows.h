// Loop over rows in chunks that are worth a thread's wake-up.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/base/checked_math.h"
#include "kernels/base/thread_pool.h"

namespace longhaul::cpu {

// Calls body(begin, end) for chunks that cover [0, n_rows). row_elements: elements that one row
// touches; a chunk has 32 Ki of them at least (128 KiB of f32, some 10 us of memory traffic, which
// is what waking a worker costs), so small tensors stay on the calling thread.
template <typename Body>
void ParallelRows(ThreadPool& pool, int64_t n_rows, int64_t row_elements, const Body& body) {
  constexpr int64_t kChunkElements = 32 * 1024;
  const int64_t chunk = std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, row_elements));
  pool.ParallelFor(CeilDiv(n_rows, chunk),
                   [&](int64_t i, int) { body(i * chunk, std::min(n_rows, (i + 1) * chunk)); });
}

}  // namespace longhaul::cpu
