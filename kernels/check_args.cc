#include "kernels/check_args.h"

#include <initializer_list>

#include "kernels/backend.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

bool HasShape(const TensorView& tensor, std::initializer_list<int64_t> shape) {
  if (tensor.rank() != static_cast<int>(shape.size())) return false;
  int i = 0;
  for (int64_t extent : shape) {
    if (tensor.dim(i++) != extent) return false;
  }
  return true;
}

bool Is(DType dtype, const TensorView& tensor, std::initializer_list<int64_t> shape) {
  return tensor.dtype() == dtype && HasShape(tensor, shape);
}
bool IsF32(const TensorView& tensor, std::initializer_list<int64_t> shape) {
  return Is(DType::kF32, tensor, shape);
}

// [T, heads, D] whose heads are adjacent; rows may be strided.
bool IsHeads(DType dtype, const TensorView& tensor, int64_t n_tokens, int64_t n_heads,
             int64_t head_dim) {
  return Is(dtype, tensor, {n_tokens, n_heads, head_dim}) && tensor.stride(1) == head_dim;
}

void CheckKv(const KvView& kv) {
  LH_CHECK(kv.dtype == DType::kF32 || kv.dtype == DType::kBF16 || kv.dtype == DType::kF8E4M3);
  LH_CHECK(kv.n_kv_heads > 0 && kv.head_dim > 0 && kv.head_dim % 2 == 0);
  LH_CHECK(kv.pool != nullptr || kv.n_tokens == 0);
}

// The other forms of q [T, H, D].
void CheckDual(DType activations, const TensorView& q, const DualChunkQueries& dual) {
  if (dual.chunk_tokens == 0) return;
  LH_CHECK(dual.chunk_tokens > 0 && dual.chunk_tokens % kPageTokens == 0);
  LH_CHECK(IsHeads(activations, dual.next, q.dim(0), q.dim(1), q.dim(2)));
  LH_CHECK(IsHeads(activations, dual.far, q.dim(0), q.dim(1), q.dim(2)));
}

// Queries [T, H, D] of rows that all see themselves in kv. Returns H.
int64_t CheckQueries(DType activations, const TensorView& q, const DualChunkQueries& dual,
                     int64_t q_begin, const KvView& kv) {
  CheckKv(kv);
  LH_CHECK(q.rank() == 3);
  LH_CHECK(IsHeads(activations, q, q.dim(0), q.dim(1), kv.head_dim));
  LH_CHECK(q.dim(1) % kv.n_kv_heads == 0);
  LH_CHECK(q_begin >= 0 && q_begin + q.dim(0) <= kv.n_tokens);
  CheckDual(activations, q, dual);
  return q.dim(1);
}

void CheckLocal(const LocalPattern& local) { LH_CHECK(local.sink >= 0 && local.window > 0); }

void CheckPlan(const SparsePlan& plan) {
  CheckLocal(plan.local);
  const int64_t width = plan.stripe_width;
  LH_CHECK(width == 1 || width == 8 || width == 16 || width == 64);
  LH_CHECK(plan.kind != nullptr && plan.kept_pairs != nullptr);
  LH_CHECK(plan.n_stripes != nullptr && (plan.stripes != nullptr || plan.max_stripes == 0));
  LH_CHECK(plan.n_bands != nullptr && (plan.bands != nullptr || plan.max_bands == 0));
}

}  // namespace

void CheckArgs(const EmbedArgs& args) {
  LH_CHECK(args.table.rank() == 2 && args.out.rank() == 2);
  LH_CHECK(IsF32(args.out, {args.out.dim(0), args.table.dim(1)}));
  LH_CHECK(args.token_ids != nullptr || args.out.dim(0) == 0);
}

void CheckArgs(const RmsNormArgs& args, DType activations) {
  if (args.x.rank() == 3) {
    const int64_t n_heads = args.x.dim(1);
    LH_CHECK(IsHeads(activations, args.x, args.x.dim(0), n_heads, args.x.dim(2)));
    LH_CHECK(IsHeads(activations, args.out, args.x.dim(0), n_heads, args.x.dim(2)));
    LH_CHECK(IsF32(args.weight, {args.x.dim(2)}));
    return;
  }
  LH_CHECK(args.x.rank() == 2);
  LH_CHECK(IsF32(args.x, {args.x.dim(0), args.x.dim(1)}));
  LH_CHECK(Is(activations, args.out, {args.x.dim(0), args.x.dim(1)}));
  LH_CHECK(IsF32(args.weight, {args.x.dim(1)}));
}

void CheckArgs(const LinearArgs& args, DType activations) {
  LH_CHECK(args.weight != nullptr && args.x.rank() == 2);
  const LinearWeight& weight = *args.weight;
  LH_CHECK(Is(activations, args.x, {args.x.dim(0), weight.n_in}));
  LH_CHECK(IsF32(args.y, {args.x.dim(0), weight.n_out}) ||
           (!args.accumulate && Is(activations, args.y, {args.x.dim(0), weight.n_out})));
  LH_CHECK(args.bias.empty() || IsF32(args.bias, {weight.n_out}));
}

