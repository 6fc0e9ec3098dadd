#include "kernels/cuda/attention_decode.h"

#include <algorithm>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/head_dim.h"
#include "kernels/cuda/launch.h"

namespace longhaul::cuda {
namespace {

// Each of the 4 warps takes 16 keys of every page through a ring of its own, so there is no barrier
// between the pages; the warps' results are merged when a segment ends.
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kWarpKeys = kTileKeys / kWarps;
constexpr int kBlocksPerMultiprocessor = 2;

// row_begin, by one warp.
LH_KERNEL(kWarpLanes, 1) PlanKernel(const DecodeParams p) {
  int total = 0;
  for (int first = 0; first < p.n_rows; first += kWarpLanes) {
    const int row = first + LaneId();
    int n_pages = 0;
    if (row < p.n_rows) {
      const int n_tokens = RowTokens(p, row);
      n_pages = (n_tokens + kTileKeys - 1) / kTileKeys - FirstKey(p, n_tokens) / kTileKeys;
    }
    int sum = n_pages;  // of this lane and those below
    LH_UNROLL
    for (int n = 1; n < kWarpLanes; n *= 2) {
      const int below = ShuffleUp(sum, n);
      if (LaneId() >= n) sum += below;
    }
    if (row < p.n_rows) p.row_begin[row] = total + sum - n_pages;
    total += Shuffle(sum, kWarpLanes - 1);
  }
  if (LaneId() == 0) p.row_begin[p.n_rows] = total;
}

// A warp's 16 keys and values of the pages of a segment on their way into its ring. In fp8 the ring
// is of raw places (kv_tiles.cuh), and one tile of keys and one of values stand in front of it.
template <class T, int kHeadDim>
class PageRing {
 public:
  static constexpr int kTileElements = TileElements<kHeadDim>(kWarpKeys);
  static constexpr int kTileBytes = CarvedBytes<BF16>(kTileElements);
  static constexpr int kStageBytes =
      2 * (kIsFp8<T> ? RawBytes<kHeadDim, 1>(kWarpKeys) : kTileBytes);
  LH_HOST_DEVICE static constexpr int Bytes(int n_stages) {
    return (kIsFp8<T> ? 2 * kTileBytes : 0) + n_stages * kStageBytes;
  }

  LH_DEVICE PageRing(const DecodeParams& p, const Segment& segment, Shared<uint8_t> ring)
      : p_(p), segment_(segment), ring_(ring), kv_(p.kv) {
    const KvView row = p.kvs[segment.row];
    kv_.pool = reinterpret_cast<const uint8_t*>(row.pool);
    kv_.pages = Global<const int32_t>(row.pages) + segment.page_begin;
    next_page_ = kv_.pages[0];
  }

  // Of page i, after its wait.
  LH_DEVICE Shared<BF16> Keys(int i) const { return Cast<BF16>(kIsFp8<T> ? ring_ : Stage(i)); }
  LH_DEVICE Shared<BF16> Values(int i) const { return Keys(i) + kTileElements; }
  // The first key that this warp reads of page i of the segment.
  LH_DEVICE int FirstKeyOfWarp(int i) const {
    return (segment_.page_begin + i) * kTileKeys + WarpId() * kWarpKeys;
  }

  // One group of copies per page, in order; empty behind the end. The page id is read one page
  // ahead, so that no copy waits for it.
  LH_DEVICE void Copy(int i) {
    if (i < segment_.n_pages) {
      const int page = next_page_;
      if (i + 1 < segment_.n_pages) next_page_ = kv_.pages[i + 1];
      const int kv_head = segment_.pack / p_.packs_per_kv_head;
      const int n_valid = segment_.n_tokens - FirstKeyOfWarp(i);
      const Shared<uint8_t> to = Stage(i);
      CopyRows(to, kv_.Keys(page, kv_head), n_valid);
      CopyRows(to + kStageBytes / 2, kv_.Values(page, kv_head), n_valid);
    }
    CopyAsyncCommit();
  }

  // For the oldest page under way, page i.
  LH_DEVICE void Wait(int i) const {
    if (p_.n_stages == 2) {
      CopyAsyncWait<0>();
    } else {
      CopyAsyncWait<1>();
    }
    SyncWarp();
    if constexpr (kIsFp8<T>) {
      const Shared<uint8_t> raw = Stage(i);
      ConvertRaw<kHeadDim, kWarpKeys, kWarpLanes>(Keys(i), raw, LaneId(), ScaleOfRow());
      ConvertRaw<kHeadDim, kWarpKeys, kWarpLanes>(Values(i), raw + kStageBytes / 2, LaneId(),
                                                  ScaleOfRow());
      SyncWarp();
    }
  }

