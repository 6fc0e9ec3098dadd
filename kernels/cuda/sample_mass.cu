// Pass 2: softmax mass of the voting rows, per key and per diagonal band.
//
// Scores are computed as keys times queries: a warp keeps 32 keys in registers and walks over the
// voting rows of every query head of the group, so that the sum over rows stays in the warp that
// owns the keys. A block owns kMassBlockKeys keys: two pages of one chunk (dual_chunk.cuh), or the
// last page of a chunk.
//
// In one page a row at position i = 64 a + b meets two bands: keys [0, b] of the page lie in band
// a - page ("near"), the others in band a - page - 1 ("far"). The blocks store these two sums per
// (row, page); BandKernel adds them up along the diagonals, in the order of the rows.
#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/cuda/head_dim.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample_mass_work.cuh"
#include "kernels/cuda/sample_passes.h"

namespace longhaul::cuda {
namespace {

// Partial bands of more heads than fit are computed in several rounds.
constexpr int64_t kRoundBytes = int64_t{64} << 20;

// The sums over the eight lanes with the same lane % 4 of eight values; lane l gets value
// l / 4. Each step hands half of the values to the partner and adds what comes back.
LH_DEVICE float SumColumns(float (&x)[8]) {
  const int lane = LaneId();
  LH_UNROLL
  for (int width = 4; width > 0; width /= 2) {
    const bool upper = (lane / 4 & width) != 0;
    LH_UNROLL
    for (int i = 0; i < width; ++i) {
      const float sent = upper ? x[i] : x[i + width];
      const float kept = upper ? x[i + width] : x[i];
      x[i] = kept + ShuffleXor(sent, width * 4);
    }
  }
  return x[0];
}

// Mass of the warp's keys over the rows seen so far: of row tile r, half of it; this lane's rows.
struct KeyMass {
  float sum[kKeyRowTiles][2] = {};
  float max[kKeyRowTiles][2] = {};
};

// Adds the voting rows [row, row + 16) of the item. The band sums of the warp's keys go to `bands`,
// [kItemRows, near | far].
template <int kHeadDim>
LH_DEVICE void AddRows(const MassParams& p, const uint32_t (&keys)[kHeadDim / 16][kKeyRowTiles][4],
                       int warp_key, Shared<BF16> queries, Shared<RowInfo> infos, int row,
                       KeyMass& mass, Shared<float> bands) {
  float scores[kKeyRowTiles][2][4] = {};
  LH_UNROLL
  for (int column = 0; column < kHeadDim; column += 16) {
    AddScores<kHeadDim>(scores, keys[column / 16], queries + row * (kHeadDim + kTilePad), column);
  }
  // Value 4 n + 2 parity + far of the band sums: row 8 n + 2 (lane % 4) + parity.
  float band[8] = {};
  LH_UNROLL
  for (int n = 0; n < 2; ++n) {
    LH_UNROLL
    for (int parity = 0; parity < 2; ++parity) {
      const RowInfo info = infos[row + 8 * n + LaneId() % 4 * 2 + parity];
      const int split = info.position % kTileKeys;  // last key of a page in the near band
      LH_UNROLL
      for (int r = 0; r < kKeyRowTiles; ++r) {
        LH_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int key = warp_key + 16 * r + 8 * half + LaneId() / 4;
          const float weight =
              Exp2Approx(fmaf(scores[r][n][2 * half + parity], p.scale_log2, -info.lse_log2));
          const bool counts = static_cast<uint32_t>(key - p.sink) < info.limit;
          const float share = counts ? weight : 0.0f;
          mass.sum[r][half] += share;
          mass.max[r][half] = fmaxf(mass.max[r][half], share);
          const int far = key % kTileKeys > split ? 1 : 0;
          band[4 * n + 2 * parity] += far == 0 ? share : 0.0f;
          band[4 * n + 2 * parity + 1] += far == 1 ? share : 0.0f;
        }
      }
    }
  }
  if (!p.band_mass) return;
  const float sum = SumColumns(band);
  const int value = LaneId() / 4;
  const int sum_row = row + value / 4 * 8 + LaneId() % 4 * 2 + value / 2 % 2;
  bands[sum_row * 2 + value % 2] = sum;
}

// Of the warp's keys from warp_key on, those before key_end.
LH_DEVICE void StoreMass(const MassParams& p, int64_t out_row, int warp_key, int key_end,
                         const KeyMass& mass) {
  LH_UNROLL
  for (int r = 0; r < kKeyRowTiles; ++r) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float sum = RowSum(mass.sum[r][half]);
      const float max = RowMax(mass.max[r][half]);
      const int key = warp_key + 16 * r + 8 * half + LaneId() / 4;
      if (LaneId() % 4 != 0 || key >= key_end) continue;
      p.mass_sum[out_row * p.mass_sum_stride + key] = sum;
      p.mass_max[out_row * p.mass_max_stride + key] = max;
    }
  }
}

