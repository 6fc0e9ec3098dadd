// A consumer warp group of the attention kernels for Hopper: 64 rows against tiles of 128 keys that
// come into shared memory by themselves. Device code of hopper_attention.cu and hopper_sparse.cu.
//
// The schedule is that of FlashAttention-3 (Shah et al. 2024, section 3): inside a consumer the
// softmax of a tile runs beside the product of the tile before with its values, and the two
// consumers of a block take turns at issuing products, so that one's softmax also runs beside the
// other's products.
//
// Both multiply every tile of the block. To pass over those that the 64 rows of one of them cannot
// see was built and taken out: of the tiles of a band, two times 64 keys, that is never both
// halves.
#pragma once

#include "kernels/cuda/hopper_tiles.cuh"

namespace longhaul::cuda::hopper {

// Named barriers; the second of each pair is the second consumer's.
inline constexpr int kQueriesReady = 1;
inline constexpr int kTurn = 3;

// The shared memory of a block, but for what its producer alone needs.
template <int kHeadDim>
struct BlockMemory {
  static constexpr int kBytes = kBlockRows * kHeadDim * static_cast<int>(sizeof(BF16)) +
                                2 * kStages * KvRing<kHeadDim>::kTileBytes +
                                CarvedBytes<float>(kConsumers * kWarpGroupThreads) +
                                4 * kStages * static_cast<int>(sizeof(TransactionBarrier));

  LH_DEVICE explicit BlockMemory(SharedArena& arena)
      : queries(arena.Carve<BF16>(kBlockRows * kHeadDim, 1024)),
        keys(arena),
        values(arena),
        unread(arena.Carve<float>(kConsumers * kWarpGroupThreads)) {
    keys.CarveBarriers(arena);
    values.CarveBarriers(arena);
  }
  // By one thread; a barrier makes them known, and before tensor copies use them FenceProxyAsync().
  // A slot is full after n_arrivals of the producer, and the bytes that these announced.
  LH_DEVICE void InitBarriers(int n_arrivals) const {
    keys.InitBarriers(n_arrivals);
    values.InitBarriers(n_arrivals);
  }

  Shared<BF16> queries;  // per consumer [D / 64][64 rows][64], swizzled
  KvRing<kHeadDim> keys;
  KvRing<kHeadDim> values;
  Shared<float> unread;  // see Consumer::Run
};

// One consumer: the 64 rows of its warp group. A thread holds parts of two rows ("half" 0 and 1),
// lane / 4 and lane / 4 + 8 of its warp's 16; element e of eight columns is half e / 2 % 2.
//
// Params are those of the kernel: q, out, lse (or null), their strides, scale_log2. Tiles says
// which rows and which tiles:
//   n_rows, first_row()       of all; of this consumer
//   TokenOf(row), HeadOf(row)
//   IsEmpty(), first_tile()   whether there is no tile; the tiles, in order
//   Has(tile)                 of tile n + 1, this is known once the keys of tile n are there
//   IsMasked(tile), Mask(tile, scores)
template <int kHeadDim, class Params, class Tiles>
class Consumer {
 public:
  LH_DEVICE Consumer(const Params& p, const Tiles& tiles, int index,
                     const BlockMemory<kHeadDim>& memory)
      : p_(p),
        tiles_(tiles),
        index_(index),
        queries_(memory.queries + index * kGroupRows * kHeadDim),
        unread_(memory.unread + index * kWarpGroupThreads),
        keys_(memory.keys),
        values_(memory.values) {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      max_[half] = MinusInfinity();
      sum_[half] = 0.0f;
    }
    LH_UNROLL
    for (int i = 0; i < kOutput; ++i) output_[i] = 0.0f;
  }

  LH_DEVICE void Run() {
    CopyQueries();
    if (tiles_.IsEmpty()) return;
    if (index_ == 1) PassTurn();  // the first consumer begins
    int tile = tiles_.first_tile();
    Slot slot;
    keys_.Wait(slot);
    TakeTurn();
    WgmmaFence(scores_);
    StartScores(slot);
    EndTurn(tile);
    WgmmaWait<0>(scores_);
    keys_.Release(slot);
    float decay[2];
    Softmax(tile, decay);
    PackWeights();
    while (tiles_.Has(tile + 1)) {
      ++tile;
      const Slot before = slot;
      slot.Advance();
      keys_.Wait(slot);
      TakeTurn();
      WgmmaFence(scores_, output_, weights_);
      StartScores(slot);
      values_.Wait(before);
      StartValues(before);
      EndTurn(tile);
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
      const int row = tiles_.first_row() + WarpId() % 4 * 16 + 8 * half + LaneId() / 4;
      if (row >= tiles_.n_rows()) continue;
      const int64_t token = tiles_.TokenOf(row);
      const int head = tiles_.HeadOf(row);
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
      const int from = MinOf(tiles_.first_row() + row, tiles_.n_rows() - 1);
      const U32x4 piece = LoadVec<U32x4>(
          p_.q + (tiles_.TokenOf(from) * p_.q_stride + tiles_.HeadOf(from) * kHeadDim + column));
      StoreVec(queries_ + (column / kSwizzleElements * kGroupRows * kSwizzleElements +
                           SwizzledElement(row, column % kSwizzleElements)),
               piece);
    }
    FenceProxyAsync();
    SyncNamed(kQueriesReady + index_, kWarpGroupThreads);
  }

  // Each consumer has one turn per tile.
  LH_DEVICE void TakeTurn() const { SyncNamed(kTurn + index_, kConsumers * kWarpGroupThreads); }
  LH_DEVICE void PassTurn() const {
    ArriveNamed(kTurn + 1 - index_, kConsumers * kWarpGroupThreads);
  }
  // Passed only where it is taken: not by the second consumer after the last tile.
  LH_DEVICE void EndTurn(int tile) const {
    if (index_ == 0 || tiles_.Has(tile + 1)) PassTurn();
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
    if (tiles_.IsMasked(tile)) tiles_.Mask(tile, scores_);
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

  const Params& p_;
  const Tiles& tiles_;
  const int index_;
  const Shared<BF16> queries_;
  const Shared<float> unread_;  // of this warp group
  const KvRing<kHeadDim>& keys_;
  const KvRing<kHeadDim>& values_;
  float max_[2];  // of the raw scores
  float sum_[2];  // this lane's columns only, until Write
  ScoreRegisters scores_;
  WgmmaRegisters<uint32_t, kWeights> weights_;
  WgmmaRegisters<float, kOutput> output_;
};

}  // namespace longhaul::cuda::hopper
