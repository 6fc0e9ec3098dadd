#include "engine/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/model/transformer_scratch.h"

namespace longhaul {
namespace {

int64_t BytesOf(int64_t n, size_t element_bytes) { return n * static_cast<int64_t>(element_bytes); }

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
  const DType act = backend_.activation_dtype();
  const int64_t n_rows = x.dim(0);
  ArenaScope batch_scope(arena);
  const BatchScratch s(config_, act, n_rows, arena);

  const DualPositions& dual = batch.dual;
  RopeTable(dual.q_scale == nullptr ? batch.positions : dual.own, s.cos_sin);
  if (dual.q_scale != nullptr) {
    RopeTable(dual.next, s.next_cos_sin);
    RopeTable(dual.far, s.far_cos_sin);
  }
  if (batch.layer_begin == 0) {
    backend_.Embed({.token_ids = batch.token_ids, .table = weights_.embedding, .out = x});
  }
  for (int32_t layer = batch.layer_begin; layer < batch.layer_end; ++layer) {
    const LayerWeights& w = weights_.layers[layer];
    for (KvView& kv : kvs_) kv.layer_offset_bytes = layer * layout_.LayerBytes();

    // Behind the keys and values of the last layer, only rows that are read go on.
    const int64_t first = layer + 1 == shape.n_layers ? n_rows - batch.n_read : 0;
    const TensorView rows = x.Slice(first, n_rows);

    {
      ArenaScope attention_scope(arena);
      const AttentionScratch a(config_, act, n_rows, arena);
      backend_.NormLinear({.x = x, .weight = w.input_norm, .eps = eps, .out = s.normed},
                          {.x = s.normed, .weight = w.qkv.get(), .bias = w.qkv_bias, .y = a.qkv});
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
                            .kvs_copy = batch.kvs_copy,
                            .rows_per_kv = batch.rows_per_kv,
                            .dual = {.next_cos_sin = s.next_cos_sin,
                                     .far_cos_sin = s.far_cos_sin,
                                     .q_scale = dual.q_scale,
                                     .next = a.dual.next,
                                     .far = a.dual.far}});
      if (first == n_rows) break;
      const TensorView attended = a.attended.Slice(first, n_rows);
      Attend(batch, layer, a.q().Slice(first, n_rows), a.dual.Slice(first, n_rows),
             attended.SplitColumns(shape.n_heads, shape.head_dim));
      backend_.Linear(
          {.x = attended, .weight = w.o.get(), .bias = w.o_bias, .accumulate = true, .y = rows});
    }
    FeedForward(w, s.normed.Slice(first, n_rows), rows, arena);
  }
  if (!logits.empty()) Logits(x.Slice(n_rows - logits.dim(0), n_rows), logits, arena);
}

void Transformer::RopeTable(const int64_t* positions, TensorView cos_sin) {
  backend_.RopeTable({.positions = positions,
                      .inv_freq = inv_freq_.data(),
                      .scale = config_.rope.attention_factor,
                      .cos_sin = cos_sin});
}

Transformer::DualPositions Transformer::UploadDualPositions(Arena& arena) {
  if (!config_.UsesDualChunk()) return {};
  const DualChunkConfig& dual = config_.dual_chunk;
  std::vector<int64_t> own, next, far;
  std::vector<float> q_scale;
  for (int64_t position : positions_) {
    own.push_back(dual.Own(position));
    next.push_back(dual.Next(position));
    far.push_back(dual.Far());
    q_scale.push_back(dual.Scale(position));
  }
  return {.own = UploadArray<int64_t>(own, arena),
          .next = UploadArray<int64_t>(next, arena),
          .far = UploadArray<int64_t>(far, arena),
          .q_scale = UploadArray<float>(q_scale, arena)};
}

void Transformer::Logits(TensorView hidden, TensorView logits, Arena& arena) {
  ArenaScope scope(arena);
  const TensorView normed =
      arena.Allocate(backend_.activation_dtype(), {hidden.dim(0), config_.shape.hidden_size});
  backend_.NormLinear(
      {.x = hidden, .weight = weights_.final_norm, .eps = config_.rms_norm_eps, .out = normed},
      {.x = normed, .weight = weights_.lm_head.get(), .bias = {}, .y = logits});
}

