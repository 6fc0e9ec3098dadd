// Pass 1: log-sum-exp of the sampled rows, over all keys and over the local ones.
//
// The R sampled rows of the G query heads of a kv head make up a matrix of R * G rows, so that a
// key tile is loaded once for all of them. A block takes kBlockRows of these and a chunk of the
// keys; the merge adds the chunks in their order. Chunks depend on the number of keys alone, so
// that the result does not depend on the device.
#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/cuda/dual_chunk.cuh"
#include "kernels/cuda/head_dim.h"
#include "kernels/cuda/kv_tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample_passes.h"

namespace longhaul::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kRowTiles = 2;  // of 16 rows, per warp
constexpr int kWarpRows = 16 * kRowTiles;
constexpr int kBlockRows = kWarps * kWarpRows;
constexpr int kKeyTiles = kTileKeys / 8;
constexpr int kPlaces = 2;  // of the ring of key tiles
constexpr int64_t kMostChunks = 128;
constexpr int64_t kLeastChunkTiles = 8;

struct LseParams {
  QueryForms queries;  // [T, H, D]
  int32_t q_begin = 0;
  PagedKv kv;
  float scale_log2 = 0;
  int32_t sink = 0;
  int32_t window = 0;
  Global<const int32_t> rows;  // [R]
  int32_t n_rows = 0;
  int32_t group = 0;
  int32_t n_heads = 0;
  int32_t n_keys = 0;
  int32_t n_chunks = 0;
  int32_t chunk_tiles = 0;
  Global<float> partials;  // [n_chunks, full | local, H, R] log2
  Global<float> lse_full;  // [H, R]
  Global<float> lse_local;
  int64_t lse_full_stride = 0;
  int64_t lse_local_stride = 0;
};

// Sum of 2^(scale * score) over the columns of one lane, relative to their maximum.
struct LaneLse {
  float max = MinusInfinity();  // of the raw scores
  float sum = 0.0f;

  template <class Visible>
  LH_DEVICE void Add(const float (&scores)[kKeyTiles][4], int half, float scale_log2,
                     const Visible& visible) {
    float new_max = max;
    LH_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      LH_UNROLL
      for (int parity = 0; parity < 2; ++parity) {
        if (visible(8 * n + parity)) new_max = fmaxf(new_max, scores[n][2 * half + parity]);
      }
    }
    if (new_max == MinusInfinity()) return;
    const float shift = new_max * scale_log2;
    sum *= Exp2Approx(max * scale_log2 - shift);
    max = new_max;
    LH_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      LH_UNROLL
      for (int parity = 0; parity < 2; ++parity) {
        const float weight = Exp2Approx(fmaf(scores[n][2 * half + parity], scale_log2, -shift));
        if (visible(8 * n + parity)) sum += weight;
      }
    }
  }

  // Over the four lanes of the row; log2.
  LH_DEVICE float Total(float scale_log2) const {
    const float row_max = RowMax(max);
    const float shift = row_max == MinusInfinity() ? 0.0f : row_max;
    const float row_sum = RowSum(sum * Exp2Approx((max - shift) * scale_log2));
    return row_sum > 0.0f ? row_max * scale_log2 + Log2Approx(row_sum) : MinusInfinity();
  }
};

// The block's queries in the form for keys of `key_chunk`; packed row i is sampled row i / G of
// head i % G of the group.
template <int kHeadDim>
LH_DEVICE void CopyQueriesAsync(const LseParams& p, Shared<BF16> queries, int key_chunk) {
  constexpr int kPieces = kHeadDim / 8;
  for (int piece = ThreadId(); piece < kBlockRows * kPieces; piece += kThreads) {
    const int row = piece / kPieces;
    const int packed = BlockX() * kBlockRows + row;
    const bool valid = packed < p.n_rows * p.group;
    Global<const BF16> from = p.queries.own;
    if (valid) {
      const int32_t token = p.rows[packed / p.group];
      const int head = BlockZ() * p.group + packed % p.group;
      from = p.queries.Row(token, p.q_begin + token, key_chunk) +
             (head * kHeadDim + piece % kPieces * 8);
    }
    CopyAsync16(queries + (piece * 8 + row * kTilePad), from, valid);
  }
}

// The keys of tile `tile` as that piece of the ring; an empty group of copies behind tile_end.
template <class Ring>
LH_DEVICE void CopyKeysAsync(const LseParams& p, const Ring& ring, int tile, int tile_end,
                             int kv_head) {
  if (tile < tile_end) {
    const int page = p.kv.pages[tile];
    ring.CopyPage(tile, p.kv.Keys(page, kv_head), p.n_keys - tile * kTileKeys);
  }
  CopyAsyncCommit();
}

