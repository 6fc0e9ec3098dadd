#include "kernels/cuda/attention_sparse.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cuda/attention_sparse_tiles.cuh"
#include "kernels/cuda/head_dim.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch_carver.h"

namespace longhaul::cuda {
namespace {

// As in attention_dense.cu.
constexpr int kThreads = 128;
constexpr int kRowTiles = 2;
constexpr int kWarpRows = 16 * kRowTiles;
constexpr int kBlockRows = kThreads / kWarpLanes * kWarpRows;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kCopyBlocks = 32;  // that share the stripes of a head

// One block: in which order the heads are worked on, and where their stripes are copied to.
LH_KERNEL(kThreads, 1) PrepareKernel(SparseParams p) {
  for (int head = ThreadId(); head < p.n_heads; head += kThreads) {
    const int64_t mine = p.kept_pairs[head];
    int rank = 0;
    for (int other = 0; other < p.n_heads; ++other) {
      const int64_t others = p.kept_pairs[other];
      if (others > mine || (others == mine && other < head)) ++rank;
    }
    p.head_order[rank] = head;
  }
  if (ThreadId() != 0) return;
  int64_t n_taken = 0;
  for (int head = 0; head < p.n_heads; ++head) {
    const int32_t kind = p.kind[head];
    int64_t begin = -1;
    if (kind == static_cast<int32_t>(HeadKind::kSparse)) {
      const int64_t n_keys = CopiedKeys(p, p.n_stripes[head]);
      if (n_taken + n_keys <= p.most_copies) {
        begin = n_taken;
        n_taken += n_keys;
      }
    }
    p.copies_begin[head] = begin;
  }
}

// Grid [kCopyBlocks, H]: the stripes of a head to contiguous memory; bf16 alone.
template <int kHeadDim>
LH_KERNEL(kThreads, 1)
CopyStripesKernel(SparseParams p) {
  constexpr int kPieces = kHeadDim / 8;
  const int64_t head = BlockY();
  const int64_t begin = p.copies_begin[head];
  if (begin < 0) return;
  const int kv_head = static_cast<int>(head) / p.group;
  const int32_t n_stripes = p.n_stripes[head];
  const int64_t n_pieces = int64_t{n_stripes} * p.stripe_width * kPieces;
  const Global<BF16> keys = p.copies + 2 * begin * kHeadDim;
  const Global<BF16> values = keys + CopiedKeys(p, n_stripes) * kHeadDim;
  for (int64_t piece = int64_t{BlockX()} * kThreads + ThreadId(); piece < n_pieces;
       piece += int64_t{kCopyBlocks} * kThreads) {
    const int64_t index = piece / kPieces;
    const int32_t stripe = p.stripes[head * p.max_stripes + index / p.stripe_width];
    const int key = stripe + static_cast<int>(index % p.stripe_width);
    if (key >= p.q_begin + p.n_tokens) continue;
    const int page = p.kv.pages[key / kTileKeys];
    const int64_t at = (key % kTileKeys * kHeadDim + piece % kPieces * 8) * int64_t{sizeof(BF16)};
    StoreVec(keys + piece * 8, LoadVec<U32x4>(p.kv.Keys(page, kv_head) + at));
    StoreVec(values + piece * 8, LoadVec<U32x4>(p.kv.Values(page, kv_head) + at));
  }
}

// The block's queries in the form for keys of `key_chunk`.
template <int kHeadDim>
LH_DEVICE void CopyQueriesAsync(const SparseParams& p, Shared<BF16> to, const SparseRows& rows,
                                int key_chunk) {
  constexpr int kPieces = kHeadDim / 8;
  for (int piece = ThreadId(); piece < kBlockRows * kPieces; piece += kThreads) {
    const int row = piece / kPieces;
    const int position = rows.first + row;
    const bool valid = position <= rows.last;
    Global<const BF16> from = p.q;
    if (valid) {
      from = p.queries.Row(position - p.q_begin, position, key_chunk) +
             (rows.head * kHeadDim + piece % kPieces * 8);
    }
    CopyAsync16(to + (piece * 8 + row * kTilePad), from, valid);
  }
}

template <int kHeadDim>
LH_DEVICE void WriteRows(const SparseParams& p, const SparseRows& rows, int warp_row,
                         const SoftmaxState<kHeadDim, kRowTiles>& state) {
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      float inverse;
      float lse_log2;
      state.Finish(r, half, p.scale_log2, inverse, lse_log2);
      const int64_t row = rows.first - p.q_begin + warp_row + 16 * r + 8 * half + LaneId() / 4;
      if (row >= p.n_tokens) continue;
      const Global<BF16> out =
          p.out + (row * p.out_stride + rows.head * kHeadDim + LaneId() % 4 * 2);
      LH_UNROLL
      for (int d = 0; d < kHeadDim / 8; ++d) {
        StoreVec(out + 8 * d, PackBf16(state.output[r][d][2 * half] * inverse,
                                       state.output[r][d][2 * half + 1] * inverse));
      }
      if (LaneId() % 4 == 0) p.lse[row * p.lse_stride + rows.head] = lse_log2 * kLn2;
    }
  }
}