// Adds the two warps of each page; thread t takes row t / 2 of page t % 2.
LH_DEVICE void StoreBands(const MassParams& p, int head, MassItem item, const MassPages& pages,
                          Shared<float> bands) {
  const int page = ThreadId() % kMassBlockPages;
  const int row = ThreadId() / kMassBlockPages;
  if (item.first_row + row >= p.n_voting || pages.begin + page >= pages.end) return;
  LH_UNROLL
  for (int far = 0; far < 2; ++far) {
    const int at = row * 2 + far;
    const float lower = bands[(2 * page) * kItemRows * 2 + at];
    const float upper = bands[(2 * page + 1) * kItemRows * 2 + at];
    p.partials[PartialAt(p, head, far, item.first_row + row, pages.begin + page)] = lower + upper;
  }
}

// For keys that no voting row counts.
LH_DEVICE void StoreZeros(const MassParams& p, int kv_head, int first_head,
                          const MassPages& pages) {
  const KeyMass zero;
  const int warp_key = pages.first_key() + WarpId() * kMassWarpKeys;
  for (int head = 0; head < p.group; ++head) {
    if (IsSkipped(p, kv_head, head)) continue;
    StoreMass(p, p.out_begin + first_head + head, warp_key, KeyEnd(p, pages), zero);
    if (!p.band_mass) continue;
    for (int i = ThreadId(); i < 2 * p.n_voting * kMassBlockPages; i += kMassThreads) {
      const int page = pages.begin + i % kMassBlockPages;
      const int row = i / kMassBlockPages % p.n_voting;
      const int far = i / kMassBlockPages / p.n_voting;
      if (page < pages.end) p.partials[PartialAt(p, first_head + head, far, row, page)] = 0.0f;
    }
  }
}

// The keys of a page as a tile. fp8 goes through registers: there is one load per block, and
// nothing to do meanwhile.
template <class T, int kHeadDim>
LH_DEVICE void LoadPage(Shared<BF16> tile, Global<const uint8_t> from, int n_valid) {
  if constexpr (!kIsFp8<T>) {
    CopyTileAsync<kHeadDim, kTileKeys, kMassThreads>(tile, from, n_valid, ThreadId());
  } else {
    constexpr int kPieces = kHeadDim / 8;  // of 8 bytes, in a row
    for (int piece = ThreadId(); piece < kTileKeys * kPieces; piece += kMassThreads) {
      const int row = piece / kPieces;
      U32x4 wide = {};
      if (row < n_valid) {
        const uint8_t scale = from[kTileKeys * kHeadDim + row];
        wide = WidenFp8x8(LoadVec<U32x2>(from + piece * 8), scale);
      }
      StoreVec(tile + (piece * 8 + row * kTilePad), wide);
    }
  }
}

// The keys of the block through `tiles` into the registers of the warps that own them.
template <class T, int kHeadDim>
LH_DEVICE void LoadKeys(const MassParams& p, int kv_head, int first_page, Shared<BF16> tiles,
                        uint32_t (&keys)[kHeadDim / 16][kKeyRowTiles][4]) {
  LH_UNROLL
  for (int i = 0; i < kMassBlockPages; ++i) {
    const int page = first_page + i;
    const int n_valid = p.n_keys - page * kTileKeys;
    const int page_id = p.kv.pages[std::min(page, p.n_pages - 1)];
    LoadPage<T, kHeadDim>(tiles + i * TileElements<kHeadDim>(kTileKeys),
                          p.kv.Keys(page_id, kv_head), n_valid);
  }
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  SyncThreads();
  LH_UNROLL
  for (int column = 0; column < kHeadDim; column += 16) {
    LH_UNROLL
    for (int r = 0; r < kKeyRowTiles; ++r) {
      LoadRowFragment<kHeadDim>(keys[column / 16][r],
                                tiles + TileElements<kHeadDim>(WarpId() * kMassWarpKeys + r * 16),
                                column);
    }
  }
}

