// How keys and values come from the pages of the KV cache into shared memory, where a tile is bf16
// (attention_tiles.cuh) whatever the pages hold. Device code only.
//
// bf16 is copied into the tile itself. fp8 is copied as it is, into a place of its own beside the
// scales of its rows, and becomes a tile when it has arrived and is needed; the numbers are exact
// (kernels/base/fp8.h). Once per block: converting in registers, after ldmatrix, needs no tile and
// no second barrier, but each of the four warps would convert all of it.
#pragma once

#include <type_traits>

#include "kernels/base/fp8.h"
#include "kernels/cuda/attention_tiles.cuh"

namespace longhaul::cuda {

// Elements of the pages: BF16 or F8E4M3.
template <class T>
inline constexpr bool kIsFp8 = std::is_same_v<T, F8E4M3>;

// Keys and values of one sequence at one layer; strides in bytes.
struct PagedKv {
  Global<const uint8_t> pool;
  Global<const int32_t> pages;
  int64_t page_stride = 0;
  int64_t head_stride = 0;  // V follows K after half of it
  int64_t layer_offset = 0;

  // The [64, D] of page number `page` (an id, not an index into pages), and in fp8 its [64] scales.
  LH_DEVICE Global<const uint8_t> Keys(int page, int kv_head) const {
    return pool + (page * page_stride + layer_offset + kv_head * head_stride);
  }
  LH_DEVICE Global<const uint8_t> Values(int page, int kv_head) const {
    return Keys(page, kv_head) + head_stride / 2;
  }
};

inline PagedKv MakePagedKv(const KvView& kv) {
  return {.pool = reinterpret_cast<const uint8_t*>(kv.pool),
          .pages = kv.pages,
          .page_stride = kv.page_stride_bytes,
          .head_stride = kv.head_stride_bytes,
          .layer_offset = kv.layer_offset_bytes};
}

// ---- bf16: straight into the tile ----

// Copies rows [0, n_valid) of a contiguous [kRows, D] block into a tile and clears the others: what
// lies behind the last token of a page may be NaN, and 0 * NaN would reach every output. Called by
// kThreads threads, `thread` of [0, kThreads); asynchronous, the caller commits.
template <int kHeadDim, int kRows, int kThreads>
LH_DEVICE void CopyTileAsync(Shared<BF16> tile, Global<const uint8_t> from, int n_valid,
                             int thread) {
  constexpr int kPieces = kHeadDim / 8;  // of 16 bytes, in a row
  constexpr int kTotal = kRows * kPieces;
  LH_UNROLL
  for (int begin = 0; begin < kTotal; begin += kThreads) {
    const int piece = begin + thread;
    if (kTotal % kThreads != 0 && piece >= kTotal) break;
    const int row = piece / kPieces;
    const bool valid = row < n_valid;
    CopyAsync16(tile + (piece * 8 + row * kTilePad), valid ? from + piece * 16 : from, valid);
  }
}

// ---- fp8: into a raw place, and from there into a tile ----

// A raw place: [kRows, D] bytes, then the scales, kScaleBytes per row. Rows of one page have theirs
// side by side (1); a row gathered from anywhere comes with the 16 scales of its own and its
// neighbours', as that is the least that is copied.
template <int kHeadDim, int kScaleBytes>
LH_HOST_DEVICE constexpr int RawBytes(int n_rows) {
  return n_rows * (kHeadDim + kScaleBytes);
}

// As CopyTileAsync. `scales`: of the first row; a multiple of 16 bytes from the block's.
template <int kHeadDim, int kRows, int kThreads>
LH_DEVICE void CopyRawAsync(Shared<uint8_t> raw, Global<const uint8_t> from,
                            Global<const uint8_t> scales, int n_valid, int thread) {
  constexpr int kPieces = kHeadDim / 16;
  constexpr int kTotal = kRows * kPieces;
  LH_UNROLL_BY_TWO
  for (int begin = 0; begin < kTotal; begin += kThreads) {
    const int piece = begin + thread;
    if (kTotal % kThreads != 0 && piece >= kTotal) break;
    const bool valid = piece / kPieces < n_valid;
    CopyAsync16(raw + piece * 16, valid ? from + piece * 16 : from, valid);
  }
  if (thread < kRows / 16)
    CopyAsync16(raw + (kRows * kHeadDim + thread * 16), scales + thread * 16);
}

// Tile row r from raw row r, whose scale is byte scale_of(r) of the scales. Rows that were cleared
// stay 0 under any scale. Called by kThreads threads, with a barrier before and after.
template <int kHeadDim, int kRows, int kThreads, class ScaleOf>
LH_DEVICE void ConvertRaw(Shared<BF16> tile, Shared<uint8_t> raw, int thread,
                          const ScaleOf& scale_of) {
  constexpr int kPieces = kHeadDim / 8;  // of 8 bytes, that become 16: no bank conflicts
  constexpr int kTotal = kRows * kPieces;
  LH_UNROLL_BY_TWO
  for (int begin = 0; begin < kTotal; begin += kThreads) {
    const int piece = begin + thread;
    if (kTotal % kThreads != 0 && piece >= kTotal) break;
    const int row = piece / kPieces;
    const uint8_t scale = raw[kRows * kHeadDim + scale_of(row)];
    const U32x2 bytes = LoadVec<U32x2>(raw + piece * 8);
    StoreVec(tile + (piece * 8 + row * kTilePad), WidenFp8x8(bytes, scale));
  }
}

// Rows of one page.
struct ScaleOfRow {
  LH_DEVICE int operator()(int row) const { return row; }
};

// ---- The ring of a block ----

// The pieces of a walk, each the keys or the values of a tile, on their way into shared memory in
// order. Piece i is copied to Place(i), one group of copies each; Wait(i) makes it Tile(i), which
// stays until the next Wait. NAhead() pieces may be under way: after Wait(i), piece i + NAhead().
//
// bf16 has 2 or 4 places, as shared memory allows. fp8 has 2: the tile is elsewhere, so both may be
// filled while it is used, and half of the bytes take half of the time; a number that is not known
// when the kernel is compiled made D = 128 spill.
template <class T, int kHeadDim, int kThreads, int kScaleBytes = 1>
class TileRing {
 public:
  static constexpr int kTileElements = TileElements<kHeadDim>(kTileKeys);
  // Bytes to carve.
  LH_HOST_DEVICE static constexpr int Bytes(int n_places) {
    constexpr int kTileBytes = CarvedBytes<BF16>(kTileElements);
    if (!kIsFp8<T>) return n_places * kTileBytes;
    return kTileBytes + kRawPlaces * RawBytes<kHeadDim, kScaleBytes>(kTileKeys);
  }