// Three are in use: that of the tile in use, the next one, whose copies are under way, and the one
// after it.
using Slots = TileSlots<4>;

// Keys of tile n, piece 2 n of the ring, then its values, piece 2 n + 1. The slot of a tile is
// filled two tiles ahead.
template <class T, int kHeadDim>
class SparsePipeline {
 public:
  using Ring = TileRing<T, kHeadDim, kThreads, /*kScaleBytes=*/16>;

  LH_DEVICE SparsePipeline(const SparseParams& p, Shared<uint8_t> memory, const Slots& slots)
      : p_(p), ring_(memory, p.n_places), slots_(slots) {
    for (int piece = 0; piece < ring_.NAhead(); ++piece) Copy(piece);
  }

  // In all threads; the tile stays until the next wait. A piece further on is copied meanwhile.
  LH_DEVICE Shared<BF16> WaitForKeys(int n) const { return Wait(n, 2 * n); }
  LH_DEVICE Shared<BF16> WaitForValues(int n) const { return Wait(n, 2 * n + 1); }

 private:
  LH_DEVICE Shared<BF16> Wait(int n, int piece) const {
    ring_.Wait(piece, slots_.ScalesOf(n));
    Copy(piece + ring_.NAhead());
    return ring_.Tile(piece);
  }
  LH_DEVICE void Copy(int piece) const {
    if (slots_.mask(piece / 2) != TileMask::kEmpty) {
      slots_.template CopyAsync<T, kHeadDim, kThreads>(p_, ring_, piece / 2, piece % 2 != 0);
    }
    CopyAsyncCommit();
  }

  const SparseParams& p_;
  Ring ring_;
  const Slots& slots_;
};

