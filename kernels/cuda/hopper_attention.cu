// One producer warp group brings tiles of keys and values into shared memory by tensor copies; two
// consumer warp groups of 64 rows each multiply. The schedule is that of FlashAttention-3 (Shah et
// al. 2024, section 3): inside a consumer the softmax of a tile runs beside the product of the
// tile before with its values, and the two take turns at issuing products, so that one's softmax
// also runs beside the other's products.
//
// 128 rows and 128 keys: with D = 128 a consumer thread holds 64 registers of scores, 64 of output
// and 32 of weights, and two tiles of keys and of values are 128 KiB of shared memory.
#include "kernels/cuda/hopper_attention.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cuda/hopper_tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_map.h"

namespace longhaul::cuda {
namespace hopper {
namespace {

constexpr int kProducerRegisters = 24;  // 24 + 2 * 240 = 3 * 168, with which 384 threads start
constexpr int kConsumerRegisters = 240;
constexpr int kMaxSharedBytes = 227 * 1024;

// Named barriers; the second of each pair is the second consumer's.
constexpr int kQueriesReady = 1;
constexpr int kTurn = 3;

// One consumer: the 64 rows of its warp group. A thread holds parts of two rows ("half" 0 and 1),
// lane / 4 and lane / 4 + 8 of its warp's 16; element e of eight columns is half e / 2 % 2.
template <int kHeadDim>
class Consumer {
 public:
  LH_DEVICE Consumer(const HopperParams& p, const Work& work, int index, Shared<BF16> queries,
                     Shared<float> unread, const KvRing<kHeadDim>& keys,
                     const KvRing<kHeadDim>& values)
      : p_(p),
        work_(work),
        index_(index),
        queries_(queries + index * kGroupRows * kHeadDim),
        unread_(unread + index * kWarpGroupThreads),
        keys_(keys),
        values_(values) {
    const int first = work.row_begin + index * kGroupRows + WarpId() % 4 * 16;
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      visible_[half] = VisibleKeys(p, first + 8 * half + LaneId() / 4);
      max_[half] = MinusInfinity();
      sum_[half] = 0.0f;
    }
    whole_ = {VisibleKeys(p, first + 15).begin, VisibleKeys(p, first).end};
    LH_UNROLL
    for (int i = 0; i < kOutput; ++i) output_[i] = 0.0f;
  }

  LH_DEVICE void Run() {
    CopyQueries();
    if (work_.tile_begin == work_.tile_end) return;
    // A turn is passed only where one is taken: the first consumer begins.
    if (index_ == 1 && work_.tile_begin + 1 < work_.tile_end) PassTurn();
    Slot slot;
    keys_.Wait(slot);
    WgmmaFence(scores_);
    StartScores(slot);
    WgmmaWait<0>(scores_);
    keys_.Release(slot);
    float decay[2];
    Softmax(work_.tile_begin, decay);
    PackWeights();
    for (int tile = work_.tile_begin + 1; tile < work_.tile_end; ++tile) {
      const Slot before = slot;
      slot.Advance();
      keys_.Wait(slot);
      SyncNamed(kTurn + index_, kConsumers * kWarpGroupThreads);
      WgmmaFence(scores_, output_, weights_);
      StartScores(slot);
      values_.Wait(before);
      StartValues(before);
      if (index_ == 0 || tile + 1 < work_.tile_end) PassTurn();
      WgmmaWait<1>(scores_);
      keys_.Release(slot);
      Softmax(tile, decay);
      // Nobody reads it. But ptxas (13.0) moves a wait for wgmma up through arithmetic, here
      // through the whole softmax, which would then run beside no product; through a store it does
      // not.
      unread_[ThreadId() % kWarpGroupThreads] = sum_[0] + sum_[1];
      WgmmaWait<0>(output_, weights_);
      values_.Release(before);
      PackWeights();
      ScaleOutput(decay);
    }
    values_.Wait(slot);
    WgmmaFence(output_, weights_);
    StartValues(slot);
    WgmmaWait<0>(output_, weights_);
    values_.Release(slot);
  }

