// What the two kernels of dense prefill attention are told alike: which rows, which keys they see,
// and how blocks share the work. Filled on the host, read on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cuda/attention_dense.h"
#include "kernels/cuda/attention_tiles.cuh"

namespace longhaul::cuda {

// A "packed row" is one query head of one token: row r of head block b stands for token r / pack
// and query head b * pack + r % pack. pack = G fills the tiles of short calls; pack = 1 where
// single heads are left out.
struct DenseRows {
  Global<const BF16> q;
  Global<BF16> out;
  Global<float> lse;                // [T, H] natural logarithm, or null
  Global<const uint8_t> head_mask;  // [H], or null
  int64_t q_stride = 0;
  int64_t out_stride = 0;
  int64_t lse_stride = 0;
  int32_t q_begin = 0;
  int32_t key_begin = 0;
  int32_t key_end = 0;
  int32_t window = 0;  // the largest int32 where there is none
  int32_t n_rows = 0;  // packed
  int32_t pack = 1;
  int32_t group = 1;
  int32_t n_row_tiles = 0;
  int32_t n_head_blocks = 0;
  int32_t section_blocks = 1;  // head blocks whose keys and values share the L2 cache
  float scale_log2 = 0;
};

// Keys that the rows see together, at most.
inline int64_t SeenKeys(const DenseRows& p) {
  return std::min<int64_t>(p.key_end - p.key_begin, int64_t{p.window} + p.n_rows / p.pack);
}

// For blocks of block_rows packed rows that take block_keys keys at a time; args.q is not empty.
inline DenseRows MakeDenseRows(const AttendDenseArgs& args, const KeyRange& keys,
                               const DeviceLimits& limits, int64_t pack, int64_t block_rows,
                               int64_t block_keys) {
  const int64_t n_tokens = args.q.dim(0);
  const int64_t n_heads = args.q.dim(1);
  const int64_t n_keys = args.q_begin + n_tokens;
  LH_CHECK(args.scale > 0);
  LH_CHECK(n_keys <= std::numeric_limits<int32_t>::max() - block_keys);
  LH_CHECK(0 <= keys.begin && keys.begin <= keys.end);
  LH_CHECK(args.q.stride(0) % 8 == 0 && args.out.stride(0) % 2 == 0);

  const int64_t group = n_heads / args.kv.n_kv_heads;
  DenseRows p;
  p.q = static_cast<const BF16*>(args.q.data());
  p.out = static_cast<BF16*>(args.out.data());
  p.lse = args.lse.empty() ? nullptr : static_cast<float*>(args.lse.data());
  p.head_mask = args.head_mask;
  p.q_stride = args.q.stride(0);
  p.out_stride = args.out.stride(0);
  p.lse_stride = args.lse.empty() ? 0 : args.lse.stride(0);
  p.q_begin = static_cast<int32_t>(args.q_begin);
  p.key_begin = static_cast<int32_t>(std::min(keys.begin, n_keys));
  p.key_end = static_cast<int32_t>(std::min(keys.end, n_keys));
  p.window = static_cast<int32_t>(args.window == 0 ? n_keys : std::min(args.window, n_keys));
  p.n_rows = static_cast<int32_t>(n_tokens * pack);
  p.pack = static_cast<int32_t>(pack);
  p.group = static_cast<int32_t>(group);
  p.n_row_tiles = static_cast<int32_t>(CeilDiv(n_tokens * pack, block_rows));
  p.n_head_blocks = static_cast<int32_t>(n_heads / pack);
  p.scale_log2 = args.scale * kLog2E;

  const int64_t head_bytes = 2 * SeenKeys(p) * args.kv.RowBytes();
  const int64_t kv_heads_in_l2 = std::clamp<int64_t>(
      limits.l2_bytes / 2 / std::max<int64_t>(head_bytes, 1), 1, args.kv.n_kv_heads);
  p.section_blocks = static_cast<int32_t>(kv_heads_in_l2 * (group / pack));
  return p;
}

}  // namespace longhaul::cuda
