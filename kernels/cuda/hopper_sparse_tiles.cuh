// The tiles of the Hopper kernel of sparse attention and how they come into shared memory. Device
// code of hopper_sparse.cu.
//
// A tile of 128 keys is two of the walk of sparse_walk.cuh, wherever their keys lie: 64 of stripes,
// or a page. Two warps gather the rows of keys and two those of values, by 16-byte copies into the
// swizzled places that wgmma reads; the first of them also walks, one tile ahead.
//
// Keys and values have warps of their own, so that neither waits until the other's slot is free. A
// warp waits for its own copies, fences and then arrives; the hardware's arrival for copies would
// come without the fence. That costs nothing: when a slot has become free and is being filled, the
// other one is in use, and there is no third.
#pragma once

#include "kernels/cuda/attention_sparse_tiles.cuh"
#include "kernels/cuda/hopper_consumer.cuh"

namespace longhaul::cuda::hopper {

inline constexpr int kCopyWarps = 2;  // for keys, and as many for values
inline constexpr int kCopyThreads = kCopyWarps * kWarpLanes;

// Named barriers of the warps for keys, and of those for values.
inline constexpr int kRawReady = 5;

// What the block knows of its tiles: a ring that one warp fills and all read.
//
// While keys n are copied, n + 1 is filled. By then all consumers have released keys n - 2, before
// which they have seen values n - 3, so nobody needs to know n - 3 any more: four tiles are in use.
class TileQueue {
 public:
  static constexpr int kTiles = 4;
  using Slots = TileSlots<2 * kTiles>;
  static constexpr int kBytes =
      Slots::kBytes + CarvedBytes<uint32_t>(kTiles) + CarvedBytes<TransactionBarrier>(kTiles);

  LH_DEVICE explicit TileQueue(SharedArena& arena)
      : slots_(arena),
        flags_(arena.Carve<uint32_t>(kTiles)),
        ready_(arena.Carve<TransactionBarrier>(kTiles)) {}

  // By one thread; a barrier makes them known.
  LH_DEVICE void InitBarriers() const {
    for (int i = 0; i < kTiles; ++i) InitTransactions(ready_ + i, 1);
  }

  // By the filling warp, then Fill for tiles 0, 1, 2, ...
  LH_DEVICE void Start(const SparseParams& p, const SparseRows& rows) { slots_.Start(p, rows); }
  template <class T, int kHeadDim>
  LH_DEVICE void Fill(const SparseParams& p, const BandSet& bands, int tile) {
    int keys[2][kKeysPerLane];
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      slots_.BeginFill(p, 2 * tile + half, keys[half]);
      SyncWarp();  // lane 0 has stored how far the walk is
    }
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      slots_.template FinishFill<T, kHeadDim>(p, bands, 2 * tile + half, keys[half]);
    }
    if (LaneId() == 0) flags_[tile % kTiles] = FlagsOf(tile);
    SyncWarp();
    if (LaneId() == 0) ArriveTransactions(ready_ + tile % kTiles);
  }
  // By other warps than that, before they ask for what a tile is.
  LH_DEVICE void Wait(int tile) const {
    WaitTransactions(ready_ + tile % kTiles, tile / kTiles % 2);
  }

  LH_DEVICE bool Has(int tile) const { return Is(tile, kExists); }
  LH_DEVICE bool IsMasked(int tile) const { return Is(tile, kIsMasked); }
  LH_DEVICE const Slots& slots() const { return slots_; }

 private:
  static constexpr uint32_t kExists = 1;
  static constexpr uint32_t kIsMasked = 2;

  LH_DEVICE uint32_t FlagsOf(int tile) const {
    uint32_t flags = 0;
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const TileMask mask = slots_.mask(2 * tile + half);
      if (mask != TileMask::kNone) flags |= kIsMasked;
      if (mask != TileMask::kEmpty) flags |= kExists;
    }
    return flags;
  }
  // The same in all lanes, and the compiler shall know: products hang on it.
  LH_DEVICE bool Is(int tile, uint32_t flag) const {
    const uint32_t flags = flags_[tile % kTiles];
    return (Shuffle(flags, 0) & flag) != 0;
  }

  Slots slots_;
  Shared<uint32_t> flags_;            // [kTiles]
  Shared<TransactionBarrier> ready_;  // [kTiles] whether a tile is filled
};

