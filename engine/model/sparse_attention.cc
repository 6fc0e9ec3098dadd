#include "engine/model/sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/checked_math.h"
#include "kernels/select_keys.h"

namespace longhaul {
namespace {

// Everything the pipeline writes in one layer besides its output and the records.
struct Scratch {
  uint8_t* choice = nullptr;   // [H] decided after pass 1
  TensorView lse_full;         // [H, R] f32
  TensorView lse_local;        // [H, R] f32
  TensorView lse_sparse;       // [T, H] f32
  SparsePlan plan;             // kind and kept_pairs belong to the records
  int64_t range_kv_heads = 0;  // kv heads whose mass is computed at a time
  TensorView mass_sum;         // [range_kv_heads * G, N] f32
  TensorView mass_max;         // [range_kv_heads * G, N] f32
  TensorView band_mass;        // [range_kv_heads * G, ceil(N / 64)] f32
};

struct ScratchShape {
  int64_t n_heads = 0;     // H
  int64_t n_kv_heads = 0;  // KH
  int64_t n_q = 0;         // T
  int64_t n_keys = 0;      // N
  int64_t n_rows = 0;      // R
  int64_t stripe_width = 1;
  bool mass = true;  // false: nothing is sampled (streaming)
  bool bands = true;
};

template <typename T>
T* AllocateArray(Arena& arena, DType dtype, int64_t n) {
  return arena.Allocate(dtype, {n}).As<T>();
}

void AllocatePlanLists(const ScratchShape& s, Arena& arena, SparsePlan& plan) {
  plan.n_stripes = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads);
  plan.n_bands = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads);
  if (!s.mass) return;
  // A head that wants more than half of all keys does not fit and becomes dense, which is cheaper.
  plan.max_stripes = CeilDiv(s.n_keys, 2 * s.stripe_width) + 1;
  plan.stripes = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads * plan.max_stripes);
  if (!s.bands) return;
  plan.max_bands = CeilDiv(s.n_keys, kBandWidth);
  plan.bands = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads * plan.max_bands);
}

Scratch AllocateScratch(const ScratchShape& s, Arena& arena) {
  Scratch scratch;
  scratch.choice = AllocateArray<uint8_t>(arena, DType::kU8, s.n_heads);
  scratch.lse_full = arena.Allocate(DType::kF32, {s.n_heads, s.n_rows});
  scratch.lse_local = arena.Allocate(DType::kF32, {s.n_heads, s.n_rows});
  scratch.lse_sparse = arena.Allocate(DType::kF32, {s.n_q, s.n_heads});
  AllocatePlanLists(s, arena, scratch.plan);
  if (!s.mass) return scratch;

  const int64_t group = s.n_heads / s.n_kv_heads;
  const int64_t kv_head_bytes =
      group * (2 * s.n_keys + CeilDiv(s.n_keys, kBandWidth)) * static_cast<int64_t>(sizeof(float));
  if (arena.counting()) {
    // Fewer keys take more kv heads at a time and may fill kMassBytes better than the most keys do.
    const int64_t n_bytes =
        std::min(std::max(kMassBytes, kv_head_bytes), s.n_kv_heads * kv_head_bytes);
    arena.Allocate(DType::kU8, {n_bytes + 3 * Arena::kAlignment});
    return scratch;
  }
  scratch.range_kv_heads = std::clamp<int64_t>(kMassBytes / kv_head_bytes, 1, s.n_kv_heads);
  const int64_t n_mass_heads = scratch.range_kv_heads * group;
  scratch.mass_sum = arena.Allocate(DType::kF32, {n_mass_heads, s.n_keys});
  scratch.mass_max = arena.Allocate(DType::kF32, {n_mass_heads, s.n_keys});
  if (s.bands) {
    scratch.band_mass = arena.Allocate(DType::kF32, {n_mass_heads, CeilDiv(s.n_keys, kBandWidth)});
  }
  return scratch;
}

