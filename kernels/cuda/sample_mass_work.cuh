// What a block of pass 2 (sample_mass.cu) works on: its keys, and the voting rows, item by item.
// Device code.
#pragma once

#include <algorithm>

#include "kernels/cuda/dual_chunk.cuh"
#include "kernels/cuda/kv_tiles.cuh"

namespace longhaul::cuda {

inline constexpr int kMassWarps = 4;
inline constexpr int kMassThreads = kMassWarps * kWarpLanes;
inline constexpr int kMassWarpKeys = 32;
inline constexpr int kKeyRowTiles = kMassWarpKeys / 16;
inline constexpr int kMassBlockKeys = kMassWarps * kMassWarpKeys;
inline constexpr int kMassBlockPages = kMassBlockKeys / kTileKeys;
static_assert(kMassBlockPages == 2 && kTileKeys == kBandWidth);
inline constexpr int kItemRows = 64;  // voting rows of one head that are loaded at a time
static_assert(kMassBlockPages * kItemRows == kMassThreads, "one thread per row and page");

struct MassParams {
  QueryForms queries;  // [T, H, D]
  int32_t q_begin = 0;
  PagedKv kv;
  float scale_log2 = 0;
  int32_t sink = 0;            // keys below count for no row
  int32_t reach = 0;           // distances below count for no row
  Global<const int32_t> rows;  // [n_voting]
  int32_t n_voting = 0;
  int32_t group = 0;
  int32_t n_keys = 0;
  int32_t n_pages = 0;
  int32_t kv_head_begin = 0;     // of this round
  int32_t out_begin = 0;         // row of the outputs of its first query head
  Global<const uint8_t> choice;  // [H] or null
  Global<const float> lse;       // [H, R] natural
  int64_t lse_stride = 0;
  Global<float> mass_sum;  // [heads, N]
  Global<float> mass_max;
  Global<float> band_mass;  // [heads, n_pages] or null
  int64_t mass_sum_stride = 0;
  int64_t mass_max_stride = 0;
  int64_t band_mass_stride = 0;
  Global<float> partials;  // [heads of the round, near | far, n_voting, n_pages]
};

LH_DEVICE int64_t PartialAt(const MassParams& p, int head, int far, int row, int page) {
  return ((int64_t{2} * head + far) * p.n_voting + row) * p.n_pages + page;
}

// The pages of a block.
struct MassPages {
  int begin;
  int end;
  LH_DEVICE int first_key() const { return begin * kTileKeys; }
};

LH_HOST_DEVICE int BlocksPerChunk(const MassParams& p) {
  return (std::min(p.queries.chunk_tiles, p.n_pages) + kMassBlockPages - 1) / kMassBlockPages;
}

LH_DEVICE int KeyEnd(const MassParams& p, const MassPages& pages) {
  return std::min(pages.end * kTileKeys, p.n_keys);
}

LH_DEVICE MassPages PagesOfBlock(const MassParams& p) {
  const int chunk = BlockX() / BlocksPerChunk(p);
  MassPages pages;
  pages.begin = chunk * p.queries.chunk_tiles + BlockX() % BlocksPerChunk(p) * kMassBlockPages;
  const int chunk_end = p.queries.FirstKey(chunk + 1) / kTileKeys;
  pages.end = std::min(std::min(pages.begin + kMassBlockPages, chunk_end), p.n_pages);
  return pages;
}

// What a thread needs to know about a voting row.
struct RowInfo {
  float lse_log2;
  uint32_t limit;  // keys [sink, sink + limit) count
  int32_t position;
};

// Up to kItemRows voting rows of one query head of the group.
struct MassItem {
  int32_t head;  // in the group; G: no more
  int32_t first_row;
};

LH_DEVICE bool IsSkipped(const MassParams& p, int kv_head, int head) {
  return p.choice && p.choice[int64_t{kv_head} * p.group + head] == kChosen;
}

// The first item of `head` or of the next one that is not skipped.
LH_DEVICE MassItem FirstItem(const MassParams& p, int kv_head, int head) {
  while (head < p.group && IsSkipped(p, kv_head, head)) ++head;
  return {.head = head, .first_row = 0};
}

LH_DEVICE MassItem NextItem(const MassParams& p, int kv_head, MassItem item) {
  item.first_row += kItemRows;
  return item.first_row < p.n_voting ? item : FirstItem(p, kv_head, item.head + 1);
}

// The queries of an item in the form for keys of `key_chunk`.
template <int kHeadDim>
LH_DEVICE void CopyItemAsync(const MassParams& p, int kv_head, MassItem item, int key_chunk,
                             Shared<BF16> queries, Shared<RowInfo> infos) {
  constexpr int kPieces = kHeadDim / 8;
  const int64_t head = int64_t{kv_head} * p.group + item.head;
  for (int piece = ThreadId(); piece < kItemRows * kPieces; piece += kMassThreads) {
    const int row = piece / kPieces;
    const bool valid = item.first_row + row < p.n_voting;
    Global<const BF16> from = p.queries.own;
    if (valid) {
      const int32_t token = p.rows[item.first_row + row];
      from = p.queries.Row(token, p.q_begin + token, key_chunk) +
             (head * kHeadDim + piece % kPieces * 8);
    }
    CopyAsync16(queries + (piece * 8 + row * kTilePad), from, valid);
  }
  CopyAsyncCommit();
  if (ThreadId() >= kItemRows) return;
  const int row = item.first_row + ThreadId();
  RowInfo info = {.lse_log2 = 0.0f, .limit = 0, .position = 0};
  if (row < p.n_voting) {
    info.position = p.q_begin + p.rows[row];
    info.lse_log2 = p.lse[head * p.lse_stride + row] * kLog2E;
    const int n_counted = info.position - p.reach - p.sink + 1;
    info.limit = static_cast<uint32_t>(std::max(n_counted, 0));
  }
  infos[ThreadId()] = info;
}

}  // namespace longhaul::cuda