 private:
  LH_DEVICE Shared<uint8_t> Stage(int i) const {
    return ring_ + (Bytes(0) + i % p_.n_stages * kStageBytes);
  }
  // The warp's rows of the keys, or of the values, of a page.
  LH_DEVICE void CopyRows(Shared<uint8_t> to, Global<const uint8_t> page, int n_valid) const {
    const int first = WarpId() * kWarpKeys;
    const Global<const uint8_t> from = page + first * kHeadDim * static_cast<int>(sizeof(T));
    if constexpr (kIsFp8<T>) {
      CopyRawAsync<kHeadDim, kWarpKeys, kWarpLanes>(to, from, page + (kTileKeys * kHeadDim + first),
                                                    n_valid, LaneId());
    } else {
      CopyTileAsync<kHeadDim, kWarpKeys, kWarpLanes>(Cast<BF16>(to), from, n_valid, LaneId());
    }
  }

  const DecodeParams& p_;
  const Segment& segment_;
  Shared<uint8_t> ring_;
  PagedKv kv_;
  int next_page_;
};

// The query heads of a pack, in the form for keys of page `page`, as left operands, straight from
// memory; rows without a head are 0.
template <int kHeadDim>
LH_DEVICE void LoadQueries(const DecodeParams& p, const Segment& segment, int page,
                           uint32_t (&q)[kHeadDim / 16][1][4]) {
  const int lane = LaneId();
  const int n_heads = PackSize(p, segment.pack);
  const Global<const BF16> queries =
      p.queries.Row(segment.row, segment.n_tokens - 1, p.queries.ChunkOfTile(page));
  LH_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + 8 * half;
    const Global<const BF16> from =
        queries + ((FirstHead(p, segment.pack) + head) * kHeadDim + lane % 4 * 2);
    LH_UNROLL
    for (int step = 0; step < kHeadDim / 16; ++step) {
      q[step][0][half] = head < n_heads ? LoadVec<uint32_t>(from + step * 16) : 0u;
      q[step][0][half + 2] = head < n_heads ? LoadVec<uint32_t>(from + (step * 16 + 8)) : 0u;
    }
  }
}

// A warp's part of a segment: its 16 keys of every page.
template <class T, int kHeadDim>
LH_DEVICE void AttendPages(const DecodeParams& p, const Segment& segment, Shared<uint8_t> ring,
                           SoftmaxState<kHeadDim, 1>& state) {
  PageRing<T, kHeadDim> pages(p, segment, ring);
  pages.Copy(0);
  if (p.n_stages == 3) pages.Copy(1);
  uint32_t q[kHeadDim / 16][1][4];
  for (int i = 0; i < segment.n_pages; ++i) {
    const int page = segment.page_begin + i;
    if (i == 0 || p.queries.IsChunkBegin(page)) LoadQueries<kHeadDim>(p, segment, page, q);
    pages.Wait(i);
    pages.Copy(i + p.n_stages - 1);
    float scores[1][kWarpKeys / 8][4] = {};
    LH_UNROLL
    for (int step = 0; step < kHeadDim / 16; ++step) {
      AddScores<kHeadDim>(scores, q[step], pages.Keys(i), step * 16);
    }
    const int begin = segment.first_key - pages.FirstKeyOfWarp(i) - LaneId() % 4 * 2;
    const int end = segment.n_tokens - pages.FirstKeyOfWarp(i) - LaneId() % 4 * 2;
    LH_UNROLL
    for (int n = 0; n < kWarpKeys / 8; ++n) {
      LH_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * n + e % 2;
        if (column < begin || column >= end) scores[0][n][e] = MinusInfinity();
      }
    }
    uint32_t weights[1][kWarpKeys / 8][2];
    state.Update(scores, weights, p.scale_log2);
    AddValues<kHeadDim>(state.output, weights, pages.Values(i));
  }
  CopyAsyncWait<0>();
  SyncWarp();
}

// output: [kPackHeads, D], lse: [kPackHeads] log2, of one warp.
template <int kHeadDim>
LH_DEVICE void StoreWarpResult(const DecodeParams& p, const SoftmaxState<kHeadDim, 1>& state,
                               Shared<float> output, Shared<float> lse) {
  const int lane = LaneId();
  LH_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + 8 * half;
    float inverse;
    float lse_log2;
    state.Finish(0, half, p.scale_log2, inverse, lse_log2);
    LH_UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) {
      StoreVec(output + (head * kHeadDim + 8 * d + lane % 4 * 2),
               F32x2{{state.output[0][d][2 * half] * inverse,
                      state.output[0][d][2 * half + 1] * inverse}});
    }
    if (lane % 4 == 0) lse[head] = lse_log2;
  }
}

