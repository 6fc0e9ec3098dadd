#include "engine/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

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

// Of a mixture of experts with n_experts in this layer.
struct ExpertScratch {
  ExpertScratch(const ModelConfig& config, int64_t n_experts, int64_t n_rows, Arena& arena)
      : n_chosen(std::min<int64_t>(config.experts.n_chosen, n_experts)),
        logits(arena.Allocate(DType::kF32, {n_rows, n_experts})),
        chosen(arena.Allocate(DType::kI32, {n_rows, n_chosen})),
        shares(arena.Allocate(DType::kF32, {n_rows, n_chosen})),
        ends(arena.Allocate(DType::kI32, {n_experts + 1}).As<int32_t>()),
        rows(arena.Allocate(DType::kI32, {n_rows * n_chosen}).As<int32_t>()),
        row_shares(arena.Allocate(DType::kF32, {n_rows * n_chosen}).As<float>()),
        gathered(arena.Allocate(DType::kF32, {n_rows, config.shape.hidden_size})),
        result(arena.Allocate(DType::kF32, {n_rows, config.shape.hidden_size})),
        feed_forward(config.experts.intermediate_size, n_rows, arena) {}

  // Sorts the (row, expert) pairs by expert, rows ascending: those of expert x are
  // [ends[x], ends[x + 1]) of rows and row_shares afterwards.
  void GroupByExpert() {
    const int64_t n_rows = chosen.dim(0);
    const int64_t n_experts = logits.dim(1);
    std::fill_n(ends, n_experts + 1, 0);
    for (int64_t i = 0; i < n_rows * n_chosen; ++i) ++ends[chosen.As<int32_t>()[i]];
    int32_t begin = 0;  // counts become first places, which move to the ends as they are filled
    for (int64_t x = 0; x < n_experts; ++x) begin += std::exchange(ends[x], begin);
    for (int64_t t = 0; t < n_rows; ++t) {
      for (int64_t i = 0; i < n_chosen; ++i) {
        const int32_t at = ends[chosen.Row<int32_t>(t)[i]]++;
        rows[at] = static_cast<int32_t>(t);
        row_shares[at] = shares.Row<float>(t)[i];
      }
    }
    std::copy_backward(ends, ends + n_experts, ends + n_experts + 1);
    ends[0] = 0;
  }

  int64_t n_chosen;     // K
  TensorView logits;    // [T, X] f32
  TensorView chosen;    // [T, K] i32
  TensorView shares;    // [T, K] f32
  int32_t* ends;        // [X + 1]
  int32_t* rows;        // [T K]
  float* row_shares;    // [T K]
  TensorView gathered;  // [T, E] f32, rows of one expert: all of them at most
  TensorView result;    // [T, E] f32
  FeedForwardScratch feed_forward;
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
    FeedForward(w, s.normed, x, arena);
  }
  if (!logits.empty()) Logits(x.Slice(n_rows - logits.dim(0), n_rows), logits, arena);
}

void Transformer::Logits(TensorView hidden, TensorView logits, Arena& arena) {
  ArenaScope scope(arena);
  const TensorView normed = arena.Allocate(DType::kF32, {hidden.dim(0), config_.shape.hidden_size});
  backend_.RmsNorm(
      {.x = hidden, .weight = weights_.final_norm, .eps = config_.rms_norm_eps, .out = normed});
  backend_.Linear({.x = normed, .weight = weights_.lm_head.get(), .bias = {}, .y = logits});
}

void Transformer::FeedForward(const LayerWeights& weights, TensorView normed, TensorView x,
                              Arena& arena) {
  ArenaScope scope(arena);
  const int64_t n_rows = x.dim(0);
  if (weights.experts.empty()) {
    const ExpertWeights& w = weights.feed_forward;
    const FeedForwardScratch f(config_.intermediate_size, n_rows, arena);
    backend_.Linear({.x = normed, .weight = w.gate_up.get(), .bias = {}, .y = f.gate_up});
    backend_.SwiGlu({.gate_up = f.gate_up, .out = f.gated});
    backend_.Linear({.x = f.gated, .weight = w.down.get(), .bias = {}, .accumulate = true, .y = x});
    return;
  }
  const auto n_experts = static_cast<int64_t>(weights.experts.size());
  ExpertScratch s(config_, n_experts, n_rows, arena);
  backend_.Linear({.x = normed, .weight = weights.router.get(), .bias = {}, .y = s.logits});
  backend_.RouteExperts({.logits = s.logits,
                         .renormalize = config_.experts.renormalize,
                         .experts = s.chosen,
                         .weights = s.shares});
  backend_.Synchronize();
  s.GroupByExpert();
  // Experts in their order, so that a row's sum does not depend on the rows beside it.
  for (int64_t expert = 0; expert < n_experts; ++expert) {
    const int64_t begin = s.ends[expert];
    const int64_t n = s.ends[expert + 1] - begin;
    if (n == 0) continue;
    const ExpertWeights& w = weights.experts[expert];
    const TensorView gate_up = s.feed_forward.gate_up.Slice(0, n);
    const TensorView gated = s.feed_forward.gated.Slice(0, n);
    const TensorView gathered = s.gathered.Slice(0, n);
    const TensorView result = s.result.Slice(0, n);
    backend_.GatherRows({.x = normed, .rows = s.rows + begin, .out = gathered});
    backend_.Linear({.x = gathered, .weight = w.gate_up.get(), .bias = {}, .y = gate_up});
    backend_.SwiGlu({.gate_up = gate_up, .out = gated});
    backend_.Linear({.x = gated, .weight = w.down.get(), .bias = {}, .y = result});
    backend_.ScatterAddRows(
        {.x = result, .rows = s.rows + begin, .weights = s.row_shares + begin, .out = x});
  }
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
    {
      ArenaScope feed_forward_scope(arena);
      FeedForwardScratch feed_forward(config.intermediate_size, n_rows, arena);
    }
    {
      ArenaScope logits_scope(arena);
      arena.Allocate(DType::kF32, {n_rows, shape.hidden_size});
    }
    if (config.experts.max_experts > 0) {
      ExpertScratch experts(config, config.experts.max_experts, n_rows, arena);
    }
  };
  count(std::min(epoch_tokens, max_tokens), /*prefill=*/true);
  count(max_decode_rows, /*prefill=*/false);
  return arena.high_water_bytes();
}

}  // namespace longhaul