void CheckArgs(const SwiGluArgs& args, DType activations) {
  LH_CHECK(args.out.rank() == 2);
  LH_CHECK(Is(activations, args.out, {args.out.dim(0), args.out.dim(1)}));
  LH_CHECK(Is(activations, args.gate_up, {args.out.dim(0), 2 * args.out.dim(1)}));
}

void CheckArgs(const RouteExpertsArgs& args) {
  LH_CHECK(args.logits.rank() == 2 && args.weights.rank() == 2);
  const int64_t n_rows = args.logits.dim(0);
  const int64_t n_chosen = args.weights.dim(1);
  LH_CHECK(IsF32(args.logits, {n_rows, args.logits.dim(1)}));
  LH_CHECK(n_chosen > 0 && n_chosen <= args.logits.dim(1));
  LH_CHECK(IsF32(args.weights, {n_rows, n_chosen}));
  LH_CHECK(args.experts.dtype() == DType::kI32 && HasShape(args.experts, {n_rows, n_chosen}));
}

void CheckArgs(const GatherRowsArgs& args, DType activations) {
  LH_CHECK(args.x.rank() == 2 && args.out.rank() == 2);
  LH_CHECK(Is(activations, args.x, {args.x.dim(0), args.x.dim(1)}));
  LH_CHECK(Is(activations, args.out, {args.out.dim(0), args.x.dim(1)}));
  LH_CHECK(args.rows != nullptr || args.out.dim(0) == 0);
}

void CheckArgs(const ScatterAddRowsArgs& args) {
  LH_CHECK(args.x.rank() == 2 && args.out.rank() == 2);
  LH_CHECK(IsF32(args.x, {args.x.dim(0), args.x.dim(1)}));
  LH_CHECK(IsF32(args.out, {args.out.dim(0), args.x.dim(1)}));
  LH_CHECK((args.rows != nullptr && args.weights != nullptr) || args.x.dim(0) == 0);
}

void CheckArgs(const RopeTableArgs& args) {
  LH_CHECK(args.cos_sin.rank() == 3);
  LH_CHECK(IsF32(args.cos_sin, {args.cos_sin.dim(0), args.cos_sin.dim(1), 2}));
  LH_CHECK(args.inv_freq != nullptr);
}

void CheckArgs(const RopeKvWriteArgs& args, DType activations) {
  LH_CHECK(args.q.rank() == 3 && args.kvs != nullptr && args.rows_per_kv > 0);
  const int64_t n_tokens = args.q.dim(0);
  const KvView& kv = args.kvs[0];
  CheckKv(kv);
  LH_CHECK(n_tokens % args.rows_per_kv == 0);
  LH_CHECK(IsHeads(activations, args.q, n_tokens, args.q.dim(1), kv.head_dim));
  LH_CHECK(IsHeads(activations, args.k, n_tokens, kv.n_kv_heads, kv.head_dim));
  LH_CHECK(IsHeads(activations, args.v, n_tokens, kv.n_kv_heads, kv.head_dim));
  LH_CHECK(args.cos_sin.rank() == 3 && 2 * args.cos_sin.dim(1) <= kv.head_dim);
  LH_CHECK(IsF32(args.cos_sin, {n_tokens, args.cos_sin.dim(1), 2}));
  if (args.dual.next.empty()) return;
  LH_CHECK(IsHeads(activations, args.dual.next, n_tokens, args.q.dim(1), kv.head_dim));
  LH_CHECK(IsHeads(activations, args.dual.far, n_tokens, args.q.dim(1), kv.head_dim));
  LH_CHECK(IsF32(args.dual.next_cos_sin, {n_tokens, args.cos_sin.dim(1), 2}));
  LH_CHECK(IsF32(args.dual.far_cos_sin, {n_tokens, args.cos_sin.dim(1), 2}));
  LH_CHECK(args.dual.q_scale != nullptr);
}

void CheckArgs(const AttendDenseArgs& args, DType activations) {
  const int64_t n_heads = CheckQueries(activations, args.q, args.dual, args.q_begin, args.kv);
  LH_CHECK(args.window >= 0);
  LH_CHECK(IsHeads(activations, args.out, args.q.dim(0), n_heads, args.kv.head_dim));
  LH_CHECK(args.lse.empty() || IsF32(args.lse, {args.q.dim(0), n_heads}));
}

void CheckArgs(const AttendDecodeArgs& args, DType activations) {
  LH_CHECK(args.q.rank() == 3 && (args.kvs != nullptr || args.q.dim(0) == 0));
  LH_CHECK(args.window >= 0);
  CheckDual(activations, args.q, args.dual);
  for (int64_t b = 0; b < args.q.dim(0); ++b) {
    CheckKv(args.kvs[b]);
    LH_CHECK(args.kvs[b].n_tokens >= 0);
    LH_CHECK(IsHeads(activations, args.q, args.q.dim(0), args.q.dim(1), args.kvs[b].head_dim));
    LH_CHECK(IsHeads(activations, args.out, args.q.dim(0), args.q.dim(1), args.kvs[b].head_dim));
  }
}

