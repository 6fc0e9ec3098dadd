// The queries of a call, of which dual chunk attention (DualChunkQueries of args.h) has three
// forms: which of them a row meets a key with is told by how many chunks lie between the two.
// Filled on the host, read on the device.
//
// A kernel keeps one form of each of its rows at a time and takes the keys chunk by chunk: within a
// chunk of keys no row changes its form, so products, masks and softmax are those of plain
// attention. A model without dual chunk attention has one chunk, longer than any context.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/args.h"
#include "kernels/base/check.h"
#include "kernels/cuda/attention_tiles.cuh"

namespace longhaul::cuda {

struct QueryForms {
  Global<const BF16> own;  // [T, H, D] for keys of the row's own chunk
  Global<const BF16> next;
  Global<const BF16> far;
  int64_t own_stride = 0;
  int64_t next_stride = 0;
  int64_t far_stride = 0;
  int32_t chunk_tiles = std::numeric_limits<int32_t>::max();  // of kTileKeys keys

  LH_DEVICE int ChunkOfTile(int tile) const { return tile / chunk_tiles; }
  LH_DEVICE int ChunkOf(int position) const { return ChunkOfTile(position / kTileKeys); }
  // The first key of a chunk; the largest int32 behind the last one.
  LH_DEVICE int FirstKey(int chunk) const {
    const int64_t key = int64_t{chunk} * chunk_tiles * kTileKeys;
    return static_cast<int>(std::min<int64_t>(key, std::numeric_limits<int32_t>::max()));
  }
  LH_DEVICE bool IsChunkBegin(int tile) const { return tile % chunk_tiles == 0; }

  // The row of query `token`, which stands at `position`, for keys of a chunk: [H, D]. Keys of
  // later chunks are masked, whatever the form.
  LH_DEVICE Global<const BF16> Row(int64_t token, int position, int key_chunk) const {
    if (!next) return own + token * own_stride;  // saves plain attention the division
    const int n_chunks_back = ChunkOf(position) - key_chunk;
    if (n_chunks_back <= 0) return own + token * own_stride;
    return n_chunks_back == 1 ? next + token * next_stride : far + token * far_stride;
  }
};

inline QueryForms MakeQueryForms(const TensorView& q, const DualChunkQueries& dual) {
  QueryForms forms;
  forms.own = q.As<BF16>();
  forms.own_stride = q.stride(0);
  if (dual.chunk_tokens == 0) return forms;
  forms.next = dual.next.As<BF16>();
  forms.far = dual.far.As<BF16>();
  forms.next_stride = dual.next.stride(0);
  forms.far_stride = dual.far.stride(0);
  LH_CHECK(forms.next_stride % 8 == 0 && forms.far_stride % 8 == 0);  // copied 16 bytes at a time
  forms.chunk_tiles = static_cast<int32_t>(
      std::min<int64_t>(dual.chunk_tokens / kTileKeys, std::numeric_limits<int32_t>::max()));
  return forms;
}

}  // namespace longhaul::cuda
