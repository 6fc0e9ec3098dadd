// Sums and scans over the threads of a block, for integers: their result does not depend on the
// order. Device code, called by all threads of the block.
#pragma once

#include "kernels/cuda/device.h"

namespace longhaul::cuda {

// n_threads threads, a multiple of 32 and at most 1024. `warp_sums` is this scan's own shared
// memory, one element per warp.
template <int n_threads>
class BlockScan {
 public:
  static constexpr int kWarps = n_threads / kWarpLanes;

  LH_DEVICE explicit BlockScan(SharedArena& arena) : warp_sums_(arena.Carve<int64_t>(kWarps)) {}

  // The sum over the threads before this one; `total` over all.
  LH_DEVICE int64_t Exclusive(int64_t value, int64_t& total) {
    int64_t inclusive = value;
    LH_UNROLL
    for (int distance = 1; distance < kWarpLanes; distance *= 2) {
      const int64_t below = ShuffleUp(inclusive, distance);
      if (LaneId() >= distance) inclusive += below;
    }
    SyncThreads();  // the last use of warp_sums_ is over
    if (LaneId() == kWarpLanes - 1) warp_sums_[WarpId()] = inclusive;
    SyncThreads();
    int64_t before = 0;
    total = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      const int64_t sum = warp_sums_[warp];
      if (warp < WarpId()) before += sum;
      total += sum;
    }
    return before + inclusive - value;
  }

  LH_DEVICE int64_t Sum(int64_t value) {
    int64_t total = 0;
    Exclusive(value, total);
    return total;
  }

 private:
  Shared<int64_t> warp_sums_;
};

template <int n_threads>
constexpr int BlockScanBytes() {
  return CarvedBytes<int64_t>(n_threads / kWarpLanes);
}

}  // namespace longhaul::cuda
