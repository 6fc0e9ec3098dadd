// What a block knows of the tiles of its walk (sparse_walk.cuh) while it loads and uses them: where
// each key's row stands, and which of the pairs count. Device code.
#pragma once

#include <algorithm>

#include "kernels/cuda/kv_tiles.cuh"
#include "kernels/cuda/sparse_walk.cuh"

namespace longhaul::cuda {

// One bit per band of the block's head, in shared memory.
class BandSet {
 public:
  static constexpr int kBitsPerWord = 32;

  BandSet() = default;
  LH_DEVICE explicit BandSet(Shared<uint32_t> words) : words_(words) {}

  // Called by all kThreads threads; ends with a barrier. The bands of a list differ, so adding bits
  // sets them.
  template <int kThreads>
  LH_DEVICE void Fill(const SparseParams& p, int head, int n_words) {
    for (int i = ThreadId(); i < n_words; i += kThreads) words_[i] = 0;
    SyncThreads();
    const int n = p.n_bands[head];
    for (int i = ThreadId(); i < n; i += kThreads) {
      const int band = p.bands[head * p.max_bands + i];
      AtomicAdd(words_ + band / kBitsPerWord, 1u << band % kBitsPerWord);
    }
    SyncThreads();
  }

  LH_DEVICE bool Has(int band) const {
    const uint32_t word = words_[band / kBitsPerWord];
    return (word >> band % kBitsPerWord & 1) != 0;
  }

 private:
  Shared<uint32_t> words_;
};

// Words for distances of up to n_keys + the rows of a block.
constexpr int BandSetWords(int64_t n_keys) {
  constexpr int64_t kMostRows = 128;
  return static_cast<int>((n_keys + kMostRows) / kBandWidth / BandSet::kBitsPerWord + 1);
}

// The bands of the block's head; none of a head of another kind. Called by all kThreads threads.
template <int kThreads>
LH_DEVICE BandSet BandsOfBlock(const SparseParams& p, const SparseRows& rows, SharedArena& arena) {
  BandSet bands;
  if (p.max_bands > 0 && rows.kind == HeadKind::kSparse) {
    const int n_words = BandSetWords(p.q_begin + p.n_tokens);
    bands = BandSet(arena.Carve<uint32_t>(n_words));
    bands.Fill<kThreads>(p, rows.head, n_words);
  }
  return bands;
}

// How a tile is masked.
enum class TileMask : int32_t {
  kNone,       // every row sees every key
  kDistances,  // by key range and distance
  kBands,      // also by the bands, which have taken some pairs
  kEmpty,      // no tile
};

inline constexpr int kKeysPerLane = kTileKeys / kWarpLanes;  // of the warp that fills slots

// Which key a row of a tile stands for, and where that row lies; for kNoKey, nowhere.
struct RowSource {
  Global<const uint8_t> from;
  int32_t key;

  LH_DEVICE bool exists() const { return key != kNoKey; }
};

// In fp8, from a key's row of D bytes to the 16 scales of which its own is number key % 16.
template <int kHeadDim>
LH_DEVICE int ScalesFromRow(int key) {
  const int in_page = key % kTileKeys;
  return (kTileKeys - in_page) * kHeadDim + in_page / 16 * 16;
}

// What the block knows of the tiles that are loaded and used: a ring of kSlots, a power of two. The
// walk itself also lies in shared memory: in registers, which scores and output fill, it made the
// compiler spill.
template <int kSlots>
class TileSlots {
 public:
  static constexpr int kBytes =
      CarvedBytes<int64_t>(kSlots * kTileKeys) + 2 * CarvedBytes<int32_t>(kSlots * kTileKeys) +
      CarvedBytes<SparseTile>(kSlots) + CarvedBytes<int64_t>(kSlots) +
      CarvedBytes<int32_t>(kSlots) + CarvedBytes<TileWalk>(1) + CarvedBytes<SparseRows>(1);

