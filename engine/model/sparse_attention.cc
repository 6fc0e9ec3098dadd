#include "engine/model/sparse_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/checked_math.h"
#include "kernels/select_keys.h"

namespace longhaul {
namespace {

// Everything the pipeline writes besides its output, in backend memory.
struct Scratch {
  int32_t* rows = nullptr;    // [R]
  float* alpha = nullptr;     // [H]
  uint8_t* skip = nullptr;    // [H] plan entry final after pass 1
  uint8_t* repair = nullptr;  // [H]
  TensorView lse_full;        // [H, R] f32
  TensorView lse_local;       // [H, R] f32
  TensorView lse_sparse;      // [T, H] f32
  TensorView recall;          // [H, R - n_voting] f32
  SparsePlan plan;
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
  int64_t n_audit = 0;
  int64_t stripe_width = 1;
  bool mass = true;  // false: nothing is sampled (streaming)
  bool bands = true;
};

template <typename T>
T* AllocateArray(Arena& arena, DType dtype, int64_t n) {
  return arena.Allocate(dtype, {n}).As<T>();
}

void AllocatePlanLists(const ScratchShape& s, Arena& arena, SparsePlan& plan) {
  plan.kind = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads);
  plan.n_stripes = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads);
  plan.n_bands = AllocateArray<int32_t>(arena, DType::kI32, s.n_heads);
  plan.kept_pairs = reinterpret_cast<int64_t*>(
      AllocateArray<uint8_t>(arena, DType::kU8, s.n_heads * static_cast<int64_t>(sizeof(int64_t))));
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
  scratch.rows = AllocateArray<int32_t>(arena, DType::kI32, s.n_rows);
  scratch.alpha = AllocateArray<float>(arena, DType::kF32, s.n_heads);
  scratch.skip = AllocateArray<uint8_t>(arena, DType::kU8, s.n_heads);
  scratch.repair = AllocateArray<uint8_t>(arena, DType::kU8, s.n_heads);
  scratch.lse_full = arena.Allocate(DType::kF32, {s.n_heads, s.n_rows});
  scratch.lse_local = arena.Allocate(DType::kF32, {s.n_heads, s.n_rows});
  scratch.lse_sparse = arena.Allocate(DType::kF32, {s.n_q, s.n_heads});
  scratch.recall = arena.Allocate(DType::kF32, {s.n_heads, s.n_audit});
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

// One sparse run: the steps below share these and are called in the order of Run().
class SparseEpochRun {
 public:
  SparseEpochRun(const PrefillAttentionArgs& args, const ModelShape& shape, Backend& backend,
                 Arena& arena)
      : policy_(args.epoch->policy),
        backend_(backend),
        n_heads_(shape.n_heads),
        n_kv_heads_(shape.n_kv_heads),
        n_q_(args.epoch->n_policy_rows),
        q_begin_(args.q_begin),
        scale_(1.0f / std::sqrt(static_cast<float>(shape.head_dim))),
        q_(args.q.Slice(0, n_q_)),
        out_(args.out.Slice(0, n_q_)),
        kv_(args.kv),
        s_(AllocateScratch(
            ScratchShape{.n_heads = n_heads_,
                         .n_kv_heads = n_kv_heads_,
                         .n_q = n_q_,
                         .n_keys = q_begin_ + n_q_,
                         .n_rows = static_cast<int64_t>(policy_.rows.size()),
                         .n_audit = static_cast<int64_t>(policy_.rows.size()) - policy_.n_voting,
                         .stripe_width = policy_.stripe_width,
                         .mass = policy_.sample,
                         .bands = policy_.bands},
            arena)) {
    kv_.n_tokens = q_begin_ + n_q_;
    std::copy(policy_.rows.begin(), policy_.rows.end(), s_.rows);
    s_.plan.local = policy_.local;
    s_.plan.stripe_width = policy_.stripe_width;
    // Streaming keeps the local keys whatever they hold.
    if (policy_.sample) {
      std::copy_n(args.alpha, n_heads_, s_.alpha);
    } else {
      std::fill_n(s_.alpha, n_heads_, 0.0f);
    }
  }

  void Run(float* alpha, SparseReport& report) {
    SampleRows();
    SelectStreaming();
    if (policy_.sample) SelectByMass();
    backend_.AttendSparse({.q = q_,
                           .q_begin = q_begin_,
                           .kv = kv_,
                           .scale = scale_,
                           .plan = s_.plan,
                           .out = out_,
                           .lse = s_.lse_sparse});
    AuditAndRepair();
    if (policy_.sample) std::copy_n(s_.alpha, n_heads_, alpha);
    Report(report);
  }

 private:
  int64_t n_rows() const { return static_cast<int64_t>(policy_.rows.size()); }

  void SampleRows() {
    backend_.SampleLse({.q = q_,
                        .q_begin = q_begin_,
                        .kv = kv_,
                        .scale = scale_,
                        .local = policy_.local,
                        .rows = s_.rows,
                        .n_rows = n_rows(),
                        .lse_full = s_.lse_full,
                        .lse_local = s_.lse_local});
  }