template <class T, int kHeadDim>
LH_KERNEL(kThreads, kBlocksPerMultiprocessor)
SparseKernel(const SparseParams p) {
  using Pipeline = SparsePipeline<T, kHeadDim>;
  SharedArena arena;
  Slots slots(arena);
  const Shared<BF16> queries = arena.Carve<BF16>(TileElements<kHeadDim>(kBlockRows));
  const Shared<uint8_t> ring = arena.Carve<uint8_t>(Pipeline::Ring::Bytes(p.n_places));
  const SparseRows rows = RowsOfBlock<kHeadDim, kBlockRows>(p);
  const BandSet bands = BandsOfBlock<kThreads>(p, rows, arena);

  SoftmaxState<kHeadDim, kRowTiles> state;
  state.Clear();
  // Every row has a tile: the window holds the row's own key.
  const int n_chunks = p.queries.ChunkOf(rows.last) + 1;
  for (int chunk = 0; chunk < n_chunks; ++chunk) {
    int next_keys[kKeysPerLane];  // of the slot that warp 0 fills
    if (WarpId() == 0) {
      slots.Start(p, RowsOfBlock<kHeadDim, kBlockRows>(p), chunk);
      for (int n = 0; n < 2; ++n) {
        slots.BeginFill(p, n, next_keys);
        slots.FinishFill<T, kHeadDim>(p, bands, n, next_keys);
      }
    }
    SyncThreads();
    if (slots.mask(0) != TileMask::kEmpty) {
      CopyQueriesAsync<kHeadDim>(p, queries, slots.rows(), chunk);
    }
    const Pipeline tiles(p, ring, slots);
    for (int n = 0; slots.mask(n) != TileMask::kEmpty; ++n) {
      const Shared<BF16> keys = tiles.WaitForKeys(n);
      if (WarpId() == 0) slots.BeginFill(p, n + 2, next_keys);
      const bool is_seen = slots.IsSeen(n, WarpId() * kWarpRows, kWarpRows);
      uint32_t weights[kRowTiles][kTileKeys / 8][2];
      if (is_seen) {
        float scores[kRowTiles][kTileKeys / 8][4];
        ComputeScores<kHeadDim>(scores, queries + TileElements<kHeadDim>(WarpId() * kWarpRows),
                                keys);
        if (slots.mask(n) != TileMask::kNone) {
          slots.template Mask<kRowTiles>(
              n, WarpId() * kWarpRows,
              [&](int r, int column, int e) -> float& { return scores[r][column][e]; });
        }
        state.Update(scores, weights, p.scale_log2);
      }
      if (WarpId() == 0) slots.FinishFill<T, kHeadDim>(p, bands, n + 2, next_keys);
      const Shared<BF16> values = tiles.WaitForValues(n);
      if (is_seen) AddValues<kHeadDim>(state.output, weights, values);
    }
    CopyAsyncWait<0>();
    SyncThreads();  // nobody uses the slots and the queries of this chunk any more
  }
  WriteRows<kHeadDim>(p, slots.rows(), WarpId() * kWarpRows, state);
}

template <int kHeadDim>
cudaError_t CopyStripes(const SparseParams& p, cudaStream_t stream) {
  return Launch({.name = "attend sparse: copy stripes",
                 .grid = {kCopyBlocks, static_cast<unsigned>(p.n_heads)},
                 .block = kThreads,
                 .stream = stream},
                CopyStripesKernel<kHeadDim>, p);
}

template <class T, int kHeadDim>
cudaError_t LaunchSparse(SparseParams p, const DeviceLimits& limits, cudaStream_t stream) {
  const int band_words = p.max_bands > 0 ? BandSetWords(p.q_begin + p.n_tokens) : 0;
  const int fixed_bytes = CarvedBytes<BF16>(TileElements<kHeadDim>(kBlockRows)) + Slots::kBytes +
                          CarvedBytes<uint32_t>(band_words);
  using Ring = typename SparsePipeline<T, kHeadDim>::Ring;
  const int share_bytes = limits.shared_bytes / kBlocksPerMultiprocessor - kReservedSharedBytes;
  p.n_places = fixed_bytes + Ring::Bytes(4) <= share_bytes ? 4 : 2;
  return Launch({.name = "attend sparse",
                 .grid = {static_cast<unsigned>(p.n_heads * p.n_row_tiles)},
                 .block = kThreads,
                 .smem_bytes = fixed_bytes + Ring::Bytes(p.n_places),
                 .stream = stream},
                SparseKernel<T, kHeadDim>, p);
}

// Points the parameters into the scratch; returns its size.
int64_t CarveScratch(int64_t n_heads, int64_t head_dim, const StripeCopies& copies,
                     std::byte* scratch, SparseParams& p) {
  ScratchCarver carver(scratch);
  p.copies = carver.Take<BF16>(2 * copies.n_keys * head_dim);
  p.copies_begin = carver.Take<int64_t>(n_heads);
  p.head_order = carver.Take<int32_t>(n_heads);
  p.copies_from_pool = (reinterpret_cast<intptr_t>(p.copies.pointer()) -
                        reinterpret_cast<intptr_t>(p.kv.pool.pointer()));
  p.most_copies = copies.n_keys;
  return carver.used_bytes();
}

}  // namespace

