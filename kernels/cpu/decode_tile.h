// Attention of a few rows over one page: the decode kernel. With one row per query head there is
// too little arithmetic to pay for transposing keys (attention_tile.h), so keys and values are used
// as they lie, in address order, and the limit is memory. Compiled for SSE4, AVX2 and AVX-512 and
// chosen at run time; thread safe; allocates nothing.
//
// A row's bits do not depend on how many rows are in the call.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/cpu/attention_tile.h"

namespace longhaul::cpu {

// One page and the query heads of its kv head.
struct DecodeTileArgs {
  const float* q;    // [n_rows, D] f32 scaled, packed
  int64_t n_rows;    // G
  int64_t head_dim;  // D, see DecodeTileTakes
  DType dtype;       // kF32, kBF16 or kF8E4M3
  // [64, D] each, as in a page. The scales of kF8E4M3 are [64] bytes.
  const void* keys;
  const void* values;
  const uint8_t* key_scales;
  const uint8_t* value_scales;
  int64_t n_keys;    // in [1, 64]; later keys may be read, their values are not
  uint64_t visible;  // bit c: the rows see key c
  // What comes next, fetched meanwhile; null = nothing. Pages lie scattered, and a core's own
  // prefetch stops at each border of 4 KiB.
  const void* next_keys;
  RowStates states;
  float* o;  // [n_rows, PaddedDim(D)] as in AttendTileArgs
};
void DecodeTile(const DecodeTileArgs& args);

// Whether DecodeTile can be used: rows of whole vectors, 16 floats wide at most.
constexpr bool DecodeTileTakes(int64_t head_dim) { return head_dim % kPadFloats == 0; }

}  // namespace longhaul::cpu