void CheckArgs(const SampleLseArgs& args, DType activations) {
  const int64_t n_heads = CheckQueries(activations, args.q, args.dual, args.q_begin, args.kv);
  CheckLocal(args.local);
  LH_CHECK(args.rows != nullptr && args.n_rows > 0);
  LH_CHECK(IsF32(args.lse_full, {n_heads, args.n_rows}));
  LH_CHECK(IsF32(args.lse_local, {n_heads, args.n_rows}));
}

void CheckArgs(const SampleMassArgs& args, DType activations) {
  const int64_t n_heads = CheckQueries(activations, args.q, args.dual, args.q_begin, args.kv);
  CheckLocal(args.local);
  LH_CHECK(0 <= args.kv_head_begin && args.kv_head_begin <= args.kv_head_end);
  LH_CHECK(args.kv_head_end <= args.kv.n_kv_heads);
  const int64_t heads = (args.kv_head_end - args.kv_head_begin) * (n_heads / args.kv.n_kv_heads);
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  LH_CHECK(args.rows != nullptr && args.n_voting > 0 && args.lse_full.rank() == 2);
  LH_CHECK(args.n_voting <= args.lse_full.dim(1));
  LH_CHECK(IsF32(args.lse_full, {n_heads, args.lse_full.dim(1)}));
  LH_CHECK(IsF32(args.mass_sum, {heads, n_keys}));
  LH_CHECK(IsF32(args.mass_max, {heads, n_keys}));
  LH_CHECK(args.band_mass.empty() || IsF32(args.band_mass, {heads, CeilDiv(n_keys, kBandWidth)}));
}

void CheckArgs(const SelectStreamingArgs& args) {
  CheckPlan(args.plan);
  LH_CHECK(args.lse_full.rank() == 2 && args.lse_local.rank() == 2);
  LH_CHECK(args.n_voting > 0 && args.n_voting <= args.lse_full.dim(1));
  LH_CHECK(args.alpha != nullptr && args.choice != nullptr);
}

void CheckArgs(const SelectKeysArgs& args) {
  CheckPlan(args.plan);
  LH_CHECK(args.lse_full.rank() == 2 && args.lse_local.rank() == 2 && args.mass_sum.rank() == 2);
  const int64_t heads = args.mass_sum.dim(0);
  const int64_t n_keys = args.q_begin + args.n_q;
  LH_CHECK(args.n_voting > 0 && args.n_voting <= args.lse_full.dim(1));
  LH_CHECK(args.head_begin >= 0 && args.head_begin + heads <= args.lse_full.dim(0));
  LH_CHECK(IsF32(args.mass_sum, {heads, n_keys}));
  LH_CHECK(IsF32(args.mass_max, {heads, n_keys}));
  LH_CHECK(args.band_mass.empty() || IsF32(args.band_mass, {heads, CeilDiv(n_keys, kBandWidth)}));
  LH_CHECK(args.band_mass.empty() || args.plan.local.window % kBandWidth == 0);
  LH_CHECK(args.alpha != nullptr);
}

void CheckArgs(const SelectBudgetArgs& args) {
  CheckPlan(args.plan);
  LH_CHECK(args.mass_sum.rank() == 2 && args.head_begin >= 0 && args.budgets != nullptr);
  const int64_t heads = args.mass_sum.dim(0);
  const int64_t n_keys = args.q_begin + args.n_q;
  LH_CHECK(IsF32(args.mass_sum, {heads, n_keys}));
  LH_CHECK(IsF32(args.band_mass, {heads, CeilDiv(n_keys, kBandWidth)}));
  LH_CHECK(args.plan.stripe_width == 1 && args.plan.local.window % kBandWidth == 0);
  LH_CHECK(args.plan.max_bands >= CeilDiv(n_keys, kBandWidth));
}

void CheckArgs(const AttendSparseArgs& args, DType activations) {
  const int64_t n_heads = CheckQueries(activations, args.q, args.dual, args.q_begin, args.kv);
  CheckPlan(args.plan);
  LH_CHECK(IsHeads(activations, args.out, args.q.dim(0), n_heads, args.kv.head_dim));
  LH_CHECK(IsF32(args.lse, {args.q.dim(0), n_heads}));
}

void CheckArgs(const AuditArgs& args) {
  LH_CHECK(0 <= args.n_voting && args.n_voting <= args.n_rows);
  LH_CHECK(args.lse_full.rank() == 2 && args.lse_full.dim(1) == args.n_rows);
  const int64_t n_heads = args.lse_full.dim(0);
  LH_CHECK(args.lse_sparse.rank() == 2 && args.lse_sparse.dim(1) == n_heads);
  LH_CHECK(args.kind != nullptr && args.repair != nullptr && args.alpha != nullptr);
  LH_CHECK(args.n_voting == args.n_rows ||
           IsF32(args.recall, {n_heads, args.n_rows - args.n_voting}));
}

}  // namespace longhaul