// The sum of the warps' results, to the output or, when other blocks have a part in it, to `slot`
// of the partial results. Warp w's output begins at w * warp_stride.
template <int kHeadDim>
LH_DEVICE void MergeWarps(const DecodeParams& p, const Segment& segment, Shared<float> output,
                          int warp_stride, Shared<float> lse, int64_t slot) {
  constexpr int kPairs = kHeadDim / 2;
  const int first_head = FirstHead(p, segment.pack);
  for (int pair = ThreadId(); pair < PackSize(p, segment.pack) * kPairs; pair += kThreads) {
    const int head = pair / kPairs;
    const int column = pair % kPairs * 2;
    float warp_lse[kWarps];
    float max = MinusInfinity();
    LH_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      warp_lse[w] = lse[w * kPackHeads + head];
      max = fmaxf(max, warp_lse[w]);
    }
    const float shift = max == MinusInfinity() ? 0.0f : max;
    float low = 0.0f;
    float high = 0.0f;
    float weights = 0.0f;
    LH_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const float weight = Exp2Approx(warp_lse[w] - shift);
      const F32x2 part = LoadVec<F32x2>(output + (w * warp_stride + head * kHeadDim + column));
      low += weight * part.v[0];
      high += weight * part.v[1];
      weights += weight;
    }
    const float inverse = weights > 0.0f ? 1.0f / weights : 0.0f;
    low *= inverse;
    high *= inverse;
    if (segment.is_whole) {
      StoreVec(p.out + (segment.row * p.out_stride + (first_head + head) * kHeadDim + column),
               PackBf16(low, high));
      continue;
    }
    const int64_t part = slot * kPackHeads + head;
    StoreVec(p.partials.output + (part * kHeadDim + column), F32x2{{low, high}});
    if (column == 0) {
      p.partials.lse[part] = weights > 0.0f ? max + Log2Approx(weights) : MinusInfinity();
    }
  }
}

template <class T, int kHeadDim>
LH_KERNEL(kThreads, kBlocksPerMultiprocessor)
DecodeKernel(const DecodeParams p) {
  const int ring_bytes = PageRing<T, kHeadDim>::Bytes(p.n_stages);
  SharedArena arena;
  const Shared<uint8_t> rings = arena.Carve<uint8_t>(kWarps * ring_bytes);
  const Shared<float> lse = arena.Carve<float>(kWarps * kPackHeads);
  const Shared<uint8_t> ring = rings + WarpId() * ring_bytes;

  const int64_t share = UnitsPerBlock(p);
  const int64_t total = TotalUnits(p);
  const int64_t begin = BlockX() * share;
  const int64_t end = begin + share < total ? begin + share : total;
  for (int64_t unit = begin; unit < end;) {
    const Segment segment = SegmentAt(p, unit, end);
    SoftmaxState<kHeadDim, 1> state;
    state.Clear();
    AttendPages<T, kHeadDim>(p, segment, ring, state);
    StoreWarpResult<kHeadDim>(p, state, Cast<float>(ring), lse + WarpId() * kPackHeads);
    SyncThreads();
    MergeWarps<kHeadDim>(p, segment, Cast<float>(rings),
                         ring_bytes / static_cast<int>(sizeof(float)), lse,
                         2 * BlockX() + (unit == begin ? 0 : 1));
    SyncThreads();
    unit += segment.n_pages;
  }
}

// One warp per query head of a row: the sum of the blocks that had a part in it, if more than one.
template <int kHeadDim>
LH_KERNEL(kThreads, 1)
MergeBlocksKernel(const DecodeParams p) {
  const int index = BlockX() * kWarps + WarpId();
  const int row = index / p.n_heads;
  if (row >= p.n_rows) return;
  const int head = index % p.n_heads;
  const int in_group = head % p.group;
  const int pack = head / p.group * p.packs_per_kv_head + in_group / kPackHeads;
  const int row_begin = p.row_begin[row];
  const int row_end = p.row_begin[row + 1];
  const int n_pages = row_end - row_begin;
  if (n_pages == 0) return;
  const int64_t share = UnitsPerBlock(p);
  const int64_t unit = int64_t{row_begin} * p.n_packs + int64_t{pack} * n_pages;
  const int64_t first_block = unit / share;
  const int64_t last_block = (unit + n_pages - 1) / share;
  if (first_block == last_block) return;
  const bool first_is_begin = unit % share == 0;  // of its block
  const auto part = [&](int i) {
    const int slot = i == 0 && !first_is_begin ? 1 : 0;
    return ((first_block + i) * 2 + slot) * kPackHeads + in_group % kPackHeads;
  };
  MergeRow<kHeadDim>(p.partials, static_cast<int>(last_block - first_block) + 1, part,
                     p.out + (row * p.out_stride + head * kHeadDim));
}