// One layer under the policy: the steps below share these and are called in the order of Run().
class SparseLayerRun {
 public:
  // `layer` counts from the first of the slice.
  SparseLayerRun(const PrefillAttention::LayerArgs& args, const EpochAttention& epoch,
                 int64_t q_begin, const SliceRecords& records, int64_t layer, const int32_t* rows,
                 const HeadBudget* budgets, const ModelShape& shape, Backend& backend, Arena& arena)
      : policy_(epoch.policy),
        backend_(backend),
        n_heads_(shape.n_heads),
        n_kv_heads_(shape.n_kv_heads),
        n_q_(epoch.n_policy_rows),
        q_begin_(q_begin),
        scale_(1.0f / std::sqrt(static_cast<float>(shape.head_dim))),
        q_(args.q.Slice(0, n_q_)),
        dual_(args.dual.Slice(0, n_q_)),
        out_(args.out.Slice(0, n_q_)),
        kv_(args.kv),
        rows_(rows),
        budgets_(budgets),
        alpha_(records.Alpha(layer)),
        repair_(records.Repair(layer)),
        recall_(records.Recall(layer), DType::kF32, {n_heads_, records.n_audit}),
        s_(AllocateScratch(ScratchShape{.n_heads = n_heads_,
                                        .n_kv_heads = n_kv_heads_,
                                        .n_q = n_q_,
                                        .n_keys = q_begin_ + n_q_,
                                        .n_rows = static_cast<int64_t>(policy_.rows.size()),
                                        .stripe_width = policy_.stripe_width,
                                        .mass = policy_.sample,
                                        .bands = policy_.bands},
                           arena)) {
    kv_.n_tokens = q_begin_ + n_q_;
    s_.plan.kind = records.Kind(layer);
    s_.plan.kept_pairs = records.KeptPairs(layer);
    s_.plan.local = policy_.local;
    s_.plan.stripe_width = policy_.stripe_width;
  }

  void Run() {
    SampleRows();
    if (choice() != nullptr) SelectStreaming();
    if (policy_.sample) SelectByMass();
    backend_.AttendSparse({.q = q_,
                           .dual = dual_,
                           .q_begin = q_begin_,
                           .kv = kv_,
                           .scale = scale_,
                           .plan = s_.plan,
                           .out = out_,
                           .lse = s_.lse_sparse});
    AuditAndRepair();
  }

 private:
  int64_t n_rows() const { return static_cast<int64_t>(policy_.rows.size()); }
  // As published, no head is excused from sampling.
  uint8_t* choice() const { return policy_.scope == MassScope::kAll ? nullptr : s_.choice; }

  void SampleRows() {
    backend_.SampleLse({.q = q_,
                        .dual = dual_,
                        .q_begin = q_begin_,
                        .kv = kv_,
                        .scale = scale_,
                        .local = policy_.local,
                        .rows = rows_,
                        .n_rows = n_rows(),
                        .lse_full = s_.lse_full,
                        .lse_local = s_.lse_local});
  }

  void SelectStreaming() {
    backend_.SelectStreaming({.q_begin = q_begin_,
                              .n_q = n_q_,
                              .n_voting = policy_.n_voting,
                              .lse_full = s_.lse_full,
                              .lse_local = s_.lse_local,
                              .alpha = alpha_,
                              .target = policy_.recall_target,
                              .lost = policy_.lost_row,
                              .budget_rows = policy_.budget_rows,
                              .choice = choice(),
                              .plan = s_.plan});
  }