// Whether any voting row counts any of the block's keys; the same in all threads.
LH_DEVICE bool IsCounted(const MassParams& p, int first_key) {
  bool counts = false;
  for (int row = ThreadId(); row < p.n_voting; row += kMassThreads) {
    const int end = p.q_begin + p.rows[row] - p.reach + 1;
    counts |= end > first_key && first_key + kMassBlockKeys > p.sink;
  }
  return SyncThreadsOr(counts);
}

// Grid [MassBlocks, kv heads of the round].
template <class T, int kHeadDim>
LH_KERNEL(kMassThreads, 3)
MassKernel(MassParams p) {
  SharedArena arena;
  // The keys first, then two items of queries in the same place.
  Shared<BF16> tiles = arena.Carve<BF16>(TileElements<kHeadDim>(kMassBlockKeys));
  static_assert(kMassBlockKeys == 2 * kItemRows);
  Shared<RowInfo> infos = arena.Carve<RowInfo>(2 * kItemRows);
  Shared<float> bands = arena.Carve<float>(kMassWarps * kItemRows * 2);

  const MassPages pages = PagesOfBlock(p);
  const int key_chunk = p.queries.ChunkOfTile(pages.begin);
  const int kv_head = p.kv_head_begin + BlockY();
  const int first_head = BlockY() * p.group;  // in this round
  const int warp_key = pages.first_key() + WarpId() * kMassWarpKeys;
  MassItem item = FirstItem(p, kv_head, 0);
  if (item.head == p.group) return;

  if (!IsCounted(p, pages.first_key())) {
    StoreZeros(p, kv_head, first_head, pages);
    return;
  }

  uint32_t keys[kHeadDim / 16][kKeyRowTiles][4];
  LoadKeys<T, kHeadDim>(p, kv_head, pages.begin, tiles, keys);
  SyncThreads();  // the keys are in registers; their place is free

  CopyItemAsync<kHeadDim>(p, kv_head, item, key_chunk, tiles, infos);
  KeyMass mass;
  for (int stage = 0; item.head < p.group; stage = 1 - stage) {
    const MassItem next = NextItem(p, kv_head, item);
    CopyAsyncWait<0>();
    SyncThreads();  // the item is there, and nobody reads the other one any more
    if (next.head < p.group) {
      CopyItemAsync<kHeadDim>(p, kv_head, next, key_chunk,
                              tiles + (1 - stage) * TileElements<kHeadDim>(kItemRows),
                              infos + (1 - stage) * kItemRows);
    }
    for (int row = 0; row < kItemRows && item.first_row + row < p.n_voting; row += 16) {
      AddRows<kHeadDim>(p, keys, warp_key, tiles + stage * TileElements<kHeadDim>(kItemRows),
                        infos + stage * kItemRows, row, mass, bands + WarpId() * kItemRows * 2);
    }
    if (p.band_mass) {
      SyncThreads();
      StoreBands(p, first_head + item.head, item, pages, bands);
    }
    if (next.head != item.head) {
      StoreMass(p, p.out_begin + first_head + item.head, warp_key, KeyEnd(p, pages), mass);
      mass = KeyMass();
    }
    item = next;
  }
}

// Grid [ceil(n_pages / kMassThreads), heads of the round]: band b of a head.
LH_KERNEL(kMassThreads, 1) BandKernel(MassParams p) {
  const int band = BlockX() * kMassThreads + ThreadId();
  const int head = BlockY();
  const int kv_head = p.kv_head_begin + head / p.group;
  if (band >= p.n_pages || IsSkipped(p, kv_head, head % p.group)) return;
  float sum = 0.0f;
  for (int row = 0; row < p.n_voting; ++row) {
    const int near_page = (p.q_begin + p.rows[row]) / kTileKeys - band;
    if (near_page >= 0) sum += p.partials[PartialAt(p, head, 0, row, near_page)];
    if (near_page >= 1) sum += p.partials[PartialAt(p, head, 1, row, near_page - 1)];
  }
  p.band_mass[(p.out_begin + int64_t{head}) * p.band_mass_stride + band] = sum;
}

int64_t KvHeadPartialBytes(int64_t group, int64_t n_voting, int64_t n_keys) {
  return group * 2 * n_voting * CeilDiv(n_keys, kTileKeys) * static_cast<int64_t>(sizeof(float));
}

int64_t KvHeadsOfRound(int64_t n_kv_heads, int64_t kv_head_bytes) {
  return std::clamp<int64_t>(kRoundBytes / kv_head_bytes, 1, n_kv_heads);
}

