#include "kernels/cuda/attention_dense.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cuda/dense_rows.cuh"
#include "kernels/cuda/dual_chunk.cuh"
#include "kernels/cuda/head_dim.h"
#include "kernels/cuda/kv_tiles.cuh"
#include "kernels/cuda/launch.h"

namespace longhaul::cuda {
namespace {

// 4 warps of 32 rows each: with 16 rows a warp would read as many bytes of shared memory as the
// tensor cores of an sm_80 take, and wait for them. 32 rows need 192 registers for scores and
// output at D = 128, which two blocks per multiprocessor leave room for.
constexpr int kThreads = 128;
constexpr int kRowTiles = 2;
constexpr int kWarpRows = 16 * kRowTiles;
constexpr int kBlockRows = kThreads / kWarpLanes * kWarpRows;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kMinSplitTiles = 16;  // below that a block's start and the merge cost more than it

struct DenseParams : DenseRows {
  QueryForms queries = {};
  PagedKv kv = {};
  Partials partials = {};  // [n_splits, n_items, kBlockRows]
  int32_t n_splits = 1;
  int32_t n_places = 2;  // of the ring: 2 or 4
};

struct DenseItem {
  int head_block;
  int row_tile;
  int split;
};

// Section after section of heads, so that blocks that run together read the same keys; in a section
// the last rows first, as they see the most keys.
LH_DEVICE DenseItem ItemOfBlock(const DenseParams& p, int block) {
  const int per_section = p.section_blocks * p.n_row_tiles * p.n_splits;
  const int section_begin = block / per_section * p.section_blocks;
  const int n_blocks = MinOf(p.section_blocks, p.n_head_blocks - section_begin);
  int rest = block % per_section;
  DenseItem item;
  item.split = rest % p.n_splits;
  rest /= p.n_splits;
  item.head_block = section_begin + rest % n_blocks;
  item.row_tile = p.n_row_tiles - 1 - rest / n_blocks;
  return item;
}

LH_DEVICE bool IsMasked(const DenseParams& p, int head_block) {
  if (!p.head_mask) return false;
  const uint8_t wanted = p.head_mask[head_block * p.pack];
  return wanted == 0;
}

// The keys [begin, end) that a packed row sees.
struct alignas(8) Visible {
  int begin;
  int end;
};
LH_DEVICE Visible VisibleKeys(const DenseParams& p, int row) {
  const int position = p.q_begin + row / p.pack;
  return {MaxOf(p.key_begin, position - p.window + 1), MinOf(p.key_end, position + 1)};
}

// The tiles [begin, end) of one head on their way into shared memory: piece 2 i of the ring are the
// keys of tile i, piece 2 i + 1 its values.
template <class T, int kHeadDim>
class TilePipeline {
 public:
  using Ring = TileRing<T, kHeadDim, kThreads>;

  LH_DEVICE TilePipeline(const DenseParams& p, Shared<uint8_t> memory, int kv_head, int begin,
                         int end)
      : p_(p), ring_(memory, p.n_places), kv_head_(kv_head), end_(end) {
    if (begin < end) next_page_ = p.kv.pages[begin];
    for (int piece = 2 * begin; piece < 2 * begin + ring_.NAhead(); ++piece) Copy(piece);
  }

  // In all threads; the tile stays until the next wait. A piece further on is copied meanwhile.
  LH_DEVICE Shared<BF16> WaitForKeys(int tile) { return Wait(2 * tile); }
  LH_DEVICE Shared<BF16> WaitForValues(int tile) { return Wait(2 * tile + 1); }

 private:
  LH_DEVICE Shared<BF16> Wait(int piece) {
    ring_.Wait(piece);
    Copy(piece + ring_.NAhead());
    return ring_.Tile(piece);
  }

  // Pieces in order; nothing behind the end. The page id is read one tile ahead, so that no copy
  // waits for it.
  LH_DEVICE void Copy(int piece) {
    const int tile = piece / 2;
    if (tile < end_) {
      const int n_valid = p_.key_end - tile * kTileKeys;
      if (piece % 2 == 0) {
        page_ = next_page_;
        if (tile + 1 < end_) next_page_ = p_.kv.pages[tile + 1];
        ring_.CopyPage(piece, p_.kv.Keys(page_, kv_head_), n_valid);
      } else {
        ring_.CopyPage(piece, p_.kv.Values(page_, kv_head_), n_valid);
      }
    }
    CopyAsyncCommit();
  }