  void SelectByMass() {
    const int64_t group = n_heads_ / n_kv_heads_;
    for (int64_t begin = 0; begin < n_kv_heads_; begin += s_.range_kv_heads) {
      const int64_t end = std::min(begin + s_.range_kv_heads, n_kv_heads_);
      const int64_t n_mass_heads = (end - begin) * group;
      const TensorView mass_sum = s_.mass_sum.Slice(0, n_mass_heads);
      const TensorView mass_max = s_.mass_max.Slice(0, n_mass_heads);
      const TensorView band_mass =
          policy_.bands ? s_.band_mass.Slice(0, n_mass_heads) : TensorView();
      backend_.SampleMass({.q = q_,
                           .dual = dual_,
                           .q_begin = q_begin_,
                           .kv = kv_,
                           .scale = scale_,
                           .local = policy_.local,
                           .scope = policy_.scope,
                           .rows = rows_,
                           .n_voting = policy_.n_voting,
                           .kv_head_begin = begin,
                           .kv_head_end = end,
                           .choice = choice(),
                           .lse_full = s_.lse_full,
                           .mass_sum = mass_sum,
                           .mass_max = mass_max,
                           .band_mass = band_mass});
      if (!policy_.fixed_budgets) {
        backend_.SelectKeys({.q_begin = q_begin_,
                             .n_q = n_q_,
                             .n_voting = policy_.n_voting,
                             .scope = policy_.scope,
                             .head_begin = begin * group,
                             .lse_full = s_.lse_full,
                             .lse_local = s_.lse_local,
                             .mass_sum = mass_sum,
                             .mass_max = mass_max,
                             .band_mass = band_mass,
                             .alpha = alpha_,
                             .choice = choice(),
                             .keep_max = policy_.keep_max,
                             .dense_cost_fraction = policy_.dense_cost_fraction,
                             .plan = s_.plan});
      }
      if (budgets_ != nullptr) {
        backend_.SelectBudget({.q_begin = q_begin_,
                               .n_q = n_q_,
                               .head_begin = begin * group,
                               .mass_sum = mass_sum,
                               .band_mass = band_mass,
                               .budgets = budgets_,
                               .choice = choice(),
                               .plan = s_.plan});
      }
    }
  }

  void AuditAndRepair() {
    backend_.Audit({.rows = rows_,
                    .n_voting = policy_.n_voting,
                    .n_rows = n_rows(),
                    .lse_full = s_.lse_full,
                    .lse_sparse = s_.lse_sparse,
                    .floor = policy_.recall_floor,
                    .target = policy_.recall_target,
                    .lost = policy_.lost_row,
                    .kind = s_.plan.kind,
                    .recall = recall_,
                    .repair = repair_,
                    .alpha = alpha_});
    // Mostly no head is to be repaired; a backend finds that out for itself, cheaper than a wait.
    backend_.AttendDense({.q = q_,
                          .dual = dual_,
                          .q_begin = q_begin_,
                          .kv = kv_,
                          .scale = scale_,
                          .head_mask = repair_,
                          .out = out_,
                          .lse = {}});
  }

  const EpochPolicy& policy_;
  Backend& backend_;
  const int64_t n_heads_;
  const int64_t n_kv_heads_;
  const int64_t n_q_;
  const int64_t q_begin_;
  const float scale_;
  const TensorView q_;  // [n_q, H, D] act
  const DualChunkQueries dual_;
  const TensorView out_;             // [n_q, H, D] act
  KvView kv_;                        // n_tokens = q_begin + n_q
  const int32_t* const rows_;        // [R]
  const HeadBudget* const budgets_;  // [H] of this layer, or null
  float* const alpha_;               // [H] of this layer, as the next three
  uint8_t* const repair_;            // [H]
  const TensorView recall_;          // [H, n_audit] f32
  Scratch s_;
};

// (row, key) pairs of rows [begin, end) that see the last `window` keys each.
int64_t WindowPairs(int64_t begin, int64_t end, int64_t window) {
  const int64_t n_growing = std::clamp(window, begin, end) - begin;  // rows with fewer keys
  return CausalPairs({begin, begin + n_growing}) + (end - begin - n_growing) * window;
}

}  // namespace

EpochAttention PlanEpochAttention(const SparseOptions& options, int64_t begin, int64_t end,
                                  int64_t prompt_tokens) {
  const int64_t tail_begin = std::clamp(prompt_tokens - options.dense_tail_tokens, begin, end);
  EpochAttention epoch;
  if (tail_begin > begin) epoch.policy = ResolveEpoch(options, begin, tail_begin - begin);
  epoch.n_policy_rows = epoch.policy.dense ? 0 : tail_begin - begin;
  return epoch;
}

int64_t SliceRecords::NumBytes() const {
  const auto per_cell =
      static_cast<int64_t>(sizeof(int64_t) + sizeof(float) + sizeof(int32_t) + sizeof(uint8_t)) +
      n_audit * static_cast<int64_t>(sizeof(float));
  return n_layers * n_heads * per_cell;
}