  LH_DEVICE explicit TileSlots(SharedArena& arena)
      : offset_(arena.Carve<int64_t>(kSlots * kTileKeys)),
        key_(arena.Carve<int32_t>(kSlots * kTileKeys)),
        taken_(arena.Carve<uint32_t>(kSlots * kTileKeys)),
        tile_(arena.Carve<SparseTile>(kSlots)),
        values_(arena.Carve<int64_t>(kSlots)),
        mask_(arena.Carve<int32_t>(kSlots)),
        walk_(arena.Carve<TileWalk>(1)),
        rows_(arena.Carve<SparseRows>(1)) {}

  // Called by one warp, before it fills slots with the tiles of a chunk of keys.
  LH_DEVICE void Start(const SparseParams& p, const SparseRows& rows, int chunk = 0) {
    const TileWalk walk(p, rows, chunk);
    if (LaneId() == 0) {
      walk_[0] = walk;
      rows_[0] = rows;
    }
    SyncWarp();
  }

  // Two steps, so that the list of stripes, which the first one reads, is on its way while the warp
  // computes. Both are called by the warp of Start, in turn for tiles 0, 1, 2, ...; `keys` are
  // the lane's own two.
  LH_DEVICE void BeginFill(const SparseParams& p, int n, int (&keys)[kKeysPerLane]) {
    const int slot = n & (kSlots - 1);
    const SparseRows rows = rows_[0];
    TileWalk walk = walk_[0];
    SparseTile tile = {};
    const bool exists = walk.Next(p, rows, tile);
    LH_UNROLL
    for (int i = 0; i < kKeysPerLane; ++i) {
      const int index = tile.first + i * kWarpLanes + LaneId();
      keys[i] = exists ? KeyAt(p, rows, tile, walk.stripe_keys_end(), index) : kNoKey;
    }
    SyncWarp();  // all lanes have read the walk
    if (LaneId() != 0) return;
    walk_[0] = walk;
    tile_[slot] = tile;
    mask_[slot] = static_cast<int32_t>(exists ? TileMask::kDistances : TileMask::kEmpty);
  }
  template <class T, int kHeadDim>
  LH_DEVICE void FinishFill(const SparseParams& p, const BandSet& bands, int n,
                            const int (&keys)[kKeysPerLane]) {
    constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
    SyncWarp();  // lane 0 has stored the tile
    const int slot = n & (kSlots - 1);
    const SparseRows rows = rows_[0];
    const SparseTile tile = tile_[slot];
    const bool is_copied = tile.is_stripes != 0 && rows.copied_values > 0;
    const bool check_bands = tile.is_stripes != 0 && rows.n_bands > 0;
    bool whole = true;
    uint32_t all_taken = 0;
    LH_UNROLL
    for (int i = 0; i < kKeysPerLane; ++i) {
      const int key = keys[i];
      const int at = i * kWarpLanes + LaneId();
      int64_t offset = 0;
      if (is_copied) {
        offset = rows.copies + (tile.first + at) * kRowBytes;
      } else if (key != kNoKey) {
        const int64_t page = p.kv.pages[key / kTileKeys];
        offset = page * p.kv.page_stride + p.kv.layer_offset + rows.kv_head * p.kv.head_stride +
                 key % kTileKeys * kRowBytes;
      }
      offset_[slot * kTileKeys + at] = offset;
      key_[slot * kTileKeys + at] = key;
      whole &= key >= tile.key_min && key < tile.key_end && rows.first - key >= tile.near &&
               rows.last - key < tile.far;
      const uint32_t taken = check_bands && key != kNoKey ? TakenByBands(rows, bands, key) : 0;
      taken_[slot * kTileKeys + at] = taken;
      all_taken |= taken;
    }
    whole = WarpAll(whole);
    const bool crosses_bands = WarpAny(all_taken != 0);
    if (LaneId() != 0) return;
    values_[slot] = is_copied ? rows.copied_values : p.kv.head_stride / 2;
    if (crosses_bands) {
      mask_[slot] = static_cast<int32_t>(TileMask::kBands);
    } else if (whole) {
      mask_[slot] = static_cast<int32_t>(TileMask::kNone);
    }
  }