void Transformer::FeedForward(const LayerWeights& weights, TensorView normed, TensorView x,
                              Arena& arena) {
  ArenaScope scope(arena);
  const DType act = backend_.activation_dtype();
  const int64_t n_rows = x.dim(0);
  const RmsNormArgs norm{
      .x = x, .weight = weights.post_norm, .eps = config_.rms_norm_eps, .out = normed};
  if (weights.experts.empty()) {
    const ExpertWeights& w = weights.feed_forward;
    const FeedForwardScratch f(config_.intermediate_size, act, n_rows, arena);
    backend_.NormLinear(norm, {.x = normed, .weight = w.gate_up.get(), .bias = {}, .y = f.gate_up});
    backend_.SwiGluLinear(
        {.gate_up = f.gate_up, .out = f.gated},
        {.x = f.gated, .weight = w.down.get(), .bias = {}, .accumulate = true, .y = x});
    return;
  }
  backend_.RmsNorm(norm);
  Experts(weights, normed, x, arena);
}

void Transformer::Experts(const LayerWeights& weights, TensorView normed, TensorView x,
                          Arena& arena) {
  const int64_t n_rows = x.dim(0);
  const auto n_experts = static_cast<int64_t>(weights.experts.size());
  const ExpertScratch s(config_, backend_.activation_dtype(), n_experts, n_rows, arena);
  backend_.Linear({.x = normed, .weight = weights.router.get(), .bias = {}, .y = s.logits});
  backend_.RouteExperts({.logits = s.logits,
                         .renormalize = config_.experts.renormalize,
                         .experts = s.chosen,
                         .weights = s.shares});
  // The host must know how many rows each expert gets: the one place where a layer waits for it.
  const int64_t n_pairs = n_rows * s.n_chosen;
  std::vector<int32_t> chosen(n_pairs);
  std::vector<float> shares(n_pairs);
  backend_.Download(s.chosen.data(), chosen.data(), BytesOf(n_pairs, sizeof(int32_t)));
  backend_.Download(s.shares.data(), shares.data(), BytesOf(n_pairs, sizeof(float)));
  backend_.Synchronize();
  const ExpertGroups groups(chosen, shares, s.n_chosen, n_experts);
  backend_.Upload(groups.rows.data(), s.rows, BytesOf(n_pairs, sizeof(int32_t)));
  backend_.Upload(groups.row_shares.data(), s.row_shares, BytesOf(n_pairs, sizeof(float)));
  // Experts in their order, so that a row's sum does not depend on the rows beside it.
  for (int64_t expert = 0; expert < n_experts; ++expert) {
    const int64_t begin = groups.ends[expert];
    const int64_t n = groups.ends[expert + 1] - begin;
    if (n == 0) continue;
    const ExpertWeights& w = weights.experts[expert];
    const TensorView gate_up = s.feed_forward.gate_up.Slice(0, n);
    const TensorView gated = s.feed_forward.gated.Slice(0, n);
    const TensorView gathered = s.gathered.Slice(0, n);
    const TensorView result = s.result.Slice(0, n);
    backend_.GatherRows({.x = normed, .rows = s.rows + begin, .out = gathered});
    backend_.Linear({.x = gathered, .weight = w.gate_up.get(), .bias = {}, .y = gate_up});
    backend_.SwiGluLinear({.gate_up = gate_up, .out = gated},
                          {.x = gated, .weight = w.down.get(), .bias = {}, .y = result});
    backend_.ScatterAddRows(
        {.x = result, .rows = s.rows + begin, .weights = s.row_shares + begin, .out = x});
  }
}