// Adds one tile to this lane's rows. `position`: of each row; -1 where there is none.
LH_DEVICE void AddTile(const LseParams& p, const float (&scores)[kRowTiles][kKeyTiles][4],
                       int key_begin, const int (&position)[kRowTiles][2],
                       LaneLse (&full)[kRowTiles][2], LaneLse (&local)[kRowTiles][2]) {
  const int lane_key = key_begin + LaneId() % 4 * 2;
  const int key_last = key_begin + kTileKeys - 1;
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = position[r][half];
      if (row < key_begin) continue;
      if (row >= key_last) {
        full[r][half].Add(scores[r], half, p.scale_log2, [](int) { return true; });
      } else {
        full[r][half].Add(scores[r], half, p.scale_log2,
                          [&](int column) { return lane_key + column <= row; });
      }
      if (key_begin >= p.sink && row - key_last >= p.window) continue;
      local[r][half].Add(scores[r], half, p.scale_log2, [&](int column) {
        const int key = lane_key + column;
        return key <= row && (key < p.sink || row - key < p.window);
      });
    }
  }
}

// `lane_row`: the first packed row of this lane. Of the block's chunk and kv head.
LH_DEVICE void StorePartials(const LseParams& p, int lane_row, const LaneLse (&full)[kRowTiles][2],
                             const LaneLse (&local)[kRowTiles][2]) {
  const int chunk = BlockY();
  const int kv_head = BlockZ();
  const int n_packed = p.n_rows * p.group;
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float full_lse = full[r][half].Total(p.scale_log2);
      const float local_lse = local[r][half].Total(p.scale_log2);
      const int packed = lane_row + 16 * r + 8 * half;
      if (LaneId() % 4 != 0 || packed >= n_packed) continue;
      const int64_t head = kv_head * p.group + packed % p.group;
      const int64_t at = (int64_t{2} * chunk * p.n_heads + head) * p.n_rows + packed / p.group;
      p.partials[at] = full_lse;
      p.partials[at + int64_t{p.n_heads} * p.n_rows] = local_lse;
    }
  }
}

// Grid [row blocks, n_chunks, KH].
template <class T, int kHeadDim>
LH_KERNEL(kThreads, 2)
LseKernel(LseParams p) {
  using Ring = TileRing<T, kHeadDim, kThreads>;
  SharedArena arena;
  Shared<BF16> queries = arena.Carve<BF16>(TileElements<kHeadDim>(kBlockRows));
  const Ring ring(arena.Carve<uint8_t>(Ring::Bytes(kPlaces)), kPlaces);
  Shared<int32_t> last_position = arena.Carve<int32_t>(1);
  const int first_row = BlockX() * kBlockRows;
  const int chunk = BlockY();
  const int kv_head = BlockZ();
  const int n_packed = p.n_rows * p.group;

  if (ThreadId() == 0) last_position[0] = -1;
  SyncThreads();
  int position[kRowTiles][2];
  const int lane_row = first_row + WarpId() * kWarpRows + LaneId() / 4;
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int packed = lane_row + 16 * r + 8 * half;
      position[r][half] = -1;
      if (packed < n_packed) position[r][half] = p.q_begin + p.rows[packed / p.group];
      if (LaneId() % 4 == 0) AtomicMax(last_position, position[r][half]);
    }
  }
  SyncThreads();
  const int last = last_position[0];

  LaneLse full[kRowTiles][2];
  LaneLse local[kRowTiles][2];
  const int tile_begin = chunk * p.chunk_tiles;
  const int tile_end = std::min(tile_begin + p.chunk_tiles, last / kTileKeys + 1);
  if (tile_begin < tile_end) {
    CopyQueriesAsync<kHeadDim>(p, queries, p.queries.ChunkOfTile(tile_begin));
    for (int ahead = 0; ahead < ring.NAhead(); ++ahead) {
      CopyKeysAsync(p, ring, tile_begin + ahead, tile_end, kv_head);
    }
  }
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    ring.Wait(tile);
    CopyKeysAsync(p, ring, tile + ring.NAhead(), tile_end, kv_head);
    float scores[kRowTiles][kKeyTiles][4];
    ComputeScores<kHeadDim>(scores, queries + WarpId() * TileElements<kHeadDim>(kWarpRows),
                            ring.Tile(tile));
    AddTile(p, scores, tile * kTileKeys, position, full, local);
    if (tile + 1 < tile_end && p.queries.IsChunkBegin(tile + 1)) {
      SyncThreads();  // all warps have their scores; the next wait shows them the new queries
      CopyQueriesAsync<kHeadDim>(p, queries, p.queries.ChunkOfTile(tile + 1));
      CopyAsyncCommit();
      CopyAsyncWait<0>();
    }
  }

  StorePartials(p, lane_row, full, local);
}