  void SelectStreaming() {
    if (policy_.scope == MassScope::kAll) {  // as published, no head is excused from sampling
      std::fill_n(s_.skip, n_heads_, uint8_t{0});
      return;
    }
    backend_.SelectStreaming({.q_begin = q_begin_,
                              .n_q = n_q_,
                              .n_voting = policy_.n_voting,
                              .lse_full = s_.lse_full,
                              .lse_local = s_.lse_local,
                              .alpha = s_.alpha,
                              .skip = s_.skip,
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
                           .q_begin = q_begin_,
                           .kv = kv_,
                           .scale = scale_,
                           .local = policy_.local,
                           .scope = policy_.scope,
                           .rows = s_.rows,
                           .n_voting = policy_.n_voting,
                           .kv_head_begin = begin,
                           .kv_head_end = end,
                           .skip = s_.skip,
                           .lse_full = s_.lse_full,
                           .mass_sum = mass_sum,
                           .mass_max = mass_max,
                           .band_mass = band_mass});
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
                           .alpha = s_.alpha,
                           .skip = s_.skip,
                           .keep_max = policy_.keep_max,
                           .dense_cost_fraction = policy_.dense_cost_fraction,
                           .plan = s_.plan});
    }
  }

  void AuditAndRepair() {
    backend_.Audit({.rows = s_.rows,
                    .n_voting = policy_.n_voting,
                    .n_rows = n_rows(),
                    .lse_full = s_.lse_full,
                    .lse_sparse = s_.lse_sparse,
                    .floor = policy_.recall_floor,
                    .target = policy_.recall_target,
                    .kind = s_.plan.kind,
                    .recall = s_.recall,
                    .repair = s_.repair,
                    .alpha = s_.alpha});
    backend_.Synchronize();  // the flags, and later the report, are read here
    if (std::find(s_.repair, s_.repair + n_heads_, 1) == s_.repair + n_heads_) return;
    backend_.AttendDense({.q = q_,
                          .q_begin = q_begin_,
                          .kv = kv_,
                          .scale = scale_,
                          .head_mask = s_.repair,
                          .out = out_,
                          .lse = {}});
  }

  void Report(SparseReport& report) const {
    const int64_t dense_pairs = CausalPairs({q_begin_, q_begin_ + n_q_});
    for (int64_t head = 0; head < n_heads_; ++head) {
      const auto kind = static_cast<HeadKind>(s_.plan.kind[head]);
      const bool repaired = s_.repair[head] != 0;
      const bool exact = repaired || kind == HeadKind::kDense;
      report.kept_pairs += exact ? dense_pairs : s_.plan.kept_pairs[head];
      report.causal_pairs += dense_pairs;
      ++report.n_head_epochs;
      if (repaired) {
        ++report.n_repaired;
      } else if (kind == HeadKind::kDense) {
        ++report.n_dense;
      } else if (kind == HeadKind::kStreaming) {
        ++report.n_streaming;
      }
      for (int64_t i = 0; i < s_.recall.dim(1); ++i) {
        report.AddRecall(exact ? 1.0f : s_.recall.Row<float>(head)[i]);
      }
    }
  }

  const EpochPolicy& policy_;
  Backend& backend_;
  const int64_t n_heads_;
  const int64_t n_kv_heads_;
  const int64_t n_q_;
  const int64_t q_begin_;
  const float scale_;
  const TensorView q_;    // [n_q, H, D] f32
  const TensorView out_;  // [n_q, H, D] f32
  KvView kv_;             // n_tokens = q_begin + n_q
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

void RunPrefillAttention(const PrefillAttentionArgs& args, const ModelShape& shape,
                         Backend& backend, Arena& arena, SparseReport& report) {
  ArenaScope scope(arena);
  const int64_t n_q = args.q.dim(0);
  const bool windowed = args.window > 0 && args.window < args.q_begin + n_q;
  const int64_t n_policy_rows = windowed ? 0 : args.epoch->n_policy_rows;
  if (n_policy_rows > 0) {
    SparseEpochRun(args, shape, backend, arena).Run(args.alpha, report);
  }
  if (n_policy_rows == n_q) return;
  const int64_t exact_begin = args.q_begin + n_policy_rows;
  backend.AttendDense({.q = args.q.Slice(n_policy_rows, n_q),
                       .q_begin = exact_begin,
                       .kv = args.kv,
                       .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                       .window = windowed ? args.window : 0,
                       .head_mask = nullptr,
                       .out = args.out.Slice(n_policy_rows, n_q),
                       .lse = {}});
  const int64_t exact_pairs =
      shape.n_heads * (windowed ? WindowPairs(exact_begin, args.q_begin + n_q, args.window)
                                : CausalPairs({exact_begin, args.q_begin + n_q}));
  report.kept_pairs += exact_pairs;
  report.causal_pairs += exact_pairs;
}

void CountPrefillAttention(const ModelShape& shape, int64_t n_q, int64_t n_keys, Arena& arena) {
  ArenaScope scope(arena);
  const int64_t n_rows = MaxEpochRows(n_q);
  AllocateScratch(ScratchShape{.n_heads = shape.n_heads,
                               .n_kv_heads = shape.n_kv_heads,
                               .n_q = n_q,
                               .n_keys = n_keys,
                               .n_rows = n_rows,
                               .n_audit = n_rows},
                  arena);
}

}  // namespace longhaul