void Transformer::Attend(const Batch& batch, int32_t layer, TensorView q,
                         const DualChunkQueries& dual, TensorView out) {
  if (batch.prefill == nullptr) {
    backend_.AttendDecode({.q = q,
                           .dual = dual,
                           .kvs = kvs_.data(),
                           .kvs_copy = batch.kvs_copy,
                           .scale = 1.0f / std::sqrt(static_cast<float>(config_.shape.head_dim)),
                           .window = config_.windows[layer],
                           .out = out});
    return;
  }
  batch.prefill->Run({.layer = layer,
                      .q = q,
                      .dual = dual,
                      .kv = kvs_[0],
                      .window = config_.windows[layer],
                      .out = out});
}

template <typename T>
T* Transformer::UploadArray(std::span<const T> values, Arena& arena) {
  const int64_t n_bytes = BytesOf(static_cast<int64_t>(values.size()), sizeof(T));
  void* data = arena.Allocate(DType::kU8, {n_bytes}).data();
  backend_.Upload(values.data(), data, n_bytes);
  return static_cast<T*>(data);
}

void Transformer::Prefill(const PrefillSlice& slice, TensorView hidden, TensorView logits,
                          Arena& arena, SparseReport& report) {
  const int64_t n_rows = slice.end - slice.begin;
  const int64_t n_heads = config_.shape.n_heads;
  std::vector<float>& alpha = slice.sparse_state->alpha;
  LH_CHECK(n_rows > 0 && hidden.dim(0) == n_rows);
  LH_CHECK(logits.empty() || slice.NReadRows() > 0);
  LH_CHECK(static_cast<int64_t>(alpha.size()) == config_.shape.n_layers * n_heads);
  ArenaScope scope(arena);
  const std::span<const int32_t> pages =
      slice.pages.first(static_cast<size_t>(CeilDiv(slice.end, kPageTokens)));
  kvs_.assign(1, layout_.View(kv_pool_, UploadArray(pages, arena), slice.end, 0));
  positions_.resize(n_rows);
  std::iota(positions_.begin(), positions_.end(), slice.begin);
  const EpochAttention epoch =
      PlanEpochAttention(*slice.sparse, slice.begin, slice.end, slice.prompt_tokens);
  PrefillAttention attention({.q_begin = slice.begin,
                              .n_q = n_rows,
                              .layer_begin = slice.layer_begin,
                              .layer_end = slice.layer_end,
                              .epoch = &epoch,
                              .alpha = alpha.data() + slice.layer_begin * n_heads},
                             config_.shape, backend_, arena);
  Forward({.token_ids = UploadArray(slice.tokens, arena),
           .positions = UploadArray<int64_t>(positions_, arena),
           .dual = UploadDualPositions(arena),
           .rows_per_kv = n_rows,
           .n_read = slice.NReadRows(),
           .kvs_copy = UploadArray<KvView>(kvs_, arena),
           .layer_begin = slice.layer_begin,
           .layer_end = slice.layer_end,
           .prefill = &attention},
          hidden, logits, arena);
  attention.Finish(report);
}

Transformer::Batch Transformer::UploadDecode(std::span<const DecodeRow> rows, int64_t n_places,
                                             int64_t page_capacity, Arena& arena) {
  positions_.clear();
  std::vector<int32_t> token_ids;
  std::vector<int32_t> pages;  // of all rows, one after the other
  for (const DecodeRow& row : rows) {
    token_ids.push_back(row.token);
    positions_.push_back(row.position);
    pages.insert(pages.end(), row.pages.begin(),
                 row.pages.begin() + row.position / kPageTokens + 1);
  }
  token_ids.resize(n_places);  // a place that is nobody's has no keys, which says it all
  positions_.resize(n_places);
  LH_CHECK(static_cast<int64_t>(pages.size()) <= page_capacity);
  auto* row_pages = arena.Allocate(DType::kI32, {page_capacity}).As<int32_t>();
  backend_.Upload(pages.data(), row_pages,
                  BytesOf(static_cast<int64_t>(pages.size()), sizeof(int32_t)));
  kvs_.clear();
  for (const DecodeRow& row : rows) {
    kvs_.push_back(layout_.View(kv_pool_, row_pages, row.position + 1, 0));
    row_pages += row.position / kPageTokens + 1;
  }
  kvs_.resize(n_places, layout_.View(kv_pool_, row_pages, 0, 0));
  return {.token_ids = UploadArray<int32_t>(token_ids, arena),
          .positions = UploadArray<int64_t>(positions_, arena),
          .dual = UploadDualPositions(arena),
          .rows_per_kv = 1,
          .n_read = n_places,
          .kvs_copy = UploadArray<KvView>(kvs_, arena),
          .layer_begin = 0,
          .layer_end = config_.shape.n_layers};
}