// The widest first, so that each array is aligned.
int64_t* SliceRecords::KeptPairs(int64_t layer) const {
  return reinterpret_cast<int64_t*>(block) + layer * n_heads;
}
float* SliceRecords::Alpha(int64_t layer) const {
  return reinterpret_cast<float*>(KeptPairs(n_layers)) + layer * n_heads;
}
float* SliceRecords::Recall(int64_t layer) const {
  return Alpha(n_layers) + layer * n_heads * n_audit;
}
int32_t* SliceRecords::Kind(int64_t layer) const {
  return reinterpret_cast<int32_t*>(Recall(n_layers)) + layer * n_heads;
}
uint8_t* SliceRecords::Repair(int64_t layer) const {
  return reinterpret_cast<uint8_t*>(Kind(n_layers)) + layer * n_heads;
}

PrefillAttention::PrefillAttention(const Slice& slice, const ModelShape& shape, Backend& backend,
                                   Arena& arena)
    : slice_(slice), shape_(shape), backend_(backend), arena_(arena) {
  const EpochPolicy& policy = slice.epoch->policy;
  const int64_t n_layers = slice.layer_end - slice.layer_begin;
  sampled_.resize(n_layers, false);
  if (slice.epoch->n_policy_rows == 0) return;
  const auto n_rows = static_cast<int64_t>(policy.rows.size());
  records_ = {.n_layers = n_layers, .n_heads = shape.n_heads, .n_audit = n_rows - policy.n_voting};
  records_.block = AllocateArray<std::byte>(arena, DType::kU8, records_.NumBytes());
  rows_ = AllocateArray<int32_t>(arena, DType::kI32, n_rows);
  backend.Upload(policy.rows.data(), rows_, n_rows * static_cast<int64_t>(sizeof(int32_t)));
  const int64_t n_cells = n_layers * shape.n_heads;
  if (policy.HasBudgets()) UploadBudgets(policy);
  const int64_t alpha_bytes = n_cells * static_cast<int64_t>(sizeof(float));
  if (policy.sample) {
    backend.Upload(slice.alpha, records_.Alpha(0), alpha_bytes);
  } else {  // streaming keeps the local keys whatever they hold
    backend.Upload(std::vector<float>(n_cells, 0.0f).data(), records_.Alpha(0), alpha_bytes);
  }
}

void PrefillAttention::UploadBudgets(const EpochPolicy& policy) {
  std::vector<HeadBudget> budgets;
  for (int32_t layer = slice_.layer_begin; layer < slice_.layer_end; ++layer) {
    for (int32_t head = 0; head < shape_.n_heads; ++head) {
      budgets.push_back(policy.BudgetOf(layer, head));
    }
  }
  const auto n_bytes = static_cast<int64_t>(budgets.size() * sizeof(HeadBudget));
  budgets_ = reinterpret_cast<HeadBudget*>(AllocateArray<std::byte>(arena_, DType::kU8, n_bytes));
  backend_.Upload(budgets.data(), budgets_, n_bytes);
}

void PrefillAttention::Run(const LayerArgs& args) {
  ArenaScope scope(arena_);
  const int64_t n_q = args.q.dim(0);
  const int64_t end = slice_.q_begin + slice_.n_q;
  const bool windowed = args.window > 0 && args.window < end;
  const bool exact = windowed || n_q < slice_.n_q;
  const int64_t n_policy_rows = exact ? 0 : slice_.epoch->n_policy_rows;
  if (n_policy_rows > 0) {
    const int64_t layer = args.layer - slice_.layer_begin;
    sampled_[layer] = true;
    const HeadBudget* budgets = budgets_ == nullptr ? nullptr : budgets_ + layer * shape_.n_heads;
    SparseLayerRun(args, *slice_.epoch, slice_.q_begin, records_, layer, rows_, budgets, shape_,
                   backend_, arena_)
        .Run();
  }
  if (n_policy_rows == n_q) return;
  const int64_t exact_begin = end - n_q + n_policy_rows;
  backend_.AttendDense({.q = args.q.Slice(n_policy_rows, n_q),
                        .dual = args.dual.Slice(n_policy_rows, n_q),
                        .q_begin = exact_begin,
                        .kv = args.kv,
                        .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                        .window = windowed ? args.window : 0,
                        .head_mask = nullptr,
                        .out = args.out.Slice(n_policy_rows, n_q),
                        .lse = {}});
  exact_pairs_ += shape_.n_heads * (windowed ? WindowPairs(exact_begin, end, args.window)
                                             : CausalPairs({exact_begin, end}));
}

