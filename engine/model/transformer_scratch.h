// The activations of one forward pass, cut out of an arena in stack order. The same code counts and
// allocates: Transformer::WorkspaceBytes runs these constructors on an arena that only counts. Of
// transformer.cc alone; on its thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "engine/model/model_config.h"
#include "kernels/args.h"
#include "kernels/base/arena.h"

namespace longhaul {

struct BatchScratch {
  BatchScratch(const ModelConfig& config, DType act, int64_t n_rows, Arena& arena)
      : cos_sin(arena.Allocate(DType::kF32, {n_rows, config.rope.n_pairs, 2})),
        normed(arena.Allocate(act, {n_rows, config.shape.hidden_size})) {
    if (!config.UsesDualChunk()) return;
    next_cos_sin = arena.Allocate(DType::kF32, {n_rows, config.rope.n_pairs, 2});
    far_cos_sin = arena.Allocate(DType::kF32, {n_rows, config.rope.n_pairs, 2});
  }
  TensorView cos_sin;       // [T, P, 2] f32
  TensorView next_cos_sin;  // [T, P, 2] f32, or empty: plain attention
  TensorView far_cos_sin;   // [T, P, 2] f32, or empty
  TensorView normed;        // [T, E] act
};

struct AttentionScratch {
  AttentionScratch(const ModelConfig& config, DType act, int64_t n_rows, Arena& arena)
      : n_heads(config.shape.n_heads),
        n_kv_heads(config.shape.n_kv_heads),
        head_dim(config.shape.head_dim),
        qkv(arena.Allocate(act, {n_rows, (n_heads + 2 * n_kv_heads) * head_dim})),
        attended(arena.Allocate(act, {n_rows, n_heads * head_dim})) {
    if (!config.UsesDualChunk()) return;
    dual.next = arena.Allocate(act, {n_rows, n_heads, head_dim});
    dual.far = arena.Allocate(act, {n_rows, n_heads, head_dim});
    dual.chunk_tokens = config.dual_chunk.chunk_tokens;
  }

  // Columns of the fused projection: [T, H or KH, D], rows strided.
  TensorView q() const { return Heads(0, n_heads); }
  TensorView k() const { return Heads(n_heads, n_kv_heads); }
  TensorView v() const { return Heads(n_heads + n_kv_heads, n_kv_heads); }
  TensorView Heads(int64_t first, int64_t n) const {
    return qkv.Columns(first * head_dim, (first + n) * head_dim).SplitColumns(n, head_dim);
  }

  int64_t n_heads, n_kv_heads, head_dim;
  TensorView qkv;         // [T, (H + 2 KH) D] act
  TensorView attended;    // [T, H D] act
  DualChunkQueries dual;  // of q; off where the model has none
};

struct FeedForwardScratch {
  FeedForwardScratch(int64_t intermediate_size, DType act, int64_t n_rows, Arena& arena)
      : gate_up(arena.Allocate(act, {n_rows, 2 * intermediate_size})),
        gated(arena.Allocate(act, {n_rows, intermediate_size})) {}
  TensorView gate_up;  // [T, 2 F] act
  TensorView gated;    // [T, F] act
};

// Of a mixture of experts with n_experts in this layer.
struct ExpertScratch {
  ExpertScratch(const ModelConfig& config, DType act, int64_t n_experts, int64_t n_rows,
                Arena& arena)
      : n_chosen(std::min<int64_t>(config.experts.n_chosen, n_experts)),
        logits(arena.Allocate(DType::kF32, {n_rows, n_experts})),
        chosen(arena.Allocate(DType::kI32, {n_rows, n_chosen})),
        shares(arena.Allocate(DType::kF32, {n_rows, n_chosen})),
        rows(arena.Allocate(DType::kI32, {n_rows * n_chosen}).As<int32_t>()),
        row_shares(arena.Allocate(DType::kF32, {n_rows * n_chosen}).As<float>()),
        gathered(arena.Allocate(act, {n_rows, config.shape.hidden_size})),
        result(arena.Allocate(DType::kF32, {n_rows, config.shape.hidden_size})),
        feed_forward(config.experts.intermediate_size, act, n_rows, arena) {}

  int64_t n_chosen;     // K
  TensorView logits;    // [T, X] f32
  TensorView chosen;    // [T, K] i32
  TensorView shares;    // [T, K] f32
  int32_t* rows;        // [T K] grouped by expert, as the next
  float* row_shares;    // [T K]
  TensorView gathered;  // [T, E] act, rows of one expert: all of them at most
  TensorView result;    // [T, E] f32
  FeedForwardScratch feed_forward;
};

// The (row, expert) pairs of a batch on the host, sorted by expert, rows ascending: those of expert
// x are [ends[x], ends[x + 1]) of rows and row_shares.
struct ExpertGroups {
  // chosen, shares: [T, n_chosen].
  ExpertGroups(const std::vector<int32_t>& chosen, const std::vector<float>& shares,
               int64_t n_chosen, int64_t n_experts)
      : ends(n_experts + 1, 0), rows(chosen.size()), row_shares(chosen.size()) {
    for (int32_t expert : chosen) ++ends[expert];
    int32_t begin = 0;  // counts become first places, which move to the ends as they are filled
    for (int64_t x = 0; x < n_experts; ++x) begin += std::exchange(ends[x], begin);
    for (size_t i = 0; i < chosen.size(); ++i) {
      const int32_t at = ends[chosen[i]]++;
      rows[at] = static_cast<int32_t>(static_cast<int64_t>(i) / n_chosen);
      row_shares[at] = shares[i];
    }
    std::copy_backward(ends.begin(), ends.end() - 1, ends.end());
    ends[0] = 0;
  }

  std::vector<int32_t> ends;      // [X + 1]
  std::vector<int32_t> rows;      // [T K]
  std::vector<float> row_shares;  // [T K]
};

}  // namespace longhaul