void Transformer::Decode(std::span<const DecodeRow> rows, TensorView logits, Arena& arena) {
  const auto n_rows = static_cast<int64_t>(rows.size());
  LH_CHECK(n_rows > 0 && logits.dim(0) == n_rows);
  ArenaScope scope(arena);
  const TensorView x = arena.Allocate(DType::kF32, {n_rows, config_.shape.hidden_size});
  int64_t n_pages = 0;
  for (const DecodeRow& row : rows) n_pages += row.position / kPageTokens + 1;
  Forward(UploadDecode(rows, n_rows, n_pages, arena), x, logits, arena);
}

void Transformer::ReplayDecode(std::span<const DecodeRow> rows, TensorView logits, Arena& arena) {
  const int64_t n_places = logits.dim(0);
  LH_CHECK(!rows.empty() && static_cast<int64_t>(rows.size()) <= n_places && can_replay());
  ArenaScope scope(arena);
  const TensorView x = arena.Allocate(DType::kF32, {n_places, config_.shape.hidden_size});
  const int64_t page_capacity = n_places * CeilDiv(config_.rope.context_tokens, kPageTokens);
  const Batch batch = UploadDecode(rows, n_places, page_capacity, arena);
  backend_.Replay(n_places, [&] { Forward(batch, x, logits, arena); });
}

int64_t Transformer::WorkspaceBytes(const ModelConfig& config, DType act, int64_t epoch_tokens,
                                    int64_t max_tokens, int64_t max_decode_rows) {
  const ModelShape& shape = config.shape;
  Arena arena;  // counting
  const auto count = [&](int64_t n_rows, bool prefill) {
    ArenaScope scope(arena);
    const int64_t n_sequences = prefill ? 1 : n_rows;
    arena.Allocate(DType::kF32, {n_rows, shape.hidden_size});
    arena.Allocate(DType::kI32, {n_rows});                       // tokens
    const int64_t n_positions = config.UsesDualChunk() ? 5 : 1;  // q_scale with the others
    for (int64_t i = 0; i < n_positions; ++i) {
      arena.Allocate(DType::kU8, {BytesOf(n_rows, sizeof(int64_t))});
    }
    for (int64_t i = 0; i < n_sequences; ++i) {
      arena.Allocate(DType::kI32, {CeilDiv(max_tokens, kPageTokens)});
    }
    arena.Allocate(DType::kU8, {BytesOf(n_sequences, sizeof(KvView))});
    if (prefill) PrefillAttention::CountSlice(shape, n_rows, arena);
    BatchScratch batch(config, act, n_rows, arena);
    {
      ArenaScope attention_scope(arena);
      AttentionScratch attention(config, act, n_rows, arena);
      if (prefill) PrefillAttention::CountLayer(shape, n_rows, max_tokens, arena);
    }
    {
      ArenaScope feed_forward_scope(arena);
      FeedForwardScratch feed_forward(config.intermediate_size, act, n_rows, arena);
    }
    {
      ArenaScope logits_scope(arena);
      arena.Allocate(act, {n_rows, shape.hidden_size});
    }
    if (config.experts.max_experts > 0) {
      ExpertScratch experts(config, act, config.experts.max_experts, n_rows, arena);
    }
  };
  count(std::min(epoch_tokens, max_tokens), /*prefill=*/true);
  count(max_decode_rows, /*prefill=*/false);
  return arena.high_water_bytes();
}

}  // namespace longhaul