int64_t NumBlocks(const DeviceLimits& limits) {
  return int64_t{kBlocksPerMultiprocessor} * limits.n_multiprocessors;
}
int64_t NumPartials(const DeviceLimits& limits) { return NumBlocks(limits) * 2 * kPackHeads; }

template <class T, int kHeadDim>
cudaError_t LaunchDecode(DecodeParams p, const DeviceLimits& limits, cudaStream_t stream) {
  using Ring = PageRing<T, kHeadDim>;
  constexpr int kFixedBytes = CarvedBytes<float>(kWarps * kPackHeads);
  const int share_bytes = limits.shared_bytes / kBlocksPerMultiprocessor - kReservedSharedBytes;
  p.n_stages = kFixedBytes + kWarps * Ring::Bytes(3) <= share_bytes ? 3 : 2;
  cudaError_t error =
      Launch({.name = "plan decode", .block = kWarpLanes, .stream = stream}, PlanKernel, p);
  if (error != cudaSuccess) return error;
  error = Launch({.name = "attend decode",
                  .grid = dim3(static_cast<unsigned>(p.n_blocks)),
                  .block = kThreads,
                  .smem_bytes = kFixedBytes + kWarps * Ring::Bytes(p.n_stages),
                  .stream = stream},
                 DecodeKernel<T, kHeadDim>, p);
  if (error != cudaSuccess) return error;
  return Launch({.name = "merge decode",
                 .grid = dim3(static_cast<unsigned>(CeilDiv(p.n_rows * p.n_heads, kWarps))),
                 .block = kThreads,
                 .stream = stream},
                MergeBlocksKernel<kHeadDim>, p);
}

}  // namespace

int64_t AttendDecodeScratchBytes(const AttendDecodeArgs& args, const DeviceLimits& limits) {
  const int64_t partial_bytes = NumPartials(limits) * (args.q.dim(2) + 1) * int64_t{sizeof(float)};
  return partial_bytes + (args.q.dim(0) + 1) * int64_t{sizeof(int32_t)};
}

cudaError_t AttendDecode(const AttendDecodeArgs& args, const DeviceLimits& limits,
                         std::byte* scratch, cudaStream_t stream) {
  CheckArgs(args, DType::kBF16);
  const int64_t n_rows = args.q.dim(0);
  if (n_rows == 0) return cudaSuccess;
  const KvView& kv = args.kvs[0];
  const int64_t head_dim = kv.head_dim;
  LH_CHECK(IsKvTypeOfKernels(kv) && args.kvs_copy != nullptr && args.scale > 0);
  LH_CHECK(args.q.stride(0) % 2 == 0 && args.out.stride(0) % 2 == 0);

  DecodeParams p;
  p.queries = MakeQueryForms(args.q, args.dual);
  p.out = static_cast<BF16*>(args.out.data());
  p.kvs = args.kvs_copy;
  p.kv = MakePagedKv(kv);
  p.partials.output = reinterpret_cast<float*>(scratch);
  p.partials.lse = reinterpret_cast<float*>(scratch) + NumPartials(limits) * head_dim;
  p.row_begin = reinterpret_cast<int32_t*>(scratch) + NumPartials(limits) * (head_dim + 1);
  p.out_stride = args.out.stride(0);
  p.n_rows = static_cast<int32_t>(n_rows);
  p.n_heads = static_cast<int32_t>(args.q.dim(1));
  p.group = p.n_heads / kv.n_kv_heads;
  p.packs_per_kv_head = static_cast<int32_t>(CeilDiv(p.group, kPackHeads));
  p.n_packs = kv.n_kv_heads * p.packs_per_kv_head;
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  p.window = static_cast<int32_t>(args.window == 0 ? kMaxInt : std::min(args.window, kMaxInt));
  p.n_blocks = static_cast<int32_t>(NumBlocks(limits));
  p.scale_log2 = args.scale * kLog2E;
  return WithKv(
      kv, [&]<class T, int kHeadDim>() { return LaunchDecode<T, kHeadDim>(p, limits, stream); });
}

}  // namespace longhaul::cuda