int64_t AttendSparseScratchBytes(int64_t n_heads, int64_t head_dim, const StripeCopies& copies) {
  SparseParams unused;
  return CarveScratch(n_heads, head_dim, copies, nullptr, unused);
}

cudaError_t PrepareSparse(const AttendSparseArgs& args, const StripeCopies& copies,
                          int64_t block_rows, std::byte* scratch, cudaStream_t stream,
                          SparseParams* params) {
  CheckArgs(args, DType::kBF16);
  const int64_t n_tokens = args.q.dim(0);
  const int64_t n_keys = args.q_begin + n_tokens;
  LH_CHECK(n_tokens > 0);
  LH_CHECK(IsKvTypeOfKernels(args.kv) && args.scale > 0);
  LH_CHECK(copies.n_keys == 0 || args.kv.dtype == DType::kBF16);
  LH_CHECK(n_keys <= std::numeric_limits<int32_t>::max() / 2);
  LH_CHECK(args.q.stride(0) % 8 == 0 && args.out.stride(0) % 2 == 0);

  const SparsePlan& plan = args.plan;
  SparseParams& p = *params;
  p.q = args.q.As<BF16>();
  p.queries = MakeQueryForms(args.q, args.dual);
  p.out = args.out.As<BF16>();
  p.lse = args.lse.As<float>();
  p.kv = MakePagedKv(args.kv);
  p.q_stride = args.q.stride(0);
  p.out_stride = args.out.stride(0);
  p.lse_stride = args.lse.stride(0);
  p.q_begin = static_cast<int32_t>(args.q_begin);
  p.n_tokens = static_cast<int32_t>(n_tokens);
  p.n_heads = static_cast<int32_t>(args.q.dim(1));
  p.group = p.n_heads / args.kv.n_kv_heads;
  p.n_row_tiles = static_cast<int32_t>(CeilDiv(n_tokens, block_rows));
  p.scale_log2 = args.scale * kLog2E;
  p.sink = static_cast<int32_t>(std::min(plan.local.sink, n_keys));
  p.window = static_cast<int32_t>(std::min(plan.local.window, n_keys));
  p.stripe_width = static_cast<int32_t>(plan.stripe_width);
  p.max_stripes = plan.max_stripes;
  p.max_bands = plan.max_bands;
  p.kind = plan.kind;
  p.n_stripes = plan.n_stripes;
  p.stripes = plan.stripes;
  p.n_bands = plan.n_bands;
  p.bands = plan.bands;
  p.kept_pairs = plan.kept_pairs;
  CarveScratch(p.n_heads, args.kv.head_dim, copies, scratch, p);
  const cudaError_t error =
      Launch({.name = "attend sparse: prepare", .grid = {1}, .block = kThreads, .stream = stream},
             PrepareKernel, p);
  if (error != cudaSuccess || p.most_copies == 0) return error;
  return WithHeadDim(args.kv.head_dim,
                     [&]<int kHeadDim>() { return CopyStripes<kHeadDim>(p, stream); });
}

cudaError_t AttendSparse(const AttendSparseArgs& args, const StripeCopies& copies,
                         const DeviceLimits& limits, std::byte* scratch, cudaStream_t stream) {
  if (args.q.dim(0) == 0) return cudaSuccess;
  SparseParams p;
  const cudaError_t error = PrepareSparse(args, copies, kBlockRows, scratch, stream, &p);
  if (error != cudaSuccess) return error;
  return WithKv(args.kv, [&]<class T, int kHeadDim>() {
    return LaunchSparse<T, kHeadDim>(p, limits, stream);
  });
}

}  // namespace longhaul::cuda
