#include "server/profiling_backend.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace longhaul {
namespace {

// Keys that the given rows of an epoch see, together.
int64_t VisibleKeys(const int32_t* rows, int64_t n_rows, int64_t q_begin) {
  int64_t n = 0;
  for (int64_t i = 0; i < n_rows; ++i) n += q_begin + rows[i] + 1;
  return n;
}

}  // namespace

void OpProfile::Add(const OpProfile& other) {
  linear_s += other.linear_s;
  dense_s += other.dense_s;
  sparse_s += other.sparse_s;
  decode_s += other.decode_s;
  rows_s += other.rows_s;
  mass_s += other.mass_s;
  select_s += other.select_s;
  linear_flop += other.linear_flop;
  weight_bytes += other.weight_bytes;
  kv_bytes += other.kv_bytes;
  sparse_pairs += other.sparse_pairs;
  sampled_scores += other.sampled_scores;
}

OpProfile ProfilingBackend::TakeProfile() { return std::exchange(profile_, OpProfile()); }

template <typename Op>
void ProfilingBackend::Time(double OpProfile::*seconds, const Op& op) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  op();
  Synchronize();
  profile_.*seconds += std::chrono::duration<double>(Clock::now() - start).count();
}

template <typename Op>
void ProfilingBackend::TimeLinear(const LinearArgs& args, const Op& op) {
  Time(&OpProfile::linear_s, op);
  const LinearWeight& weight = *args.weight;
  profile_.linear_flop += 2.0 * static_cast<double>(args.x.dim(0) * weight.n_out * weight.n_in);
  profile_.weight_bytes += weight.n_bytes;
}

void ProfilingBackend::Linear(const LinearArgs& args) {
  TimeLinear(args, [&] { ForwardingBackend::Linear(args); });
}

void ProfilingBackend::NormLinear(const RmsNormArgs& norm, const LinearArgs& linear) {
  TimeLinear(linear, [&] { ForwardingBackend::NormLinear(norm, linear); });
}

void ProfilingBackend::SwiGluLinear(const SwiGluArgs& gate, const LinearArgs& linear) {
  TimeLinear(linear, [&] { ForwardingBackend::SwiGluLinear(gate, linear); });
}

void ProfilingBackend::AttendDense(const AttendDenseArgs& args) {
  Time(&OpProfile::dense_s, [&] { ForwardingBackend::AttendDense(args); });
}

void ProfilingBackend::AttendDecode(const AttendDecodeArgs& args) {
  Time(&OpProfile::decode_s, [&] { ForwardingBackend::AttendDecode(args); });
  for (int64_t row = 0; row < args.q.dim(0); ++row) {
    const KvView& kv = args.kvs[row];
    const int64_t n_keys = args.window > 0 ? std::min(args.window, kv.n_tokens) : kv.n_tokens;
    profile_.kv_bytes +=
        2 * n_keys * kv.n_kv_heads * kv.head_dim * static_cast<int64_t>(DTypeBytes(kv.dtype));
  }
}

void ProfilingBackend::SampleLse(const SampleLseArgs& args) {
  Time(&OpProfile::rows_s, [&] { ForwardingBackend::SampleLse(args); });
  if (!is_host()) return;
  profile_.sampled_scores += args.q.dim(1) * VisibleKeys(args.rows, args.n_rows, args.q_begin);
}

void ProfilingBackend::SelectStreaming(const SelectStreamingArgs& args) {
  Time(&OpProfile::select_s, [&] { ForwardingBackend::SelectStreaming(args); });
}

void ProfilingBackend::SampleMass(const SampleMassArgs& args) {
  Time(&OpProfile::mass_s, [&] { ForwardingBackend::SampleMass(args); });
  if (!is_host()) return;
  const int64_t group = args.q.dim(1) / args.kv.n_kv_heads;
  int64_t n_heads = 0;
  for (int64_t h = args.kv_head_begin * group; h < args.kv_head_end * group; ++h) {
    if (args.choice == nullptr || args.choice[h] != kChosen) ++n_heads;
  }
  profile_.sampled_scores += n_heads * VisibleKeys(args.rows, args.n_voting, args.q_begin);
}

void ProfilingBackend::SelectKeys(const SelectKeysArgs& args) {
  Time(&OpProfile::select_s, [&] { ForwardingBackend::SelectKeys(args); });
}

void ProfilingBackend::SelectBudget(const SelectBudgetArgs& args) {
  Time(&OpProfile::select_s, [&] { ForwardingBackend::SelectBudget(args); });
}

void ProfilingBackend::AttendSparse(const AttendSparseArgs& args) {
  Time(&OpProfile::sparse_s, [&] { ForwardingBackend::AttendSparse(args); });
  if (!is_host()) return;
  for (int64_t h = 0; h < args.q.dim(1); ++h) profile_.sparse_pairs += args.plan.kept_pairs[h];
}

void ProfilingBackend::Audit(const AuditArgs& args) {
  Time(&OpProfile::select_s, [&] { ForwardingBackend::Audit(args); });
}

}  // namespace longhaul
