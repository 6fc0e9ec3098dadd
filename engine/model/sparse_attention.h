// Prefill attention of one layer over the rows of one epoch: exact, or SampleAttention
// (arXiv 2406.15486) with its audit and repair. This file is the whole sparse pipeline; the ops it
// is made of are in kernels/args.h, what a request may choose in engine/sparse_policy.h.
//
// Used by the transformer, on the rank thread. Scratch comes from the caller's arena and is linear
// in the number of keys: mass is computed for as many kv heads at a time as fit kMassBytes.
#pragma once

#include <cstdint>

#include "engine/sparse_policy.h"
#include "engine/step_plan.h"
#include "kernels/backend.h"
#include "kernels/base/arena.h"

namespace longhaul {

// The mass of one range of kv heads, both its sum and its maximum; at least one kv head is taken.
inline constexpr int64_t kMassBytes = int64_t{64} << 20;

// How the rows of an epoch attend, the same in every layer.
struct EpochAttention {
  int64_t n_policy_rows = 0;  // rows [0, n_policy_rows) follow the policy; the rest, the end of the
                              // prompt that produces the answer, is exact
  EpochPolicy policy;
};

EpochAttention PlanEpochAttention(const SparseOptions& options, int64_t begin, int64_t end,
                                  int64_t prompt_tokens);

struct PrefillAttentionArgs {
  TensorView q;  // [T, H, D] f32
  int64_t q_begin = 0;
  KvView kv;  // n_tokens = q_begin + T
  const EpochAttention* epoch = nullptr;
  int64_t window = 0;      // of this layer's sliding window attention; 0 = none
  float* alpha = nullptr;  // [H] of this layer, host memory; steered by the audit
  TensorView out;          // [T, H, D] f32, written
};

// Where the layer's sliding window hides keys, rows attend to their window exactly, whatever the
// policy: it leaves nothing to choose from.
//
// Adds what it did to `report`: pairs of all rows; cells and recalls of the rows under a sparse
// policy. A recall is that of the attention used: 1 for the audit rows of dense and of repaired
// heads.
void RunPrefillAttention(const PrefillAttentionArgs& args, const ModelShape& shape,
                         Backend& backend, Arena& arena, SparseReport& report);

// Makes the largest allocations that RunPrefillAttention can make for epochs of n_q tokens and
// n_keys visible keys, under any options. For arenas in counting mode.
void CountPrefillAttention(const ModelShape& shape, int64_t n_q, int64_t n_keys, Arena& arena);

}  // namespace longhaul