// The producer warp group. T: the elements of the cache.
//
// Rows in fp8 are gathered as they are, each beside the 16 scales among which its own is, into a
// place of the copying warps, and become bf16 on the way from there into the slot. So the next tile
// is on its way before a slot is free.
template <class T, int kHeadDim>
class Gatherer {
 public:
  static constexpr int kBytes = kIsFp8<T> ? 2 * RawBytes<kHeadDim, 16>(kBlockKeys) : 0;

  // `raw`: kBytes.
  LH_DEVICE Gatherer(const SparseParams& p, const BlockMemory<kHeadDim>& memory, TileQueue& queue,
                     const BandSet& bands, Shared<uint8_t> raw)
      : p_(p),
        memory_(memory),
        queue_(queue),
        bands_(bands),
        raw_(raw + WarpId() / kCopyWarps * (kBytes / 2)),
        walks_(WarpId() == 0) {}

  LH_DEVICE void Run(const SparseRows& rows) {
    if (walks_) {
      queue_.Start(p_, rows);
      queue_.template Fill<T, kHeadDim>(p_, bands_, 0);
    }
    if (WarpId() < kCopyWarps) {
      Copy</*kIsValues=*/false>(memory_.keys);
    } else {
      Copy</*kIsValues=*/true>(memory_.values);
    }
  }

 private:
  template <bool kIsValues>
  LH_DEVICE void Copy(const KvRing<kHeadDim>& ring) {
    const bool walks = !kIsValues && walks_;
    Slot slot;
    for (int tile = 0;; ++tile) {
      if (!walks) queue_.Wait(tile);
      if (!queue_.Has(tile)) return;
      if constexpr (kIsFp8<T>) CopyRaw(tile, kIsValues);
      ring.WaitUntilFree(slot);
      if constexpr (!kIsFp8<T>) CopyRows(ring, slot, tile, kIsValues);
      CopyAsyncCommit();
      if (walks) queue_.template Fill<T, kHeadDim>(p_, bands_, tile + 1);
      CopyAsyncWait<0>();
      if constexpr (kIsFp8<T>) {
        SyncNamed(kRawReady + kIsValues, kCopyThreads);
        Convert(ring, slot, tile);
      }
      FenceProxyAsync();
      SyncWarp();
      ring.Arrive(slot);
      slot.Advance();
      if constexpr (kIsFp8<T>) SyncNamed(kRawReady + kIsValues, kCopyThreads);  // all are converted
    }
  }

  LH_DEVICE RowSource SourceOf(int tile, int row, bool is_values) const {
    return queue_.slots().SourceOf(p_, 2 * tile + row / kTileKeys, row % kTileKeys, is_values);
  }

  // Where eight elements of a row lie, swizzled.
  LH_DEVICE static Shared<BF16> At(const KvRing<kHeadDim>& ring, Slot slot, int row, int column) {
    return ring.Half(slot, column / kSwizzleElements) +
           SwizzledElement(row, column % kSwizzleElements);
  }

  // Rows that stand for no key become 0, as in TileSlots::CopyAsync.
  LH_DEVICE void CopyRows(const KvRing<kHeadDim>& ring, Slot slot, int tile, bool is_values) const {
    constexpr int kPieces = kHeadDim / 8;  // of 16 bytes, in a row
    LH_UNROLL_BY_TWO
    for (int piece = ThreadId() % kCopyThreads; piece < kBlockKeys * kPieces;
         piece += kCopyThreads) {
      const int row = piece / kPieces;
      const int column = piece % kPieces * 8;
      const RowSource source = SourceOf(tile, row, is_values);
      CopyAsync16(At(ring, slot, row, column),
                  source.from + column * static_cast<int>(sizeof(BF16)), source.exists());
    }
  }