  LH_DEVICE void Write() {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float total = RowSum(sum_[half]);
      const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
      const float lse_log2 =
          total > 0.0f ? max_[half] * p_.scale_log2 + Log2Approx(total) : MinusInfinity();
      const int row =
          work_.row_begin + index_ * kGroupRows + WarpId() % 4 * 16 + 8 * half + LaneId() / 4;
      if (row >= p_.n_rows) continue;
      const int64_t token = row / p_.pack;
      const int head = work_.head_block * p_.pack + row % p_.pack;
      const Global<BF16> out =
          p_.out + (token * p_.out_stride + head * kHeadDim + LaneId() % 4 * 2);
      LH_UNROLL
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const float low = output_[4 * n + 2 * half] * inverse;
        const float high = output_[4 * n + 2 * half + 1] * inverse;
        StoreVec(out + 8 * n, PackBf16(low, high));
      }
      if (p_.lse && LaneId() % 4 == 0) p_.lse[token * p_.lse_stride + head] = lse_log2 * kLn2;
    }
  }

 private:
  static constexpr int kScores = kBlockKeys / 2;  // registers of a thread
  static constexpr int kWeights = kBlockKeys / 4;
  static constexpr int kOutput = kHeadDim / 2;
  static constexpr int kStepDims = 16;  // k of wgmma

  // As [D / 64][64 rows][64], swizzled; rows behind the last are those of the last.
  LH_DEVICE void CopyQueries() const {
    constexpr int kPieces = kHeadDim / 8;  // of 16 bytes, in a row
    const int thread = ThreadId() % kWarpGroupThreads;
    for (int i = thread; i < kGroupRows * kPieces; i += kWarpGroupThreads) {
      const int row = i / kPieces;
      const int column = i % kPieces * 8;
      const int packed = MinOf(work_.row_begin + index_ * kGroupRows + row, p_.n_rows - 1);
      const int head = work_.head_block * p_.pack + packed % p_.pack;
      const U32x4 piece =
          LoadVec<U32x4>(p_.q + (packed / p_.pack * p_.q_stride + head * kHeadDim + column));
      StoreVec(queries_ + (column / kSwizzleElements * kGroupRows * kSwizzleElements +
                           SwizzledElement(row, column % kSwizzleElements)),
               piece);
    }
    FenceProxyAsync();
    SyncNamed(kQueriesReady + index_, kWarpGroupThreads);
  }

  LH_DEVICE void PassTurn() const {
    ArriveNamed(kTurn + 1 - index_, kConsumers * kWarpGroupThreads);
  }

  // scores = q k^T, under way.
  LH_DEVICE void StartScores(Slot slot) {
    LH_UNROLL
    for (int d = 0; d < kHeadDim; d += kStepDims) {
      const int half = d / kSwizzleElements;
      const int column = d % kSwizzleElements;
      WgmmaScores(scores_,
                  DescribeKMajor(queries_ + (half * kGroupRows * kSwizzleElements + column)),
                  DescribeKMajor(keys_.Half(slot, half) + column), /*accumulate=*/d > 0);
    }
    WgmmaCommit();
  }

  // output += weights v, under way.
  LH_DEVICE void StartValues(Slot slot) {
    constexpr int kHalfBytes = KvRing<kHeadDim>::kHalfElements * static_cast<int>(sizeof(BF16));
    LH_UNROLL
    for (int key = 0; key < kBlockKeys; key += kStepDims) {
      WgmmaValues(output_, weights_, key / 4,
                  DescribeNMajor(values_.Half(slot, 0) + key * kSwizzleElements, kHalfBytes));
    }
    WgmmaCommit();
  }