  const DenseParams& p_;
  Ring ring_;
  int kv_head_;
  int end_;
  int page_ = 0;
  int next_page_ = 0;
};

// In the form for keys of `key_chunk`.
template <int kHeadDim>
LH_DEVICE void CopyQueriesAsync(const DenseParams& p, Shared<BF16> tile, const DenseItem& item,
                                int key_chunk) {
  constexpr int kPieces = kHeadDim / 8;
  for (int piece = ThreadId(); piece < kBlockRows * kPieces; piece += kThreads) {
    const int row = item.row_tile * kBlockRows + piece / kPieces;
    const bool valid = row < p.n_rows;
    Global<const BF16> from = p.q;
    if (valid) {
      const int token = row / p.pack;
      const int head = item.head_block * p.pack + row % p.pack;
      from = p.queries.Row(token, p.q_begin + token, key_chunk) +
             (head * kHeadDim + piece % kPieces * 8);
    }
    CopyAsync16(tile + (piece * 8 + piece / kPieces * kTilePad), from, valid);
  }
}

// Scores of keys that a row does not see become -infinity. `visible`: of the warp's rows.
LH_DEVICE void MaskScores(float (&scores)[kRowTiles][kTileKeys / 8][4], Shared<Visible> visible,
                          int first_key) {
  const int lane = LaneId();
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Visible keys = visible[16 * r + 8 * half + lane / 4];
      const int begin = keys.begin - first_key - lane % 4 * 2;
      const int end = keys.end - first_key - lane % 4 * 2;
      LH_UNROLL
      for (int n = 0; n < kTileKeys / 8; ++n) {
        LH_UNROLL
        for (int parity = 0; parity < 2; ++parity) {
          const int column = 8 * n + parity;
          if (column < begin || column >= end) {
            scores[r][n][2 * half + parity] = MinusInfinity();
          }
        }
      }
    }
  }
}

template <int kHeadDim>
LH_DEVICE void WriteRows(const DenseParams& p, const DenseItem& item, int first_row,
                         const SoftmaxState<kHeadDim, kRowTiles>& state) {
  const int lane = LaneId();
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      float inverse;
      float lse_log2;
      state.Finish(r, half, p.scale_log2, inverse, lse_log2);
      const int row = first_row + 16 * r + 8 * half + lane / 4;
      if (row >= p.n_rows) continue;
      const int64_t token = row / p.pack;
      const int head = item.head_block * p.pack + row % p.pack;
      const int64_t part = (int64_t{item.split} * p.n_head_blocks * p.n_row_tiles +
                            int64_t{item.head_block} * p.n_row_tiles + item.row_tile) *
                               kBlockRows +
                           row % kBlockRows;
      LH_UNROLL
      for (int d = 0; d < kHeadDim / 8; ++d) {
        const int column = 8 * d + lane % 4 * 2;
        const float low = state.output[r][d][2 * half] * inverse;
        const float high = state.output[r][d][2 * half + 1] * inverse;
        if (p.n_splits == 1) {
          StoreVec(p.out + (token * p.out_stride + head * kHeadDim + column), PackBf16(low, high));
        } else {
          StoreVec(p.partials.output + (part * kHeadDim + column), F32x2{{low, high}});
        }
      }
      if (lane % 4 != 0) continue;
      if (p.n_splits > 1) {
        p.partials.lse[part] = lse_log2;
      } else if (p.lse) {
        p.lse[token * p.lse_stride + head] = lse_log2 * kLn2;
      }
    }
  }
}