// BlocksPerChunk for each whole chunk of keys, fewer for the last one.
int MassBlocks(const MassParams& p) {
  const int rest = p.n_pages % p.queries.chunk_tiles;
  return p.n_pages / p.queries.chunk_tiles * BlocksPerChunk(p) + CeilDiv(rest, kMassBlockPages);
}

template <class T, int kHeadDim>
cudaError_t LaunchMass(const MassParams& p, int64_t n_kv_heads, cudaStream_t stream) {
  constexpr int kSmemBytes = CarvedBytes<BF16>(TileElements<kHeadDim>(kMassBlockKeys)) +
                             CarvedBytes<RowInfo>(2 * kItemRows) +
                             CarvedBytes<float>(kMassWarps * kItemRows * 2);
  return Launch({.name = "sample mass",
                 .grid = {static_cast<unsigned>(MassBlocks(p)), static_cast<unsigned>(n_kv_heads)},
                 .block = kMassThreads,
                 .smem_bytes = kSmemBytes,
                 .stream = stream},
                MassKernel<T, kHeadDim>, p);
}

cudaError_t LaunchBands(const MassParams& p, int64_t n_kv_heads, cudaStream_t stream) {
  return Launch({.name = "sample mass: bands",
                 .grid = {static_cast<unsigned>(CeilDiv(p.n_pages, kMassThreads)),
                          static_cast<unsigned>(n_kv_heads * p.group)},
                 .block = kMassThreads,
                 .stream = stream},
                BandKernel, p);
}

MassParams MakeParams(const SampleMassArgs& args) {
  const bool remote = args.scope == MassScope::kRemote;
  MassParams p;
  p.queries = MakeQueryForms(args.q, args.dual);
  p.q_begin = static_cast<int32_t>(args.q_begin);
  p.kv = MakePagedKv(args.kv);
  p.scale_log2 = args.scale * kLog2E;
  p.sink = remote ? static_cast<int32_t>(args.local.sink) : 0;
  p.reach = remote ? static_cast<int32_t>(args.local.window) : 0;
  p.rows = args.rows;
  p.n_voting = static_cast<int32_t>(args.n_voting);
  p.group = static_cast<int32_t>(args.q.dim(1) / args.kv.n_kv_heads);
  p.n_keys = static_cast<int32_t>(args.q_begin + args.q.dim(0));
  p.n_pages = static_cast<int32_t>(CeilDiv(p.n_keys, kTileKeys));
  p.choice = args.choice;
  p.lse = args.lse_full.As<float>();
  p.lse_stride = args.lse_full.stride(0);
  p.mass_sum = args.mass_sum.As<float>();
  p.mass_max = args.mass_max.As<float>();
  p.mass_sum_stride = args.mass_sum.stride(0);
  p.mass_max_stride = args.mass_max.stride(0);
  if (!args.band_mass.empty()) {
    p.band_mass = args.band_mass.As<float>();
    p.band_mass_stride = args.band_mass.stride(0);
  }
  return p;
}

}  // namespace

int64_t SampleMassScratchBytes(int64_t n_heads, int64_t group, int64_t n_voting, int64_t n_keys,
                               bool bands) {
  if (!bands) return 0;
  const int64_t kv_head_bytes = KvHeadPartialBytes(group, n_voting, n_keys);
  return KvHeadsOfRound(n_heads / group, kv_head_bytes) * kv_head_bytes;
}

cudaError_t SampleMass(const SampleMassArgs& args, std::byte* scratch, cudaStream_t stream) {
  LH_CHECK(IsKvTypeOfKernels(args.kv) && args.q.stride(0) % 8 == 0);
  const bool bands = !args.band_mass.empty();
  MassParams p = MakeParams(args);
  p.partials = reinterpret_cast<float*>(scratch);
  const int64_t n_kv_heads = args.kv_head_end - args.kv_head_begin;
  const int64_t round =
      bands ? KvHeadsOfRound(n_kv_heads, KvHeadPartialBytes(p.group, p.n_voting, p.n_keys))
            : n_kv_heads;
  for (int64_t begin = 0; begin < n_kv_heads; begin += round) {
    const int64_t n = std::min(round, n_kv_heads - begin);
    p.kv_head_begin = static_cast<int32_t>(args.kv_head_begin + begin);
    p.out_begin = static_cast<int32_t>(begin * p.group);
    cudaError_t error = WithKv(
        args.kv, [&]<class T, int kHeadDim>() { return LaunchMass<T, kHeadDim>(p, n, stream); });
    if (error == cudaSuccess && bands) error = LaunchBands(p, n, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace longhaul::cuda
