// Which rows and keys a block of the Hopper attention kernel works on, and how tiles of keys and
// values come into its shared memory: one producer thread issues tensor copies, transaction
// barriers say when a slot is full and when it is free again. Device code.
#pragma once

#include "kernels/cuda/dense_rows.cuh"
#include "kernels/cuda/hopper_device.h"

namespace longhaul::cuda::hopper {

inline constexpr int kConsumers = 2;  // warp groups
inline constexpr int kThreads = (1 + kConsumers) * kWarpGroupThreads;
inline constexpr int kGroupRows = 64;  // of one consumer: m of wgmma
inline constexpr int kBlockRows = kConsumers * kGroupRows;
inline constexpr int kBlockKeys = 128;
inline constexpr int kBlockPages = kBlockKeys / static_cast<int>(kPageTokens);
inline constexpr int kStages = 2;
inline constexpr int kMaxSharedBytes = 227 * 1024;

// Scores of 64 rows and a tile of keys, as one of the 128 threads holds them: parts of two rows
// ("half" 0 and 1), lane / 4 and lane / 4 + 8 of its warp's 16. Element e of eight columns is half
// e / 2 % 2.
using ScoreRegisters = WgmmaRegisters<float, kBlockKeys / 2>;

struct HopperParams : DenseRows {
  TensorMap pages = {};      // [page, K and V of each kv head, 64, D]
  TensorMap last_page = {};  // the same with only the tokens of the last page that may be seen
  Global<const int32_t> page_ids = {};
};

// What one block computes: rows [row_begin, row_begin + kBlockRows) of a head block, over the tiles
// [tile_begin, tile_end) of kBlockKeys keys, that any of them sees.
struct Work {
  int head_block;
  int row_begin;
  int tile_begin;
  int tile_end;
};

struct Visible {
  int begin;
  int end;
};
LH_DEVICE Visible VisibleKeys(const HopperParams& p, int row) {
  const int position = p.q_begin + MinOf(row, p.n_rows - 1) / p.pack;
  return {MaxOf(p.key_begin, position - p.window + 1), MinOf(p.key_end, position + 1)};
}

// Section after section of heads, in a section the last rows first, as they see the most keys.
LH_DEVICE Work WorkOfBlock(const HopperParams& p) {
  const int per_section = p.section_blocks * p.n_row_tiles;
  const int section_begin = BlockX() / per_section * p.section_blocks;
  const int n_blocks = MinOf(p.section_blocks, p.n_head_blocks - section_begin);
  const int rest = BlockX() % per_section;
  Work work;
  work.head_block = section_begin + rest % n_blocks;
  work.row_begin = (p.n_row_tiles - 1 - rest / n_blocks) * kBlockRows;
  work.tile_begin = VisibleKeys(p, work.row_begin).begin / kBlockKeys;
  const int end = VisibleKeys(p, work.row_begin + kBlockRows - 1).end;
  work.tile_end = MaxOf((end + kBlockKeys - 1) / kBlockKeys, work.tile_begin);
  return work;
}

// A place in the ring of tiles; the parity of its phase flips with each turn.
struct Slot {
  int index = 0;
  int parity = 0;

  LH_DEVICE void Advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

// Tiles of keys or of values in shared memory. A tile is [D / 64][128 keys][64] bf16, swizzled.
template <int kHeadDim>
class KvRing {
 public:
  static constexpr int kHalves = kHeadDim / kSwizzleElements;
  static constexpr int kHalfElements = kBlockKeys * kSwizzleElements;
  static constexpr int kElements = kHalves * kHalfElements;
  static constexpr int kTileBytes = kElements * static_cast<int>(sizeof(BF16));

  LH_DEVICE explicit KvRing(SharedArena& arena)
      : tiles_(arena.Carve<BF16>(kStages * kElements, 1024)) {}
  LH_DEVICE void CarveBarriers(SharedArena& arena) {
    barriers_ = arena.Carve<TransactionBarrier>(2 * kStages, 8);
  }