  // Turns the scores of a tile into weights, in place; `decay` is what the output so far is to be
  // multiplied by. Scores are raw products: the scale is applied inside the exponential.
  LH_DEVICE void Softmax(int tile, float (&decay)[2]) {
    const int first_key = tile * kBlockKeys;
    if (first_key < whole_.begin || first_key + kBlockKeys > whole_.end) Mask(first_key);
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      float tile_max = max_[half];
      LH_UNROLL
      for (int n = 0; n < kBlockKeys / 8; ++n) {
        tile_max = fmaxf(tile_max, fmaxf(scores_[4 * n + 2 * half], scores_[4 * n + 2 * half + 1]));
      }
      tile_max = RowMax(tile_max);
      // A row without any key so far: subtract 0, not -infinity, so that its weights are 0, not
      // NaN.
      const float shift = tile_max == MinusInfinity() ? 0.0f : tile_max * p_.scale_log2;
      decay[half] = Exp2Approx(max_[half] * p_.scale_log2 - shift);
      max_[half] = tile_max;
      float tile_sum = 0.0f;
      LH_UNROLL
      for (int n = 0; n < kBlockKeys / 8; ++n) {
        LH_UNROLL
        for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
          const float weight = Exp2Approx(fmaf(scores_[i], p_.scale_log2, -shift));
          scores_[i] = weight;
          tile_sum += weight;
        }
      }
      sum_[half] = sum_[half] * decay[half] + tile_sum;
    }
  }

  LH_DEVICE void Mask(int first_key) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int begin = visible_[half].begin - first_key - LaneId() % 4 * 2;
      const int end = visible_[half].end - first_key - LaneId() % 4 * 2;
      LH_UNROLL
      for (int n = 0; n < kBlockKeys / 8; ++n) {
        LH_UNROLL
        for (int parity = 0; parity < 2; ++parity) {
          const int column = 8 * n + parity;
          if (column < begin || column >= end) {
            scores_[4 * n + 2 * half + parity] = MinusInfinity();
          }
        }
      }
    }
  }

  // The fragments of the scores, two columns to a register, are those of the left operand.
  LH_DEVICE void PackWeights() {
    LH_UNROLL
    for (int i = 0; i < kWeights; ++i) {
      weights_[i] = PackBf16(scores_[2 * i], scores_[2 * i + 1]);
    }
  }

  LH_DEVICE void ScaleOutput(const float (&decay)[2]) {
    LH_UNROLL
    for (int i = 0; i < kOutput; ++i) output_[i] *= decay[i / 2 % 2];
  }

  const HopperParams& p_;
  const Work& work_;
  const int index_;
  const Shared<BF16> queries_;
  const Shared<float> unread_;  // of this warp group
  const KvRing<kHeadDim>& keys_;
  const KvRing<kHeadDim>& values_;
  Visible visible_[2];
  Visible whole_;  // by all rows of the warp
  float max_[2];   // of the raw scores
  float sum_[2];   // this lane's columns only, until Write
  WgmmaRegisters<float, kScores> scores_;
  WgmmaRegisters<uint32_t, kWeights> weights_;
  WgmmaRegisters<float, kOutput> output_;
};

template <int kHeadDim>
LH_KERNEL(kThreads, 1)
HopperKernel(LH_GRID_CONSTANT const HopperParams p) {
  const Work work = WorkOfBlock(p);
  if (p.head_mask) {
    const uint8_t wanted = p.head_mask[work.head_block * p.pack];
    if (wanted == 0) return;
  }
  SharedArena arena;
  const Shared<BF16> queries = arena.Carve<BF16>(kBlockRows * kHeadDim, 1024);
  KvRing<kHeadDim> keys(arena);
  KvRing<kHeadDim> values(arena);
  const Shared<float> unread = arena.Carve<float>(kConsumers * kWarpGroupThreads);
  keys.CarveBarriers(arena);
  values.CarveBarriers(arena);
  if (ThreadId() == 0) {
    keys.InitBarriers();
    values.InitBarriers();
    FenceProxyAsync();
  }
  SyncThreads();
  // The same in all lanes, and the compiler shall know: else it runs products one after another.
  const int warp_group = Shuffle(ThreadId() / kWarpGroupThreads, 0);
  if (warp_group == 0) {
    GiveUpRegisters<kProducerRegisters>();
    if (ThreadId() == 0) Produce<kHeadDim>(p, work, keys, values);
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consumer<kHeadDim> consumer(p, work, warp_group - 1, queries, unread, keys, values);
    consumer.Run();
    consumer.Write();
  }
}