  // raw_: [128, D] elements, then [128, 16] scales.
  LH_DEVICE void CopyRaw(int tile, bool is_values) const {
    constexpr int kPieces = kHeadDim / 16;
    LH_UNROLL_BY_TWO
    for (int piece = ThreadId() % kCopyThreads; piece < kBlockKeys * kPieces;
         piece += kCopyThreads) {
      const RowSource source = SourceOf(tile, piece / kPieces, is_values);
      CopyAsync16(raw_ + piece * 16, source.from + piece % kPieces * 16, source.exists());
    }
    for (int row = ThreadId() % kCopyThreads; row < kBlockKeys; row += kCopyThreads) {
      const RowSource source = SourceOf(tile, row, is_values);
      CopyAsync16(raw_ + (kBlockKeys * kHeadDim + row * 16),
                  source.from + ScalesFromRow<kHeadDim>(source.key), source.exists());
    }
  }
  LH_DEVICE void Convert(const KvRing<kHeadDim>& ring, Slot slot, int tile) const {
    constexpr int kPieces = kHeadDim / 8;
    LH_UNROLL_BY_TWO
    for (int piece = ThreadId() % kCopyThreads; piece < kBlockKeys * kPieces;
         piece += kCopyThreads) {
      const int row = piece / kPieces;
      const int key = queue_.slots().KeyOf(2 * tile + row / kTileKeys, row % kTileKeys);
      const uint8_t scale = raw_[kBlockKeys * kHeadDim + row * 16 + (key & 15)];
      const U32x2 bytes = LoadVec<U32x2>(raw_ + piece * 8);
      StoreVec(At(ring, slot, row, piece % kPieces * 8), WidenFp8x8(bytes, scale));
    }
  }

  const SparseParams& p_;
  const BlockMemory<kHeadDim>& memory_;
  TileQueue& queue_;
  const BandSet& bands_;
  const Shared<uint8_t> raw_;  // of the two warps for keys, or of those for values
  const bool walks_;
};

// What a consumer needs to know of its rows and tiles: see Consumer.
class SparseTiles {
 public:
  LH_DEVICE SparseTiles(const SparseParams& p, const SparseRows& rows, const TileQueue& queue,
                        int consumer)
      : p_(p),
        queue_(queue),
        consumer_(consumer),
        head_(rows.head),
        first_row_(rows.first - p.q_begin + consumer * kGroupRows) {}

  LH_DEVICE int n_rows() const { return p_.n_tokens; }
  LH_DEVICE int first_row() const { return first_row_; }
  LH_DEVICE int TokenOf(int row) const { return row; }
  LH_DEVICE int HeadOf(int) const { return head_; }

  LH_DEVICE bool IsEmpty() const { return false; }  // each row sees at least its own key
  LH_DEVICE int first_tile() const { return 0; }
  LH_DEVICE bool Has(int tile) const { return queue_.Has(tile); }
  LH_DEVICE bool IsMasked(int tile) const { return queue_.IsMasked(tile); }
  LH_DEVICE void Mask(int tile, ScoreRegisters& scores) const {
    const int row = consumer_ * kGroupRows + WarpId() % 4 * 16;
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (queue_.slots().mask(2 * tile + half) == TileMask::kNone) continue;
      constexpr int kColumns = kTileKeys / 8;
      queue_.slots().template Mask</*kRowTiles=*/1>(
          2 * tile + half, row, [&](int, int column, int e) -> float& {
            return scores[4 * (half * kColumns + column) + e];
          });
    }
  }

 private:
  const SparseParams& p_;
  const TileQueue& queue_;
  const int consumer_;
  const int head_;
  const int first_row_;
};

}  // namespace longhaul::cuda::hopper