  LH_DEVICE SparseRows rows() const { return rows_[0]; }
  LH_DEVICE TileMask mask(int n) const {
    const int32_t mask = mask_[n & (kSlots - 1)];
    return static_cast<TileMask>(mask);
  }

  LH_DEVICE int KeyOf(int n, int row) const { return key_[(n & (kSlots - 1)) * kTileKeys + row]; }
  LH_DEVICE RowSource SourceOf(const SparseParams& p, int n, int row, bool is_values) const {
    const int slot = n & (kSlots - 1);
    const int64_t offset = offset_[slot * kTileKeys + row];
    const int32_t key = key_[slot * kTileKeys + row];
    const int64_t values = is_values ? static_cast<int64_t>(values_[slot]) : 0;
    return {p.kv.pool + (offset + values), key};
  }

  // Copies the keys of tile n, or its values, row by row to a place of the ring; asynchronous, the
  // caller commits. Rows that stand for no key become 0: what is left in memory may be NaN, and
  // 0 * NaN would reach the outputs.
  template <class T, int kHeadDim, int kThreads, class Ring>
  LH_DEVICE void CopyAsync(const SparseParams& p, const Ring& ring, int n, bool is_values) const {
    constexpr int kPieces = kHeadDim * static_cast<int>(sizeof(T)) / 16;  // in a row
    constexpr int kTotal = kTileKeys * kPieces;
    const int slot = n & (kSlots - 1);
    const int to = 2 * n + (is_values ? 1 : 0);
    const int64_t values = is_values ? static_cast<int64_t>(values_[slot]) : 0;
    LH_UNROLL_BY_TWO  // all at once take registers that the scores need
        for (int begin = 0; begin < kTotal; begin += kThreads) {
      const int piece = begin + ThreadId();
      if (kTotal % kThreads != 0 && piece >= kTotal) break;
      const int row = piece / kPieces;
      const int64_t offset = offset_[slot * kTileKeys + row];
      const int32_t key = key_[slot * kTileKeys + row];
      const Global<const uint8_t> from = p.kv.pool + (offset + values + piece % kPieces * 16);
      if constexpr (kIsFp8<T>) {
        CopyAsync16(ring.RawPlace(to) + piece * 16, from, key != kNoKey);
      } else {
        CopyAsync16(ring.BF16Place(to) + (piece * 8 + row * kTilePad), from, key != kNoKey);
      }
    }
    if constexpr (kIsFp8<T>) {
      const int row = ThreadId();
      if (row >= kTileKeys) return;
      const int64_t offset = offset_[slot * kTileKeys + row];
      const int32_t key = key_[slot * kTileKeys + row];
      CopyAsync16(ring.RawPlace(to) + (kTileKeys * kHeadDim + row * 16),
                  p.kv.pool + (offset + values + ScalesFromRow<kHeadDim>(key)), key != kNoKey);
    }
  }

  // In fp8, where among the scales of tile n that of a row is: with those of 16 neighbours.
  struct ScaleOfGathered {
    Shared<int32_t> keys;
    LH_DEVICE int operator()(int row) const { return row * 16 + (keys[row] & 15); }
  };
  LH_DEVICE ScaleOfGathered ScalesOf(int n) const {
    return {key_ + (n & (kSlots - 1)) * kTileKeys};
  }

  // Whether any of n_rows rows of the block, from row `row` on, can see a key of tile n. Rows that
  // do not exist see none; of stripes it is not known.
  LH_DEVICE bool IsSeen(int n, int row, int n_rows) const {
    const SparseRows rows = rows_[0];
    const SparseTile tile = tile_[n & (kSlots - 1)];
    const int first = rows.first + row;
    if (first > rows.last || tile.is_stripes != 0) return first <= rows.last;
    const int last = first + n_rows - 1;
    return last - tile.first >= tile.near && first - (tile.first + kTileKeys - 1) < tile.far;
  }