template <int kHeadDim>
cudaError_t LaunchHopper(const HopperParams& p, cudaStream_t stream) {
  constexpr int kSharedBytes = kBlockRows * kHeadDim * static_cast<int>(sizeof(BF16)) +
                               2 * kStages * KvRing<kHeadDim>::kTileBytes +
                               CarvedBytes<float>(kConsumers * kWarpGroupThreads) +
                               4 * kStages * static_cast<int>(sizeof(TransactionBarrier));
  static_assert(kSharedBytes <= kMaxSharedBytes);
  return Launch({.name = "attend dense (hopper)",
                 .grid = dim3(static_cast<unsigned>(p.n_head_blocks * p.n_row_tiles)),
                 .block = kThreads,
                 .smem_bytes = kSharedBytes,
                 .stream = stream},
                HopperKernel<kHeadDim>, p);
}

int64_t Pack(const AttendDenseArgs& args) {
  return args.head_mask != nullptr ? 1 : args.q.dim(1) / args.kv.n_kv_heads;
}

cudaError_t MakePageMaps(const KvView& kv, int64_t key_end, HopperParams* p) {
  const int64_t row_bytes = kv.head_dim * int64_t{sizeof(BF16)};
  TensorShape shape = {
      .sizes = {kv.head_dim, kPageTokens, 2 * int64_t{kv.n_kv_heads},
                std::numeric_limits<int32_t>::max()},
      .stride_bytes = {0, row_bytes, kv.head_stride_bytes / 2, kv.page_stride_bytes},
      .box = {kSwizzleElements, static_cast<int32_t>(kPageTokens), 1, 1}};
  const std::byte* data = kv.pool + kv.layer_offset_bytes;
  const cudaError_t error = MakeTensorMap(data, shape, &p->pages);
  if (error != cudaSuccess) return error;
  shape.sizes[1] = std::max<int64_t>(key_end - 1, 0) % kPageTokens + 1;
  return MakeTensorMap(data, shape, &p->last_page);
}

}  // namespace
}  // namespace hopper

bool SuitsHopper(const AttendDenseArgs& args, const DeviceLimits& limits) {
  if (args.kv.head_dim != 64 && args.kv.head_dim != 128) return false;
  if (args.kv.dtype != DType::kBF16 || args.dual.chunk_tokens != 0) return false;
  const int64_t pack = hopper::Pack(args);
  const int64_t n_blocks =
      CeilDiv(args.q.dim(0) * pack, int64_t{hopper::kBlockRows}) * (args.q.dim(1) / pack);
  return n_blocks >= limits.n_multiprocessors;
}

cudaError_t AttendDenseHopper(const AttendDenseArgs& args, const KeyRange& keys,
                              const DeviceLimits& limits, cudaStream_t stream) {
  CheckArgs(args, DType::kBF16);
  if (args.q.dim(0) == 0) return cudaSuccess;
  LH_CHECK(args.kv.dtype == DType::kBF16);

  hopper::HopperParams p{MakeDenseRows(args, keys, limits, hopper::Pack(args), hopper::kBlockRows,
                                       hopper::kBlockKeys)};
  p.page_ids = args.kv.pages;
  const cudaError_t error = hopper::MakePageMaps(args.kv, p.key_end, &p);
  if (error != cudaSuccess) return error;
  switch (args.kv.head_dim) {
    case 64:
      return hopper::LaunchHopper<64>(p, stream);
    case 128:
      return hopper::LaunchHopper<128>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace longhaul::cuda
