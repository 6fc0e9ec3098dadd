// What the two kernels of sparse prefill attention are told alike. Filled on the host, read on the
// device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/dual_chunk.cuh"
#include "kernels/cuda/kv_tiles.cuh"

namespace longhaul::cuda {

struct SparseParams {
  Global<const BF16> q;  // [T, H, D]
  QueryForms queries;    // q and its other forms
  Global<BF16> out;      // [T, H, D]
  Global<float> lse;     // [T, H] natural logarithm
  PagedKv kv;
  int64_t q_stride = 0;
  int64_t out_stride = 0;
  int64_t lse_stride = 0;
  int32_t q_begin = 0;
  int32_t n_tokens = 0;  // T
  int32_t n_heads = 0;
  int32_t group = 1;
  int32_t n_row_tiles = 0;
  int32_t n_places = 2;  // of the ring: 2 or 4
  float scale_log2 = 0;
  // The plan.
  int32_t sink = 0;
  int32_t window = 0;
  int32_t stripe_width = 1;
  int64_t max_stripes = 0;
  int64_t max_bands = 0;
  Global<const int32_t> kind;
  Global<const int32_t> n_stripes;
  Global<const int32_t> stripes;
  Global<const int32_t> n_bands;
  Global<const int32_t> bands;
  Global<const int64_t> kept_pairs;
  // Made by the first kernel of the call.
  Global<int32_t> head_order;    // [H] the head with the most work first
  Global<int64_t> copies_begin;  // [H] first key of the head's copies; -1: gathered from the pages
  Global<BF16> copies;           // of a head with n keys: [n, D] keys, then [n, D] values
  int64_t copies_from_pool = 0;  // bytes
  int64_t most_copies = 0;       // keys
};

// The parameters of a call with at least one row, for blocks of block_rows rows, their last members
// in `scratch` (AttendSparseScratchBytes) and filled there by a kernel that this starts.
[[nodiscard]] cudaError_t PrepareSparse(const AttendSparseArgs& args, const StripeCopies& copies,
                                        int64_t block_rows, std::byte* scratch, cudaStream_t stream,
                                        SparseParams* params);

}  // namespace longhaul::cuda