  LH_DEVICE void InitBarriers(int n_full_arrivals) const {
    for (int stage = 0; stage < kStages; ++stage) {
      InitTransactions(Full(stage), n_full_arrivals);
      InitTransactions(Empty(stage), kConsumers * kWarpGroupThreads / kWarpLanes);
    }
  }

  // The columns [64 half, 64 half + 64) of the tile.
  LH_DEVICE Shared<BF16> Half(Slot slot, int half) const {
    return tiles_ + (slot.index * kElements + half * kHalfElements);
  }

  // By one thread: fills the slot as soon as its last tile has been released. `kv` is 2 times the
  // kv head, plus 1 for its values; pages[i] is -1 behind the last page, which gives zeros.
  LH_DEVICE void Fill(const HopperParams& p, Slot slot, int kv, const int (&pages)[kBlockPages],
                      const bool (&is_last)[kBlockPages]) const {
    WaitUntilFree(slot);
    ArriveExpectingBytes(Full(slot.index), kTileBytes);
    LH_UNROLL
    for (int i = 0; i < kBlockPages; ++i) {
      const bool is_page = pages[i] >= 0;
      const TensorMap& map = is_page && !is_last[i] ? p.pages : p.last_page;
      const int token = is_page ? 0 : static_cast<int>(kPageTokens);  // outside: all zeros
      const int page = is_page ? pages[i] : 0;
      LH_UNROLL
      for (int half = 0; half < kHalves; ++half) {
        CopyTensorBox(Half(slot, half) + i * (static_cast<int>(kPageTokens) * kSwizzleElements),
                      map, {half * kSwizzleElements, token, kv, page}, Full(slot.index));
      }
    }
  }
  // For those who fill slots by other means: a slot is free when its last tile has been released,
  // and full when all lanes of the warps that fill it have made the last of their arrivals.
  LH_DEVICE void WaitUntilFree(Slot slot) const {
    WaitTransactions(Empty(slot.index), slot.parity ^ 1);
  }
  LH_DEVICE void Arrive(Slot slot) const {
    if (LaneId() == 0) ArriveTransactions(Full(slot.index));
  }

  LH_DEVICE void Wait(Slot slot) const { WaitTransactions(Full(slot.index), slot.parity); }
  // By all lanes of a consumer warp whose products with the tile are done.
  LH_DEVICE void Release(Slot slot) const {
    if (LaneId() == 0) ArriveTransactions(Empty(slot.index));
  }

 private:
  LH_DEVICE Shared<TransactionBarrier> Full(int stage) const { return barriers_ + stage; }
  LH_DEVICE Shared<TransactionBarrier> Empty(int stage) const {
    return barriers_ + (kStages + stage);
  }

  Shared<BF16> tiles_;
  Shared<TransactionBarrier> barriers_;
};

// The producer: one thread. Page ids are read one tile ahead, so that no copy waits for them.
template <int kHeadDim>
LH_DEVICE void Produce(const HopperParams& p, const Work& work, const KvRing<kHeadDim>& keys,
                       const KvRing<kHeadDim>& values) {
  const int n_pages =
      (p.key_end + static_cast<int>(kPageTokens) - 1) / static_cast<int>(kPageTokens);
  const int kv = work.head_block * p.pack / p.group * 2;
  int next[kBlockPages];
  LH_UNROLL
  for (int i = 0; i < kBlockPages; ++i) {
    const int page = work.tile_begin * kBlockPages + i;
    next[i] = page < n_pages ? p.page_ids[page] : -1;
  }
  Slot slot;
  for (int tile = work.tile_begin; tile < work.tile_end; ++tile) {
    int pages[kBlockPages];
    bool is_last[kBlockPages];
    LH_UNROLL
    for (int i = 0; i < kBlockPages; ++i) {
      pages[i] = next[i];
      is_last[i] = tile * kBlockPages + i == n_pages - 1;
      const int page = (tile + 1) * kBlockPages + i;
      next[i] = page < n_pages ? p.page_ids[page] : -1;
    }
    keys.Fill(p, slot, kv, pages, is_last);
    values.Fill(p, slot, kv + 1, pages, is_last);
    slot.Advance();
  }
}

}  // namespace longhaul::cuda::hopper
