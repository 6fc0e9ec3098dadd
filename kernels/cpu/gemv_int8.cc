#include "kernels/cpu/gemv_int8.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longhaul::cpu {

#if defined(__x86_64__)
namespace {

constexpr int64_t kBlockColumns = 64;
constexpr int64_t kStepInputs = 4;  // of one instruction
constexpr int64_t kStepBytes = kBlockColumns * kStepInputs;
constexpr int64_t kPaddedInputs = 64;
constexpr int kVectors = 4;  // of 16 columns, one cache line of weights each

// 16 accumulators of 4 rows leave registers for the weights; with 6 rows gcc spills. Of two groups,
// the second finds the weights in the L1 cache, so they take turns chunk by chunk. Both prefetch,
// each half of the lines: with all of them in the first, memory waits for the second (8 rows: 28 to
// 31 GB/s instead of 33 to 38). 8 rows by 32 columns read every other pair of lines: 28 GB/s.
constexpr int64_t kGroupRows = 4;
constexpr int64_t kChunkInputs = 128;
// One chunk ahead: at 30 GB/s per core 270 ns, which covers the memory's latency. What lies behind
// the panel may be prefetched, too: an address that does not exist does no harm.
constexpr int64_t kPrefetchBytes = kChunkInputs * kBlockColumns;

#define LH_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))

// Adds 4 inputs of each row times their 64 columns, which begin at w. inputs: of row 0, rows
// row_bytes apart. Prefetches lines [kLineBegin, kLineEnd).
template <int kRows, int kLineBegin, int kLineEnd>
LH_VNNI inline __attribute__((always_inline)) void AddStep(const uint8_t* inputs, int64_t row_bytes,
                                                           const std::byte* w,
                                                           __m512i (&acc)[kRows][kVectors]) {
  __m512i weights[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    if (v >= kLineBegin && v < kLineEnd) {
      _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + 64 * v, _MM_HINT_T0);
    }
    weights[v] = _mm512_loadu_si512(w + 64 * v);
  }
  for (int r = 0; r < kRows; ++r) {
    int32_t four;
    std::memcpy(&four, inputs + r * row_bytes, sizeof(four));
    const __m512i all = _mm512_set1_epi32(four);
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], all, weights[v]);
    }
  }
}

// sums [kRows][64] += inputs [begin, end) of x [kRows, k] times one block of 64 columns.
template <int kRows, int kLineBegin, int kLineEnd>
LH_VNNI void AddChunk(const uint8_t* x, int64_t k, int64_t begin, int64_t end,
                      const std::byte* block, int32_t* sums) {
  __m512i acc[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_loadu_si512(sums + (4 * r + v) * 16);
  }
  const std::byte* w = block + begin * kBlockColumns;
  int64_t i = begin;
  for (; i + kStepInputs <= end; i += kStepInputs, w += kStepBytes) {
    AddStep<kRows, kLineBegin, kLineEnd>(x + i, k, w, acc);
  }
  if (i < end) {
    uint8_t last[kRows][kStepInputs] = {};
    for (int r = 0; r < kRows; ++r) std::memcpy(last[r], x + r * k + i, end - i);
    AddStep<kRows, 0, 0>(last[0], kStepInputs, w, acc);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(sums + (4 * r + v) * 16, acc[r][v]);
  }
}

using AddChunkFn = void (*)(const uint8_t*, int64_t, int64_t, int64_t, const std::byte*, int32_t*);

// By rows: of one group, and of the second of two.
constexpr AddChunkFn kAlone[] = {AddChunk<1, 0, 4>, AddChunk<2, 0, 4>, AddChunk<3, 0, 4>,
                                 AddChunk<4, 0, 4>};
constexpr AddChunkFn kSecond[] = {AddChunk<1, 2, 4>, AddChunk<2, 2, 4>, AddChunk<3, 2, 4>,
                                  AddChunk<4, 2, 4>};

void AddBlock(const uint8_t* x, int64_t n_rows, int64_t k, const std::byte* block, int32_t* sums) {
  if (n_rows <= kGroupRows) {
    kAlone[n_rows - 1](x, k, 0, k, block, sums);
    return;
  }
  for (int64_t begin = 0; begin < k; begin += kChunkInputs) {
    const int64_t end = std::min(begin + kChunkInputs, k);
    AddChunk<kGroupRows, 0, 2>(x, k, begin, end, block, sums);
    kSecond[n_rows - kGroupRows - 1](x + kGroupRows * k, k, begin, end, block,
                                     sums + kGroupRows * kBlockColumns);
  }
}

}  // namespace

void GemvInt8(const uint8_t* x, int64_t n_rows, int64_t k, const std::byte* panel, int64_t n,
              int32_t* sums) {
  LH_CHECK(n_rows >= 1 && n_rows <= kMaxGemvRows);
  const int64_t block_bytes = RoundUp(k, kPaddedInputs) * kBlockColumns;
  for (int64_t begin = 0; begin < n; begin += kBlockColumns, panel += block_bytes) {
    alignas(64) int32_t block_sums[kMaxGemvRows * kBlockColumns] = {};
    AddBlock(x, n_rows, k, panel, block_sums);
    const int64_t n_columns = std::min(kBlockColumns, n - begin);
    for (int64_t r = 0; r < n_rows; ++r) {
      std::copy_n(block_sums + r * kBlockColumns, n_columns, sums + r * n + begin);
    }
  }
}
#else
void GemvInt8(const uint8_t*, int64_t, int64_t, const std::byte*, int64_t, int32_t*) {
  LH_CHECK(false);  // no processor of this kind has u8 x s8 kernels: MatmulCache::IsNative
}
#endif

}  // namespace longhaul::cpu
