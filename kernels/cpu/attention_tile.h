// The SIMD part of CPU attention: operations on one tile of up to 64 keys, compiled for SSE4, AVX2
// and AVX-512 and chosen at run time. Pure functions on f32 arrays; which tiles a row visits, and
// which keys of a tile it sees, is decided by the callers in plain C++ as one 64-bit mask per row.
//
// Every value is computed by one chain of multiply-adds per output element in index order, so
// a row's bits do not depend on how many rows are in the call. Thread safe; allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/base/dtype.h"
#include "kernels/base/fp8.h"

namespace longhaul::cpu {

inline constexpr int64_t kTileKeys = 64;
// Rows of values and of output accumulators are padded to this many floats: one AVX-512 vector.
inline constexpr int64_t kPadFloats = 16;
// Mask of a row that sees the whole tile.
inline constexpr uint64_t kAllKeys = ~uint64_t{0};

constexpr int64_t PaddedDim(int64_t head_dim) {
  return (head_dim + kPadFloats - 1) / kPadFloats * kPadFloats;
}

// Rows of fp8 are widened to the number times 2^-8: its bits, moved into an f16, which instruction
// sets convert. So what brings a row to its value is this, of the row's scale.
inline float TileFactorF8(uint8_t scale) { return 0x1p8f * RowFactorF8(scale); }

// What the products of a tile multiply: f32, or bf16 in pairs of neighbours in the sum, low half
// first, which AVX512-BF16 multiplies and adds to an f32 in one step: twice the work per
// instruction. Pairs ask for queries and weights rounded to bf16; scores, the softmax, its sums and
// the outputs are f32 with either.
enum class TileWord : uint8_t { kF32, kBF16Pair };
// Words of n numbers in a row.
constexpr int64_t WordsOf(TileWord word, int64_t n) {
  return word == TileWord::kF32 ? n : (n + 1) / 2;
}
// Pairs where keys and values are bf16 numbers (those of kF8E4M3 are), head_dim is even and the
// processor multiplies them.
TileWord TileWordFor(DType kv_dtype, int64_t head_dim);

// packed[d] = q[d] * factor.
struct PackQueryArgs {
  TileWord word;
  const float* q;  // [D]
  float factor;
  int64_t head_dim;
  void* packed;  // [WordsOf(D)] words, written
};
void PackQuery(const PackQueryArgs& args);

// kt[d, c] = rows[c][d] for n_keys rows; columns [n_keys, 64) are zero.
struct PackKeysArgs {
  TileWord word;            // kBF16Pair: of kBF16 and even head_dim only, see TileWordFor
  const void* const* rows;  // [n_keys] pointers to [D] of dtype
  int64_t n_keys;           // in [1, 64]
  int64_t head_dim;
  DType dtype;           // kF32, kBF16 or kF8E4M3
  const float* factors;  // [64] TileFactorF8 of each row, of kF8E4M3; 0 from n_keys on
  void* kt;              // [WordsOf(D), 64] words, written
};
void PackKeys(const PackKeysArgs& args);

// bf16[c, d] = rows[c][d] of kF8E4M3, exactly, for n_keys rows: what pairs are packed from.
struct WidenF8Args {
  const void* const* rows;  // [n_keys] pointers to [D]
  int64_t n_keys;
  int64_t head_dim;
  const float* factors;  // as in PackKeysArgs
  BF16* bf16;            // [n_keys, D] written
};
void WidenF8(const WidenF8Args& args);

// v[c, d] = rows[c][d]; columns [D, PaddedDim(D)) are zero, and so is the partner of an odd last
// key.
struct PackValuesArgs {
  TileWord word;            // as in PackKeysArgs
  const void* const* rows;  // [n_keys] pointers to [D] of dtype
  int64_t n_keys;
  int64_t head_dim;
  DType dtype;
  const float* factors;  // as in PackKeysArgs
  void* v;               // [WordsOf(n_keys), PaddedDim(D)] words, written
};
void PackValues(const PackValuesArgs& args);

// Online softmax state of n rows, in base 2: the queries are scaled by scale * log2(e) beforehand.
// `max` is a reference, not the exact maximum: it moves only when a score exceeds it by
// kMaxSlack, so most tiles need neither a horizontal maximum nor a rescale. Where weights are
// rounded it is the maximum: a row that sees little but one key then loses nothing, the weight of
// that key being 1.
struct RowStates {
  float* max;  // [n] starts at kNoScore
  float* sum;  // [n, 16] sum of exp2(score - max), partial sums per SIMD lane; starts at 0
};
inline constexpr float kNoScore = -1e30f;
inline constexpr float kMaxSlack = 8.0f;  // weights stay below 2^8

// Memory that the next tile will be packed from, fetched into L2 while this one is computed: pages
// of a long sequence lie scattered, so the hardware does not see the next one coming. Worth 15 % at
// 128K.
struct TilePrefetch {
  const void* const* rows = nullptr;
  int64_t n_rows = 0;
  int64_t row_bytes = 0;
};

// Queries of a tile call: scaled, packed rows.
struct TileQueries {
  TileWord word;
  const void* q;  // [n, WordsOf(D)] words
  int64_t n_rows;
  int64_t head_dim;
  const void* kt;           // [WordsOf(D), 64] words from PackKeys
  const uint64_t* visible;  // [n] bit c: the row sees key c; null = every row sees all 64
  TilePrefetch next = {};
};

// Adds one tile to rows of attention: state and o.
struct AttendTileArgs {
  TileQueries in;
  const void* v;   // [WordsOf(n_keys), PaddedDim(D)] words from PackValues
  int64_t n_keys;  // keys from here on are visible to no row and their values are not read
  RowStates states;
  float* o;  // [n, PaddedDim(D)] sum of exp2(score - max) * v, the weights as words
};
void AttendTile(const AttendTileArgs& args);

// Adds one tile to the log-sum-exp of rows.
struct LseTileArgs {
  TileQueries in;
  RowStates states;
};
void LseTile(const LseTileArgs& args);

// Softmax mass of one tile over rows whose log-sum-exp is known, per key and per diagonal band.
struct MassTileArgs {
  TileQueries in;
  const float* lse2;  // [n] log-sum-exp in base 2
  float* mass_sum;    // [64] written: sum over rows
  float* mass_max;    // [64] written: maximum over rows
  // Row r crosses one band border inside the tile: the keys in band_split[r] add to
  // bands[band[r] + 1], the others to bands[band[r]]. Null = no bands.
  const uint64_t* band_split;  // [n]
  const int32_t* band;         // [n]
  float* bands;                // [*, 16] added to, partial sums per SIMD lane
};
void MassTile(const MassTileArgs& args);

// o[r] / sum[r], and the natural log-sum-exp; a row that saw nothing gives zeros and -inf.
float FinishRow(float max, const float* sum, const float* o, int64_t head_dim, float* out);
// The log-sum-exp alone, base 2.
float Lse2(float max, const float* sum);

// Name of the instruction set that is used here: "AVX3".
const char* TileTargetName();

}  // namespace longhaul::cpu
