#include "engine/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace longhaul {
namespace {

// Activations of one forward pass, cut out of the arena in stack order. The same code counts and
// allocates.
struct BatchScratch {
  BatchScratch(const ModelConfig& config, int64_t n_rows, Arena& arena)
      : cos_sin(arena.Allocate(DType::kF32, {n_rows, config.rope.n_pairs, 2})),
        normed(arena.Allocate(DType::kF32, {n_rows, config.shape.hidden_size})) {}
  TensorView cos_sin;  // [T, P, 2] f32
  TensorView normed;   // [T, E] f32
};

struct AttentionScratch {
  AttentionScratch(const ModelShape& shape, int64_t n_rows, Arena& arena)
      : n_heads(shape.n_heads),
        n_kv_heads(shape.n_kv_heads),
        head_dim(shape.head_dim),
        qkv(arena.Allocate(DType::kF32, {n_rows, (n_heads + 2 * n_kv_heads) * head_dim})),
        attended(arena.Allocate(DType::kF32, {n_rows, n_heads * head_dim})) {}

  // Columns of the fused projection: [T, H or KH, D], rows strided.
  TensorView q() const { return Heads(0, n_heads); }
  TensorView k() const { return Heads(n_heads, n_kv_heads); }
  TensorView v() const { return Heads(n_heads + n_kv_heads, n_kv_heads); }
  TensorView Heads(int64_t first, int64_t n) const {
    return qkv.Columns(first * head_dim, (first + n) * head_dim).SplitColumns(n, head_dim);
  }

