// What the attention kernels share: tiles of keys or values in shared memory, the products of the
// tensor cores on them, and the online softmax (Dao et al. 2022). Device code only.
//
// A tile is [rows, D] bf16 with kTilePad elements after each row. D is 64, 80, 96 or 128, so a row
// is an odd number of 16-byte pieces: the eight rows that ldmatrix reads at once lie in eight
// different groups of banks. A XOR swizzle does the same without the pad, but only for powers of 2.
//
// A warp computes kRowTiles times 16 rows. Fragments (see MmaBf16): lane l holds of row tile r the
// rows 16 r + l / 4 ("half" 0) and 16 r + l / 4 + 8 ("half" 1), and of each 8 columns
// 2 (l % 4) and 2 (l % 4) + 1. Element e of a fragment: half e / 2, column parity e % 2.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/kv_layout.h"

namespace longhaul::cuda {

inline constexpr int kTileKeys = 64;  // keys of a tile: one page
static_assert(kTileKeys == kPageTokens);
inline constexpr int kTilePad = 8;

template <int kHeadDim>
LH_HOST_DEVICE constexpr int TileElements(int n_rows) {
  return n_rows * (kHeadDim + kTilePad);
}

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

LH_DEVICE int MinOf(int a, int b) { return a < b ? a : b; }
LH_DEVICE int MaxOf(int a, int b) { return a > b ? a : b; }

// The score of a masked key.
LH_DEVICE float MinusInfinity() { return -INFINITY; }

// The 16 x 16 block at column `column` of the 16 rows of a tile, as the left operand.
template <int kHeadDim>
LH_DEVICE void LoadRowFragment(uint32_t (&a)[4], Shared<BF16> rows, int column) {
  const int lane = LaneId();
  LdMatrixX4(a, rows + (lane % 16 * (kHeadDim + kTilePad) + column + lane / 16 * 8));
}

// Adds q k^T of one step of 16 dimensions to the scores of all keys of a tile.
template <int kHeadDim, int kRowTiles, int kKeyTiles>
LH_DEVICE void AddScores(float (&scores)[kRowTiles][kKeyTiles][4],
                         const uint32_t (&q)[kRowTiles][4], Shared<BF16> keys, int column) {
  constexpr int kStride = kHeadDim + kTilePad;
  const int lane = LaneId();
  const int at = (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8 + column;
  LH_UNROLL
  for (int n = 0; n < kKeyTiles; n += 2) {
    uint32_t k[4];  // keys [8 n, 8 n + 8) in k[0..1], the next eight in k[2..3]
    LdMatrixX4(k, keys + (at + n * 8 * kStride));
    LH_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      MmaBf16(scores[r][n], q[r], k[0], k[1]);
      MmaBf16(scores[r][n + 1], q[r], k[2], k[3]);
    }
  }
}

// scores = q k^T with q [kRowTiles * 16, D] in shared memory.
template <int kHeadDim, int kRowTiles, int kKeyTiles>
LH_DEVICE void ComputeScores(float (&scores)[kRowTiles][kKeyTiles][4], Shared<BF16> q,
                             Shared<BF16> keys) {
  LH_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    LH_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      LH_UNROLL
      for (int e = 0; e < 4; ++e) scores[r][n][e] = 0.0f;
    }
  }
  LH_UNROLL
  for (int column = 0; column < kHeadDim; column += 16) {
    uint32_t a[kRowTiles][4];
    LH_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      LoadRowFragment<kHeadDim>(a[r], q + r * 16 * (kHeadDim + kTilePad), column);
    }
    AddScores<kHeadDim>(scores, a, keys, column);
  }
}

// output += weights v. weights: [16 kRowTiles, 8 kKeyTiles] bf16 in the fragments of the scores,
// the columns of one half packed: what the left operand takes.
template <int kHeadDim, int kRowTiles, int kKeyTiles>
LH_DEVICE void AddValues(float (&output)[kRowTiles][kHeadDim / 8][4],
                         const uint32_t (&weights)[kRowTiles][kKeyTiles][2], Shared<BF16> values) {
  constexpr int kStride = kHeadDim + kTilePad;
  const int lane = LaneId();
  const int at = lane % 16 * kStride + lane / 16 * 8;
  LH_UNROLL
  for (int n = 0; n < kKeyTiles; n += 2) {
    LH_UNROLL
    for (int d = 0; d < kHeadDim / 8; d += 2) {
      uint32_t v[4];
      LdMatrixX4Trans(v, values + (at + n * 8 * kStride + d * 8));
      LH_UNROLL
      for (int r = 0; r < kRowTiles; ++r) {
        const uint32_t a[4] = {weights[r][n][0], weights[r][n][1], weights[r][n + 1][0],
                               weights[r][n + 1][1]};
        MmaBf16(output[r][d], a, v[0], v[1]);
        MmaBf16(output[r][d + 1], a, v[2], v[3]);
      }
    }
  }
}

// ---- Online softmax ----

// Over the four lanes that share a row.
LH_DEVICE float RowMax(float x) {
  x = fmaxf(x, ShuffleXor(x, 1));
  return fmaxf(x, ShuffleXor(x, 2));
}
LH_DEVICE float RowSum(float x) {
  x += ShuffleXor(x, 1);
  return x + ShuffleXor(x, 2);
}