  // Scores of pairs that do not count become -infinity. `row`: the warp's first in the block;
  // score_at(r, column, e): element e of the fragment of row tile r and of eight columns.
  template <int kRowTiles, class ScoreAt>
  LH_DEVICE void Mask(int n, int row, const ScoreAt& score_at) const {
    const int slot = n & (kSlots - 1);
    const SparseTile tile = tile_[slot];
    const bool by_bands = mask(n) == TileMask::kBands;
    const SparseRows rows = rows_[0];
    const int lane_row = rows.first + row + LaneId() / 4;
    // What bands take: a load per key and no branch per pair. With more rows per warp D = 128 of
    // mma has no registers for that.
    constexpr bool kLoadsPerKey = kRowTiles == 1;
    LH_UNROLL
    for (int column = 0; column < kTileKeys / 8; ++column) {
      LH_UNROLL
      for (int parity = 0; parity < 2; ++parity) {
        const int at = slot * kTileKeys + 8 * column + LaneId() % 4 * 2 + parity;
        const int key = key_[at];
        const bool in_range = key >= tile.key_min && key < tile.key_end;
        uint32_t taken = 0;
        if constexpr (kLoadsPerKey) taken = by_bands ? static_cast<uint32_t>(taken_[at]) : 0;
        LH_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          LH_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int distance = lane_row + 16 * r + 8 * half - key;
            const int band = BandOf(distance) - BandOf(rows.first - key);
            bool counts = in_range && distance >= tile.near && distance < tile.far;
            if constexpr (kLoadsPerKey) {
              counts = counts && (taken >> band & 1) == 0;
            } else if (by_bands && counts) {
              const uint32_t taken_now = taken_[at];
              counts = (taken_now >> band & 1) == 0;
            }
            if (!counts) score_at(r, column, 2 * half + parity) = MinusInfinity();
          }
        }
      }
    }
  }

 private:
  // kNoKey where there is none.
  LH_DEVICE static int KeyAt(const SparseParams& p, const SparseRows& rows, const SparseTile& tile,
                             int stripe_keys_end, int index) {
    if (tile.is_stripes == 0) return index <= rows.last ? index : kNoKey;
    if (index >= stripe_keys_end) return kNoKey;
    const int stripe = p.stripes[rows.head * p.max_stripes + index / p.stripe_width];
    const int key = stripe + index % p.stripe_width;
    return key <= rows.last ? key : kNoKey;
  }

  // Of the bands in which the rows meet the key, those that are kept: bit b for the b-th of at most
  // three. So masks need no look-up per pair, of which tiles of stripes have many.
  LH_DEVICE static uint32_t TakenByBands(const SparseRows& rows, const BandSet& bands, int key) {
    const int first = BandOf(rows.first - key);
    const int last = BandOf(rows.last - key);
    uint32_t taken = 0;
    for (int band = std::max(first, 0); band <= last; ++band) {
      if (bands.Has(band)) taken |= 1u << (band - first);
    }
    return taken;
  }
  // Rounds down, for keys behind the row too.
  LH_DEVICE static int BandOf(int distance) {
    static_assert(kBandWidth == 64);
    return distance >> 6;
  }

  Shared<int64_t> offset_;   // [kSlots, 64] of the key's row, from the pool, in bytes
  Shared<int32_t> key_;      // [kSlots, 64]
  Shared<uint32_t> taken_;   // [kSlots, 64] bands, see TakenByBands
  Shared<SparseTile> tile_;  // [kSlots]
  Shared<int64_t> values_;   // [kSlots] from a key's row to its value's
  Shared<int32_t> mask_;     // [kSlots] TileMask
  Shared<TileWalk> walk_;    // [1]
  Shared<SparseRows> rows_;  // [1]
};

}  // namespace longhaul::cuda