template <class T, int kHeadDim>
LH_KERNEL(kThreads, kBlocksPerMultiprocessor)
DenseKernel(const DenseParams p) {
  using Tiles = TilePipeline<T, kHeadDim>;
  const DenseItem item = ItemOfBlock(p, BlockX());
  if (IsMasked(p, item.head_block)) return;
  SharedArena arena;
  const Shared<BF16> q_tile = arena.Carve<BF16>(TileElements<kHeadDim>(kBlockRows));
  const Shared<uint8_t> ring = arena.Carve<uint8_t>(Tiles::Ring::Bytes(p.n_places));
  // Here and not in registers: with a pair more in each lane, D = 128 spills.
  const Shared<Visible> visible = arena.Carve<Visible>(kBlockRows) + WarpId() * kWarpRows;
  const Shared<DenseItem> kept_item = arena.Carve<DenseItem>(1);

  // The tiles of this block: what its first to last row see, and of these its split.
  const int row_begin = item.row_tile * kBlockRows;
  const int row_last = MinOf(row_begin + kBlockRows, p.n_rows) - 1;
  const int first_tile = VisibleKeys(p, row_begin).begin / kTileKeys;
  const int last_tile = (VisibleKeys(p, row_last).end + kTileKeys - 1) / kTileKeys;
  const int per_split = (MaxOf(last_tile - first_tile, 0) + p.n_splits - 1) / p.n_splits;
  const int tile_begin = first_tile + item.split * per_split;
  const int tile_end = MinOf(tile_begin + per_split, last_tile);

  const int kv_head = item.head_block * p.pack / p.group;
  CopyQueriesAsync<kHeadDim>(p, q_tile, item, p.queries.ChunkOfTile(tile_begin));
  Tiles tiles(p, ring, kv_head, tile_begin, tile_end);

  const int first_row = row_begin + WarpId() * kWarpRows;
  const bool has_rows = first_row < p.n_rows;
  const Shared<BF16> warp_q = q_tile + TileElements<kHeadDim>(WarpId() * kWarpRows);
  static_assert(kWarpRows == kWarpLanes);  // one row per lane
  visible[LaneId()] = VisibleKeys(p, MinOf(first_row + LaneId(), p.n_rows - 1));
  if (ThreadId() == 0) kept_item[0] = item;
  SyncThreads();
  SoftmaxState<kHeadDim, kRowTiles> state;
  state.Clear();
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    const int key_begin = tile * kTileKeys;
    const int key_end = key_begin + kTileKeys;
    // A tile that none of the warp's rows see costs it no work; one that all see whole, no mask.
    const Visible keys = visible[LaneId()];
    const bool is_seen = has_rows && WarpAny(key_begin < keys.end && key_end > keys.begin);
    const bool is_whole = WarpAll(key_begin >= keys.begin && key_end <= keys.end);
    uint32_t weights[kRowTiles][kTileKeys / 8][2];
    const Shared<BF16> tile_keys = tiles.WaitForKeys(tile);
    if (is_seen) {
      float scores[kRowTiles][kTileKeys / 8][4];
      ComputeScores<kHeadDim>(scores, warp_q, tile_keys);
      if (!is_whole) MaskScores(scores, visible, key_begin);
      state.Update(scores, weights, p.scale_log2);
    }
    const Shared<BF16> tile_values = tiles.WaitForValues(tile);
    if (is_seen) AddValues<kHeadDim>(state.output, weights, tile_values);
    if (tile + 1 < tile_end && p.queries.IsChunkBegin(tile + 1)) {
      // All warps have their scores of this tile; the next wait shows them the new queries.
      CopyQueriesAsync<kHeadDim>(p, q_tile, kept_item[0], p.queries.ChunkOfTile(tile + 1));
      CopyAsyncCommit();
      CopyAsyncWait<0>();
    }
  }
  CopyAsyncWait<0>();
  if (has_rows) WriteRows<kHeadDim>(p, kept_item[0], first_row, state);
}

