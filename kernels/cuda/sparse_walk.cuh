// Which tiles of keys a block of rows attends to under a plan, one after the other. Device code.
//
// Every tile is 64 keys, wherever they lie: a page, or 64 keys of stripes. Distances i - j between
// row and key that a head keeps on diagonals (the window and its bands) form "runs". Keys below the
// sink are taken by the sink, keys at a distance inside a run by the run, and stripes give what is
// left: so every pair counts once.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cuda/kv_tiles.cuh"
#include "kernels/cuda/sparse_rows.cuh"

namespace longhaul::cuda {

// Keys of the head's stripes, a whole number of tiles.
LH_DEVICE int64_t CopiedKeys(const SparseParams& p, int n_stripes) {
  const int64_t n_keys = int64_t{n_stripes} * p.stripe_width;
  return (n_keys + kTileKeys - 1) / kTileKeys * kTileKeys;
}

// 64 keys that count for the rows at a distance in [near, far) each, if they lie in [key_min,
// key_end).
struct SparseTile {
  int32_t first;  // key, or index among the keys of the head's stripes
  int32_t is_stripes;
  int32_t key_min;
  int32_t key_end;
  int32_t near;
  int32_t far;
};

inline constexpr int32_t kNoKey = std::numeric_limits<int32_t>::max();
inline constexpr int32_t kAnyDistance = std::numeric_limits<int32_t>::max();

// The rows of one block: positions [first, last] of one head.
struct SparseRows {
  int head;
  int kv_head;
  int first;
  int last;
  HeadKind kind;
  int n_bands;            // of a sparse head
  int64_t copies;         // where the keys of its stripes were copied to, in bytes from the pool
  int64_t copied_values;  // from a copied key to its value; 0: keys are gathered from their pages
};

// Blocks [H * n_row_tiles]: the heads in their order, of each the last rows first.
template <int kHeadDim, int kBlockRows>
LH_DEVICE SparseRows RowsOfBlock(const SparseParams& p) {
  const int row_tile = p.n_row_tiles - 1 - BlockX() % p.n_row_tiles;
  SparseRows rows;
  rows.head = p.head_order[BlockX() / p.n_row_tiles];
  rows.kv_head = rows.head / p.group;
  rows.first = p.q_begin + row_tile * kBlockRows;
  rows.last = std::min(rows.first + kBlockRows, p.q_begin + p.n_tokens) - 1;
  rows.kind = static_cast<HeadKind>(p.kind[rows.head]);
  rows.n_bands = rows.kind == HeadKind::kSparse ? p.n_bands[rows.head] : 0;
  rows.copies = 0;
  rows.copied_values = 0;
  const int64_t copies_begin = p.copies_begin[rows.head];
  if (copies_begin >= 0) {
    constexpr int64_t kRowBytes = kHeadDim * int64_t{sizeof(BF16)};
    rows.copies = p.copies_from_pool + 2 * copies_begin * kRowBytes;
    rows.copied_values = CopiedKeys(p, p.n_stripes[rows.head]) * kRowBytes;
  }
  return rows;
}

// The tiles that some of the rows need of one chunk of keys (dual_chunk.cuh), in the order stripes,
// sink, bands, window.
class TileWalk {
 public:
  TileWalk() = default;
  LH_DEVICE TileWalk(const SparseParams& p, const SparseRows& rows, int chunk)
      : chunk_begin_(p.queries.FirstKey(chunk)), chunk_end_(p.queries.FirstKey(chunk + 1)) {
    if (rows.kind == HeadKind::kDense) phase_ = Phase::kDense;
    if (rows.kind != HeadKind::kSparse) return;
    const int end = std::min(rows.last - p.window + 1, chunk_end_);
    if (chunk > 0) stripe_keys_begin_ = StripesBefore(p, rows, chunk_begin_) * p.stripe_width;
    stripe_keys_end_ = StripesBefore(p, rows, end) * p.stripe_width;
  }