// Running softmax of a warp's rows over the tiles seen so far. Scores are raw products: the scale
// (> 0, times log2 e) is applied inside the exponential.
template <int kHeadDim, int kRowTiles>
struct SoftmaxState {
  float output[kRowTiles][kHeadDim / 8][4];  // not yet divided by the sum
  float max[kRowTiles][2];                   // of the raw scores
  float sum[kRowTiles][2];                   // this lane's columns only, until Finish

  LH_DEVICE void Clear() {
    LH_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      LH_UNROLL
      for (int half = 0; half < 2; ++half) {
        max[r][half] = MinusInfinity();
        sum[r][half] = 0.0f;
      }
      LH_UNROLL
      for (int d = 0; d < kHeadDim / 8; ++d) {
        LH_UNROLL
        for (int e = 0; e < 4; ++e) output[r][d][e] = 0.0f;
      }
    }
  }

  // Takes in the scores of further keys and gives their weights, for AddValues; masked scores are
  // -infinity.
  template <int kKeyTiles>
  LH_DEVICE void Update(const float (&scores)[kRowTiles][kKeyTiles][4],
                        uint32_t (&weights)[kRowTiles][kKeyTiles][2], float scale_log2) {
    LH_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      LH_UNROLL
      for (int half = 0; half < 2; ++half) UpdateRow(scores[r], weights[r], r, half, scale_log2);
    }
  }

  // The sums over all columns, and the log2 of the sum of 2^(scale * score); -infinity for a row
  // without keys. `inverse` is what the output is to be multiplied by.
  LH_DEVICE void Finish(int r, int half, float scale_log2, float& inverse, float& lse_log2) const {
    const float total = RowSum(sum[r][half]);
    inverse = total > 0.0f ? 1.0f / total : 0.0f;
    lse_log2 = total > 0.0f ? max[r][half] * scale_log2 + Log2Approx(total) : MinusInfinity();
  }

 private:
  template <int kKeyTiles>
  LH_DEVICE void UpdateRow(const float (&scores)[kKeyTiles][4], uint32_t (&weights)[kKeyTiles][2],
                           int r, int half, float scale_log2) {
    float tile_max = MinusInfinity();
    LH_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      tile_max = fmaxf(tile_max, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    const float new_max = fmaxf(max[r][half], RowMax(tile_max));
    // A row without any key so far: subtract 0, not -infinity, so that its weights are 0, not NaN.
    const float shift = new_max == MinusInfinity() ? 0.0f : new_max * scale_log2;
    const float decay = Exp2Approx(max[r][half] * scale_log2 - shift);
    max[r][half] = new_max;
    float tile_sum = 0.0f;
    LH_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      const float low = Exp2Approx(fmaf(scores[n][2 * half], scale_log2, -shift));
      const float high = Exp2Approx(fmaf(scores[n][2 * half + 1], scale_log2, -shift));
      tile_sum += low + high;
      weights[n][half] = PackBf16(low, high);
    }
    sum[r][half] = sum[r][half] * decay + tile_sum;
    LH_UNROLL
    for (int d = 0; d < kHeadDim / 8; ++d) {
      LH_UNROLL
      for (int e = 2 * half; e < 2 * half + 2; ++e) output[r][d][e] *= decay;
    }
  }
};

// ---- Merging partial results by log-sum-exp ----

// Partial results of rows: o already divided by its sum, lse in log2.
struct Partials {
  Global<float> output;  // [n, D] f32
  Global<float> lse;     // [n] f32, log2; -infinity: a part without keys
};

// One output row as the sum of n_parts partial rows, `index_of(i)` telling where part i stands.
// Called by a warp. Returns the log-sum-exp (log2).
template <int kHeadDim, class IndexOf>
LH_DEVICE float MergeRow(const Partials& partials, int n_parts, const IndexOf& index_of,
                         Global<BF16> out) {
  const int lane = LaneId();
  float max = MinusInfinity();
  for (int i = lane; i < n_parts; i += kWarpLanes) {
    const float lse = partials.lse[index_of(i)];
    max = fmaxf(max, lse);
  }
  max = WarpMax(max);
  const float shift = max == MinusInfinity() ? 0.0f : max;
  constexpr int kPairs = (kHeadDim / 2 + kWarpLanes - 1) / kWarpLanes;  // of columns, per lane
  F32x2 sum[kPairs] = {};
  float weights = 0.0f;
  for (int i = 0; i < n_parts; ++i) {
    const int64_t index = index_of(i);
    const float lse = partials.lse[index];
    const float weight = Exp2Approx(lse - shift);
    weights += weight;
    LH_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const int column = 2 * (lane + p * kWarpLanes);
      if (column >= kHeadDim) break;
      const F32x2 part = LoadVec<F32x2>(partials.output + (index * kHeadDim + column));
      sum[p].v[0] += weight * part.v[0];
      sum[p].v[1] += weight * part.v[1];
    }
  }
  const float inverse = weights > 0.0f ? 1.0f / weights : 0.0f;
  LH_UNROLL
  for (int p = 0; p < kPairs; ++p) {
    const int column = 2 * (lane + p * kWarpLanes);
    if (column >= kHeadDim) break;
    StoreVec(out + column, PackBf16(sum[p].v[0] * inverse, sum[p].v[1] * inverse));
  }
  return weights > 0.0f ? max + Log2Approx(weights) : MinusInfinity();
}

}  // namespace longhaul::cuda