// One warp per packed row: the sum of its splits.
template <int kHeadDim>
LH_KERNEL(kThreads, 1)
MergeSplitsKernel(const DenseParams p) {
  const int64_t n_items = int64_t{p.n_head_blocks} * p.n_row_tiles;
  const int64_t index = int64_t{BlockX()} * (kThreads / kWarpLanes) + WarpId();
  const int item = static_cast<int>(index / kBlockRows);
  if (item >= n_items) return;
  const int head_block = item / p.n_row_tiles;
  const int row = item % p.n_row_tiles * kBlockRows + static_cast<int>(index % kBlockRows);
  if (row >= p.n_rows || IsMasked(p, head_block)) return;
  const int64_t token = row / p.pack;
  const int head = head_block * p.pack + row % p.pack;
  const auto part = [&](int split) { return split * n_items * kBlockRows + index; };
  const float lse_log2 = MergeRow<kHeadDim>(p.partials, p.n_splits, part,
                                            p.out + (token * p.out_stride + head * kHeadDim));
  if (p.lse && LaneId() == 0) p.lse[token * p.lse_stride + head] = lse_log2 * kLn2;
}

int64_t MaxSplitBlocks(const DeviceLimits& limits) {
  return int64_t{kBlocksPerMultiprocessor} * limits.n_multiprocessors;
}

template <class T, int kHeadDim>
cudaError_t LaunchDense(DenseParams p, const DeviceLimits& limits, cudaStream_t stream) {
  constexpr int kFixedBytes = CarvedBytes<BF16>(TileElements<kHeadDim>(kBlockRows)) +
                              CarvedBytes<Visible>(kBlockRows) + CarvedBytes<DenseItem>(1);
  using Ring = typename TilePipeline<T, kHeadDim>::Ring;
  const int share_bytes = limits.shared_bytes / kBlocksPerMultiprocessor - kReservedSharedBytes;
  p.n_places = kFixedBytes + Ring::Bytes(4) <= share_bytes ? 4 : 2;
  const int n_items = p.n_head_blocks * p.n_row_tiles;
  const cudaError_t error = Launch({.name = "attend dense",
                                    .grid = dim3(static_cast<unsigned>(n_items * p.n_splits)),
                                    .block = kThreads,
                                    .smem_bytes = kFixedBytes + Ring::Bytes(p.n_places),
                                    .stream = stream},
                                   DenseKernel<T, kHeadDim>, p);
  if (error != cudaSuccess || p.n_splits == 1) return error;
  const int64_t n_warps = int64_t{n_items} * kBlockRows;
  return Launch({.name = "merge dense",
                 .grid = dim3(static_cast<unsigned>(CeilDiv(n_warps, kThreads / kWarpLanes))),
                 .block = kThreads,
                 .stream = stream},
                MergeSplitsKernel<kHeadDim>, p);
}

}  // namespace

int64_t AttendDenseScratchBytes(const DeviceLimits& limits, int64_t head_dim) {
  return MaxSplitBlocks(limits) * kBlockRows * (head_dim + 1) * int64_t{sizeof(float)};
}

cudaError_t AttendDense(const AttendDenseArgs& args, const KeyRange& keys,
                        const DeviceLimits& limits, std::byte* scratch, cudaStream_t stream) {
  CheckArgs(args, DType::kBF16);
  if (args.q.dim(0) == 0) return cudaSuccess;
  LH_CHECK(IsKvTypeOfKernels(args.kv));

  const int64_t pack = args.head_mask != nullptr ? 1 : args.q.dim(1) / args.kv.n_kv_heads;
  DenseParams p{MakeDenseRows(args, keys, limits, pack, kBlockRows, kTileKeys)};
  p.queries = MakeQueryForms(args.q, args.dual);
  p.kv = MakePagedKv(args.kv);

  // Few rows and many keys: more blocks share the keys of a tile.
  const int64_t n_items = int64_t{p.n_head_blocks} * p.n_row_tiles;
  const int64_t max_splits = std::max<int64_t>(SeenKeys(p) / (kMinSplitTiles * kTileKeys), 1);
  p.n_splits =
      static_cast<int32_t>(std::clamp<int64_t>(MaxSplitBlocks(limits) / n_items, 1, max_splits));
  const int64_t part_rows = n_items * p.n_splits * kBlockRows;
  p.partials.output = reinterpret_cast<float*>(scratch);
  p.partials.lse = reinterpret_cast<float*>(scratch) + part_rows * args.kv.head_dim;

  return WithKv(args.kv, [&]<class T, int kHeadDim>() {
    return LaunchDense<T, kHeadDim>(p, limits, stream);
  });
}

}  // namespace longhaul::cuda