  // False: there are no more.
  LH_DEVICE bool Next(const SparseParams& p, const SparseRows& rows, SparseTile& tile) {
    while (next_ >= end_) {
      if (!NextPhase(p, rows)) return false;
    }
    tile = tile_;
    tile.first = next_;
    next_ += kTileKeys;
    return true;
  }

  // Among the keys of the head's stripes, the first that is not of this walk any more.
  LH_DEVICE int stripe_keys_end() const { return stripe_keys_end_; }

 private:
  enum class Phase : int32_t { kStripes, kSink, kBands, kWindow, kDense, kEnd };

  // How many stripes begin before `key`. Called by whole warps.
  LH_DEVICE static int StripesBefore(const SparseParams& p, const SparseRows& rows, int key) {
    const Global<const int32_t> stripes = p.stripes + rows.head * p.max_stripes;
    int begin = 0;
    int end = p.n_stripes[rows.head];
    while (begin < end) {  // 32 probes at a time, evenly spread over [begin, end)
      const int step = (end - begin + kWarpLanes - 1) / kWarpLanes;
      const int probe = begin + LaneId() * step;
      const bool before = probe < end && stripes[probe] < key;
      const int n_before = PopCount(Ballot(before));
      if (n_before == 0) return begin;
      const int limit = begin + n_before * step;
      begin += (n_before - 1) * step + 1;
      end = std::min(end, limit);
    }
    return begin;
  }

  // Sets what the following tiles have in common; possibly none follow.
  LH_DEVICE bool NextPhase(const SparseParams& p, const SparseRows& rows) {
    next_ = 0;
    end_ = 0;
    switch (phase_) {
      case Phase::kStripes:
        phase_ = Phase::kSink;
        next_ = stripe_keys_begin_;
        end_ = stripe_keys_end_;
        tile_ = {0, 1, p.sink, kNoKey, p.window, kAnyDistance};
        return true;
      case Phase::kSink:
        phase_ = Phase::kBands;
        next_ = chunk_begin_;
        end_ = std::min(std::min(p.sink, rows.last + 1), chunk_end_);
        tile_ = {0, 0, 0, p.sink, 0, kAnyDistance};
        return true;
      case Phase::kBands:
        if (band_ < rows.n_bands) {
          BeginBands(p, rows);
        } else {
          phase_ = Phase::kWindow;
        }
        return true;
      case Phase::kWindow:
        phase_ = Phase::kEnd;
        BeginRun(p, rows, 0, p.window);
        return true;
      case Phase::kDense:
        phase_ = Phase::kEnd;
        next_ = chunk_begin_;
        end_ = std::min(rows.last + 1, chunk_end_);
        tile_ = {0, 0, 0, kNoKey, 0, kAnyDistance};
        return true;
      case Phase::kEnd:
        return false;
    }
    return false;
  }

  // The next band, and those that adjoin it.
  LH_DEVICE void BeginBands(const SparseParams& p, const SparseRows& rows) {
    const Global<const int32_t> bands = p.bands + rows.head * p.max_bands;
    const int first_band = bands[band_];
    int n = 1;
    while (band_ + n < rows.n_bands && bands[band_ + n] == first_band + n) ++n;
    band_ += n;
    BeginRun(p, rows, std::max(first_band * kBand, p.window), (first_band + n) * kBand);
  }

  LH_DEVICE void BeginRun(const SparseParams& p, const SparseRows& rows, int near, int far) {
    const int key_begin = std::max(std::max(p.sink, rows.first - far + 1), chunk_begin_);
    next_ = key_begin / kTileKeys * kTileKeys;
    end_ = std::min(rows.last - near + 1, chunk_end_);
    tile_ = {0, 0, p.sink, kNoKey, near, far};
  }

  static constexpr int kBand = static_cast<int>(kBandWidth);

  Phase phase_ = Phase::kStripes;
  int next_ = 0;
  int end_ = 0;
  int band_ = 0;
  int chunk_begin_ = 0;  // keys [chunk_begin_, chunk_end_)
  int chunk_end_ = 0;
  int stripe_keys_begin_ = 0;
  int stripe_keys_end_ = 0;
  SparseTile tile_ = {};
};

}  // namespace longhaul::cuda