void PrefillAttention::Finish(SparseReport& report) {
  report.kept_pairs += exact_pairs_;
  report.causal_pairs += exact_pairs_;
  if (std::find(sampled_.begin(), sampled_.end(), true) == sampled_.end()) return;
  std::vector<std::byte> copy(records_.NumBytes());
  backend_.Download(records_.block, copy.data(), records_.NumBytes());
  backend_.Synchronize();
  SliceRecords records = records_;
  records.block = copy.data();
  for (int64_t layer = 0; layer < records.n_layers; ++layer) {
    if (!sampled_[layer]) continue;
    if (slice_.epoch->policy.sample) {
      std::copy_n(records.Alpha(layer), shape_.n_heads, slice_.alpha + layer * shape_.n_heads);
    }
    Report(layer, records, report);
  }
}

void PrefillAttention::Report(int64_t layer, const SliceRecords& records,
                              SparseReport& report) const {
  const int64_t q_begin = slice_.q_begin;
  const int64_t dense_pairs = CausalPairs({q_begin, q_begin + slice_.epoch->n_policy_rows});
  for (int64_t head = 0; head < shape_.n_heads; ++head) {
    const auto kind = static_cast<HeadKind>(records.Kind(layer)[head]);
    const bool repaired = records.Repair(layer)[head] != 0;
    const bool exact = repaired || kind == HeadKind::kDense;
    report.kept_pairs += exact ? dense_pairs : records.KeptPairs(layer)[head];
    report.causal_pairs += dense_pairs;
    ++report.n_head_epochs;
    if (repaired) {
      ++report.n_repaired;
    } else if (kind == HeadKind::kDense) {
      ++report.n_dense;
    } else if (kind == HeadKind::kStreaming) {
      ++report.n_streaming;
    }
    const float* recall = records.Recall(layer) + head * records.n_audit;
    for (int64_t i = 0; i < records.n_audit; ++i) report.AddRecall(exact ? 1.0f : recall[i]);
    if (report.heads.empty()) continue;
    HeadReport cell{.kept_pairs = exact ? dense_pairs : records.KeptPairs(layer)[head],
                    .causal_pairs = dense_pairs,
                    .n_epochs = 1,
                    .n_streaming = !exact && kind == HeadKind::kStreaming,
                    .n_dense = exact,
                    .n_recalls = records.n_audit};
    for (int64_t i = 0; i < records.n_audit; ++i) {
      // Written so that NaN counts as lost.
      cell.recall_sum += exact ? 1.0 : recall[i] >= 0 ? double{recall[i]} : 0.0;
    }
    report.heads[(slice_.layer_begin + layer) * shape_.n_heads + head].Merge(cell);
  }
}

void PrefillAttention::CountSlice(const ModelShape& shape, int64_t n_q, Arena& arena) {
  const int64_t n_rows = MaxEpochRows(n_q);
  const SliceRecords records{
      .n_layers = shape.n_layers, .n_heads = shape.n_heads, .n_audit = n_rows};
  AllocateArray<uint8_t>(arena, DType::kU8, records.NumBytes());
  AllocateArray<int32_t>(arena, DType::kI32, n_rows);
  AllocateArray<uint8_t>(
      arena, DType::kU8,
      int64_t{shape.n_layers} * shape.n_heads * static_cast<int64_t>(sizeof(HeadBudget)));
}

void PrefillAttention::CountLayer(const ModelShape& shape, int64_t n_q, int64_t n_keys,
                                  Arena& arena) {
  ArenaScope scope(arena);
  AllocateScratch(ScratchShape{.n_heads = shape.n_heads,
                               .n_kv_heads = shape.n_kv_heads,
                               .n_q = n_q,
                               .n_keys = n_keys,
                               .n_rows = MaxEpochRows(n_q)},
                  arena);
}

}  // namespace longhaul