// log2 of the sum of 2^x over n values, in their order.
LH_DEVICE float MergeLse(Global<const float> x, int n, int64_t stride) {
  float max = MinusInfinity();
  for (int i = 0; i < n; ++i) max = fmaxf(max, x[i * stride]);
  if (max == MinusInfinity()) return max;
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += Exp2Approx(x[i * stride] - max);
  return max + Log2Approx(sum);
}

// Grid [ceil(2 H R / kThreads)].
LH_KERNEL(kThreads, 1) MergeLseKernel(LseParams p) {
  const int64_t n = int64_t{p.n_heads} * p.n_rows;
  const int64_t i = int64_t{BlockX()} * kThreads + ThreadId();
  if (i >= 2 * n) return;
  const float lse = kLn2 * MergeLse(Global<const float>(p.partials) + i, p.n_chunks, 2 * n);
  const int64_t head = i % n / p.n_rows;
  const int64_t row = i % p.n_rows;
  if (i < n) {
    p.lse_full[head * p.lse_full_stride + row] = lse;
  } else {
    p.lse_local[head * p.lse_local_stride + row] = lse;
  }
}

struct Chunks {
  int64_t n_chunks;
  int64_t chunk_tiles;
};

Chunks ChunksOf(int64_t n_keys) {
  const int64_t n_tiles = CeilDiv(n_keys, kTileKeys);
  const int64_t chunk_tiles = std::max(kLeastChunkTiles, CeilDiv(n_tiles, kMostChunks));
  return {.n_chunks = CeilDiv(n_tiles, chunk_tiles), .chunk_tiles = chunk_tiles};
}

LseParams MakeParams(const SampleLseArgs& args) {
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  const Chunks chunks = ChunksOf(n_keys);
  LseParams p;
  p.queries = MakeQueryForms(args.q, args.dual);
  p.q_begin = static_cast<int32_t>(args.q_begin);
  p.kv = MakePagedKv(args.kv);
  p.scale_log2 = args.scale * kLog2E;
  p.sink = static_cast<int32_t>(args.local.sink);
  p.window = static_cast<int32_t>(args.local.window);
  p.rows = args.rows;
  p.n_rows = static_cast<int32_t>(args.n_rows);
  p.n_heads = static_cast<int32_t>(args.q.dim(1));
  p.group = p.n_heads / args.kv.n_kv_heads;
  p.n_keys = static_cast<int32_t>(n_keys);
  p.n_chunks = static_cast<int32_t>(chunks.n_chunks);
  p.chunk_tiles = static_cast<int32_t>(chunks.chunk_tiles);
  p.lse_full = args.lse_full.As<float>();
  p.lse_local = args.lse_local.As<float>();
  p.lse_full_stride = args.lse_full.stride(0);
  p.lse_local_stride = args.lse_local.stride(0);
  return p;
}

}  // namespace

int64_t SampleLseScratchBytes(int64_t n_heads, int64_t n_rows, int64_t n_keys) {
  return 2 * ChunksOf(n_keys).n_chunks * n_heads * n_rows * static_cast<int64_t>(sizeof(float));
}

cudaError_t SampleLse(const SampleLseArgs& args, std::byte* scratch, cudaStream_t stream) {
  LH_CHECK(IsKvTypeOfKernels(args.kv) && args.q.stride(0) % 8 == 0);
  LseParams p = MakeParams(args);
  p.partials = reinterpret_cast<float*>(scratch);
  const dim3 grid(static_cast<unsigned>(CeilDiv(int64_t{p.n_rows} * p.group, kBlockRows)),
                  static_cast<unsigned>(p.n_chunks), static_cast<unsigned>(args.kv.n_kv_heads));
  const cudaError_t error = WithKv(args.kv, [&]<class T, int kHeadDim>() {
    constexpr int kSmemBytes =
        CarvedBytes<BF16>(TileElements<kHeadDim>(kBlockRows)) +
        CarvedBytes<uint8_t>(TileRing<T, kHeadDim, kThreads>::Bytes(kPlaces)) +
        CarvedBytes<int32_t>(1);
    return Launch({.name = "sample lse",
                   .grid = grid,
                   .block = kThreads,
                   .smem_bytes = kSmemBytes,
                   .stream = stream},
                  LseKernel<T, kHeadDim>, p);
  });
  if (error != cudaSuccess) return error;
  const int64_t n_merged = 2 * args.q.dim(1) * args.n_rows;
  return Launch({.name = "sample lse: merge",
                 .grid = {static_cast<unsigned>(CeilDiv(n_merged, kThreads))},
                 .block = kThreads,
                 .stream = stream},
                MergeLseKernel, p);
}

}  // namespace longhaul::cuda