  LH_DEVICE TileRing(Shared<uint8_t> memory, int n_places) : memory_(memory), n_places_(n_places) {}

  LH_DEVICE int NAhead() const { return kIsFp8<T> ? kRawPlaces : n_places_ - 1; }

  // bf16: the tile itself; fp8: a raw place.
  LH_DEVICE Shared<BF16> BF16Place(int piece) const {
    return Cast<BF16>(memory_) + (piece & (n_places_ - 1)) * kTileElements;
  }
  LH_DEVICE Shared<uint8_t> RawPlace(int piece) const {
    return memory_ + (CarvedBytes<BF16>(kTileElements) +
                      (piece & (kRawPlaces - 1)) * RawBytes<kHeadDim, kScaleBytes>(kTileKeys));
  }
  // The keys, or the values, of a page; the caller commits.
  LH_DEVICE void CopyPage(int piece, Global<const uint8_t> from, int n_valid) const {
    if constexpr (kIsFp8<T>) {
      CopyRawAsync<kHeadDim, kTileKeys, kThreads>(RawPlace(piece), from,
                                                  from + kTileKeys * kHeadDim, n_valid, ThreadId());
    } else {
      CopyTileAsync<kHeadDim, kTileKeys, kThreads>(BF16Place(piece), from, n_valid, ThreadId());
    }
  }

  // In all threads, for the oldest piece under way. Nobody uses the tile before it any more.
  template <class ScaleOf = ScaleOfRow>
  LH_DEVICE void Wait(int piece, const ScaleOf& scale_of = {}) const {
    if constexpr (kIsFp8<T>) {
      CopyAsyncWait<kRawPlaces - 1>();
    } else if (n_places_ == 2) {
      CopyAsyncWait<0>();
    } else {
      CopyAsyncWait<2>();
    }
    SyncThreads();
    if constexpr (kIsFp8<T>) {
      ConvertRaw<kHeadDim, kTileKeys, kThreads>(Tile(piece), RawPlace(piece), ThreadId(), scale_of);
      SyncThreads();
    }
  }

  LH_DEVICE Shared<BF16> Tile(int piece) const {
    return kIsFp8<T> ? Cast<BF16>(memory_) : BF16Place(piece);
  }

 private:
  static constexpr int kRawPlaces = 2;

  Shared<uint8_t> memory_;
  int n_places_;
};

}  // namespace longhaul::cuda
