// Where the largest of a range end, found digit by digit from the top: device code of the kernels
// that choose the k largest, or the fewest that add up to a share. Ranks are integers in the order
// of what they stand for.
#pragma once

#include "kernels/cuda/block_scan.cuh"

namespace longhaul::cuda {

inline constexpr int kRankDigitBits = 11;
inline constexpr int kRankDigits = 1 << kRankDigitBits;
inline constexpr int kRankPasses = 3;  // of 32 bits

struct FoundDigit {
  int64_t n_wanted;  // of the ranks that have it
  int32_t digit;
};

// By all threads of a block of n_threads; digits are dealt to them from the largest down.
template <int n_threads>
class RankDigits {
 public:
  static constexpr int kPerThread = kRankDigits / n_threads;
  static LH_DEVICE int DigitOf(int i) { return kRankDigits - 1 - (ThreadId() * kPerThread + i); }

  // The digit with which the n_wanted largest are complete. counts[i]: how many, or how much, of
  // DigitOf(i); together at least n_wanted > 0. Ends behind a barrier.
  static LH_DEVICE FoundDigit Find(const int64_t (&counts)[kPerThread], int64_t n_wanted,
                                   Shared<FoundDigit> result, BlockScan<n_threads>& scan) {
    int64_t mine = 0;
    LH_UNROLL
    for (int i = 0; i < kPerThread; ++i) mine += counts[i];
    int64_t total = 0;
    int64_t before = scan.Exclusive(mine, total);
    LH_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      if (before < n_wanted && n_wanted <= before + counts[i]) {
        const FoundDigit found = {.n_wanted = n_wanted - before, .digit = DigitOf(i)};
        result[0] = found;
      }
      before += counts[i];
    }
    SyncThreads();
    const FoundDigit found = result[0];
    return found;
  }
};

}  // namespace longhaul::cuda
