// How the contexts of a decode batch are cut into equal shares, one per block, whatever their
// lengths; attention_decode.h says why. Device code.
//
// A "pack" is up to 16 query heads of one kv head. A "unit" is one page of one pack of one row;
// units are counted row by row, in a row pack by pack.
#pragma once

#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/dual_chunk.cuh"
#include "kernels/cuda/kv_tiles.cuh"

namespace longhaul::cuda {

inline constexpr int kPackHeads = 16;     // the rows of one mma tile
inline constexpr int kMinSharePages = 4;  // a block's start and the merge cost as much as about 2

struct DecodeParams {
  QueryForms queries;
  Global<BF16> out;
  Global<const KvView> kvs;   // [B]
  PagedKv kv;                 // strides and layer; pool and pages are each row's own
  Global<int32_t> row_begin;  // [B + 1] pages of the rows before
  Partials partials;          // [n_blocks, 2, kPackHeads]: a block's first segment, its last
  int64_t out_stride = 0;
  int32_t n_rows = 0;
  int32_t n_heads = 0;
  int32_t group = 1;
  int32_t packs_per_kv_head = 1;
  int32_t n_packs = 1;
  int32_t window = 0;  // the largest int32 where there is none
  int32_t n_blocks = 0;
  int32_t n_stages = 2;  // of a warp's ring: 2 or 3
  float scale_log2 = 0;
};

LH_DEVICE int RowTokens(const DecodeParams& p, int row) {
  const KvView kv = p.kvs[row];
  return static_cast<int>(kv.n_tokens);
}
LH_DEVICE int FirstKey(const DecodeParams& p, int n_tokens) {
  return MaxOf(n_tokens - p.window, 0);
}

LH_DEVICE int64_t TotalUnits(const DecodeParams& p) {
  const int n_pages = p.row_begin[p.n_rows];
  return int64_t{n_pages} * p.n_packs;
}
LH_DEVICE int64_t UnitsPerBlock(const DecodeParams& p) {
  const int64_t share = (TotalUnits(p) + p.n_blocks - 1) / p.n_blocks;
  return share < kMinSharePages ? kMinSharePages : share;
}

// Consecutive pages of one pack of one row.
struct Segment {
  int row;
  int pack;
  int n_tokens;
  int first_key;
  int page_begin;  // index into the row's pages
  int n_pages;
  bool is_whole;  // all that the row sees
};

LH_DEVICE Segment SegmentAt(const DecodeParams& p, int64_t unit, int64_t end) {
  int low = 0;  // the last row that begins at or before `unit` and is not empty
  int high = p.n_rows - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    const int next_begin = p.row_begin[middle + 1];
    if (int64_t{next_begin} * p.n_packs > unit) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const int begin = p.row_begin[low];
  const int next_begin = p.row_begin[low + 1];
  const int row_pages = next_begin - begin;
  const int64_t in_row = unit - int64_t{begin} * p.n_packs;
  Segment segment;
  segment.row = low;
  segment.pack = static_cast<int>(in_row / row_pages);
  segment.n_tokens = RowTokens(p, low);
  segment.first_key = FirstKey(p, segment.n_tokens);
  const int page = static_cast<int>(in_row % row_pages);
  segment.page_begin = segment.first_key / kTileKeys + page;
  const int64_t n_left = end - unit;
  segment.n_pages = n_left < row_pages - page ? static_cast<int>(n_left) : row_pages - page;
  segment.is_whole = segment.n_pages == row_pages;
  return segment;
}

LH_DEVICE int FirstHead(const DecodeParams& p, int pack) {
  return pack / p.packs_per_kv_head * p.group + pack % p.packs_per_kv_head * kPackHeads;
}
LH_DEVICE int PackSize(const DecodeParams& p, int pack) {
  return MinOf(p.group - pack % p.packs_per_kv_head * kPackHeads, kPackHeads);
}

}  // namespace longhaul::cuda