  int64_t n_heads, n_kv_heads, head_dim;
  TensorView qkv;       // [T, (H + 2 KH) D] f32
  TensorView attended;  // [T, H D] f32
};

struct FeedForwardScratch {
  FeedForwardScratch(int64_t intermediate_size, int64_t n_rows, Arena& arena)
      : gate_up(arena.Allocate(DType::kF32, {n_rows, 2 * intermediate_size})),
        gated(arena.Allocate(DType::kF32, {n_rows, intermediate_size})) {}
  TensorView gate_up;  // [T, 2 F] f32
  TensorView gated;    // [T, F] f32
};

int64_t* AllocatePositions(int64_t n_rows, Arena& arena) {
  const int64_t n_bytes = n_rows * static_cast<int64_t>(sizeof(int64_t));
  return reinterpret_cast<int64_t*>(arena.Allocate(DType::kU8, {n_bytes}).data());
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, const ModelWeights& weights, Backend& backend,
                         const KvLayout& layout, void* kv_pool)
    : config_(config),
      weights_(weights),
      backend_(backend),
      layout_(layout),
      kv_pool_(kv_pool),
      inv_freq_(InverseFrequencies(config.rope)) {}

void Transformer::Forward(const Batch& batch, TensorView x, TensorView logits, Arena& arena) {
  const ModelShape& shape = config_.shape;
  const float eps = config_.rms_norm_eps;
  const int64_t n_rows = x.dim(0);
  ArenaScope batch_scope(arena);
  const BatchScratch s(config_, n_rows, arena);

  backend_.RopeTable({.positions = batch.positions,
                      .inv_freq = inv_freq_.data(),
                      .scale = config_.rope.attention_factor,
                      .cos_sin = s.cos_sin});
  if (batch.layer_begin == 0) {
    backend_.Embed({.token_ids = batch.token_ids, .table = weights_.embedding, .out = x});
  }
  for (int32_t layer = batch.layer_begin; layer < batch.layer_end; ++layer) {
    const LayerWeights& w = weights_.layers[layer];
    for (KvView& kv : kvs_) kv.layer_offset_bytes = layer * layout_.LayerBytes();

    backend_.RmsNorm({.x = x, .weight = w.input_norm, .eps = eps, .out = s.normed});
    {
      ArenaScope attention_scope(arena);
      const AttentionScratch a(shape, n_rows, arena);
      backend_.Linear({.x = s.normed, .weight = w.qkv.get(), .bias = w.qkv_bias, .y = a.qkv});
      if (!w.q_norm.empty()) {
        backend_.RmsNorm({.x = a.q(), .weight = w.q_norm, .eps = eps, .out = a.q()});
        backend_.RmsNorm({.x = a.k(), .weight = w.k_norm, .eps = eps, .out = a.k()});
      }
      backend_.RopeKvWrite({.q = a.q(),
                            .k = a.k(),
                            .v = a.v(),
                            .cos_sin = s.cos_sin,
                            .positions = batch.positions,
                            .kvs = kvs_.data(),
                            .rows_per_kv = batch.rows_per_kv});
      Attend(batch, layer, a.q(), a.attended.SplitColumns(shape.n_heads, shape.head_dim), arena);
      backend_.Linear(
          {.x = a.attended, .weight = w.o.get(), .bias = w.o_bias, .accumulate = true, .y = x});
    }
    backend_.RmsNorm({.x = x, .weight = w.post_norm, .eps = eps, .out = s.normed});
    {
      ArenaScope feed_forward_scope(arena);
      const FeedForwardScratch f(config_.intermediate_size, n_rows, arena);
      backend_.Linear({.x = s.normed, .weight = w.gate_up.get(), .bias = {}, .y = f.gate_up});
      backend_.SwiGlu({.gate_up = f.gate_up, .out = f.gated});
      backend_.Linear(
          {.x = f.gated, .weight = w.down.get(), .bias = {}, .accumulate = true, .y = x});
    }
  }
  if (logits.empty()) return;
  const int64_t n_logits = logits.dim(0);
  const TensorView last = s.normed.Slice(0, n_logits);
  backend_.RmsNorm({.x = x.Slice(n_rows - n_logits, n_rows),
                    .weight = weights_.final_norm,
                    .eps = eps,
                    .out = last});
  backend_.Linear({.x = last, .weight = weights_.lm_head.get(), .bias = {}, .y = logits});
}

void Transformer::Attend(const Batch& batch, int32_t layer, TensorView q, TensorView out,
                         Arena& arena) {
  const ModelShape& shape = config_.shape;
  if (batch.epoch == nullptr) {
    backend_.AttendDecode({.q = q,
                           .kvs = kvs_.data(),
                           .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                           .window = config_.windows[layer],
                           .out = out});
    return;
  }
  RunPrefillAttention({.q = q,
                       .q_begin = batch.positions[0],
                       .kv = kvs_[0],
                       .epoch = batch.epoch,
                       .window = config_.windows[layer],
                       .alpha = batch.sparse_state->alpha.data() + int64_t{layer} * shape.n_heads,
                       .out = out},
                      shape, backend_, arena, *batch.report);
}

void Transformer::Prefill(const PrefillSlice& slice, TensorView hidden, TensorView logits,
                          Arena& arena, SparseReport& report) {
  const int64_t n_rows = slice.end - slice.begin;
  LH_CHECK(n_rows > 0 && hidden.dim(0) == n_rows);
  LH_CHECK(static_cast<int64_t>(slice.sparse_state->alpha.size()) ==
           int64_t{config_.shape.n_layers} * config_.shape.n_heads);
  ArenaScope scope(arena);
  int64_t* positions = AllocatePositions(n_rows, arena);
  std::iota(positions, positions + n_rows, slice.begin);
  kvs_.assign(1, layout_.View(kv_pool_, slice.pages.data(), slice.end, 0));
  const EpochAttention epoch =
      PlanEpochAttention(*slice.sparse, slice.begin, slice.end, slice.prompt_tokens);
  Forward({.token_ids = slice.tokens.data(),
           .positions = positions,
           .rows_per_kv = n_rows,
           .layer_begin = slice.layer_begin,
           .layer_end = slice.layer_end,
           .epoch = &epoch,
           .sparse_state = slice.sparse_state,
           .report = &report},
          hidden, logits, arena);
}

void Transformer::Decode(std::span<const DecodeRow> rows, TensorView logits, Arena& arena) {
  const int64_t n_rows = static_cast<int64_t>(rows.size());
  LH_CHECK(n_rows > 0 && logits.dim(0) == n_rows);
  ArenaScope scope(arena);
  const TensorView x = arena.Allocate(DType::kF32, {n_rows, config_.shape.hidden_size});
  int32_t* token_ids = arena.Allocate(DType::kI32, {n_rows}).As<int32_t>();
  int64_t* positions = AllocatePositions(n_rows, arena);
  kvs_.clear();
  for (int64_t i = 0; i < n_rows; ++i) {
    token_ids[i] = rows[i].token;
    positions[i] = rows[i].position;
    kvs_.push_back(layout_.View(kv_pool_, rows[i].pages.data(), rows[i].position + 1, 0));
  }
  Forward({.token_ids = token_ids,
           .positions = positions,
           .rows_per_kv = 1,
           .layer_begin = 0,
           .layer_end = config_.shape.n_layers},
          x, logits, arena);
}

int64_t Transformer::WorkspaceBytes(const ModelConfig& config, int64_t epoch_tokens,
                                    int64_t max_tokens, int64_t max_decode_rows) {
  const ModelShape& shape = config.shape;
  Arena arena;  // counting
  const auto count = [&](int64_t n_rows, bool prefill) {
    ArenaScope scope(arena);
    arena.Allocate(DType::kF32, {n_rows, shape.hidden_size});
    arena.Allocate(DType::kI32, {n_rows});
    AllocatePositions(n_rows, arena);
    BatchScratch batch(config, n_rows, arena);
    {
      ArenaScope attention_scope(arena);
      AttentionScratch attention(shape, n_rows, arena);
      if (prefill) CountPrefillAttention(shape, n_rows, max_tokens, arena);
    }
    FeedForwardScratch feed_forward(config.intermediate_size, n_rows, arena);
  };
  count(std::min(epoch_tokens, max_tokens), /*prefill=*/true);
  count(max_decode_rows, /*prefill=*/false);
  return arena.high_water_bytes();
}

}  // namespace longhaul
