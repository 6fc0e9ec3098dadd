// ProfilingBackend: where the time of a forward pass goes, for benchmarks. It times the linear
// layers and the ops of attention, each from its call to its end; what a caller measures beyond
// their sum is everything else. On a device the wait behind each op costs what overlap would save.
#pragma once

#include <cstdint>

#include "kernels/forwarding_backend.h"

namespace longhaul {

struct OpProfile {
  double linear_s = 0;  // with the norm or activation function before, where they are one op
  double dense_s = 0;   // AttendDense: all of a dense epoch, the repairs of a sparse one
  double sparse_s = 0;  // AttendSparse
  double decode_s = 0;  // AttendDecode
  double rows_s = 0;    // SampleLse
  double mass_s = 0;    // SampleMass
  double select_s = 0;  // SelectStreaming, SelectKeys, SelectBudget, Audit

  double linear_flop = 0;      // 2 per weight and row
  int64_t weight_bytes = 0;    // of the matrices used, as often as they were
  int64_t kv_bytes = 0;        // keys and values that AttendDecode read
  int64_t sparse_pairs = 0;    // (row, key) pairs that AttendSparse kept; host backends only
  int64_t sampled_scores = 0;  // (row, key, head) scores of SampleLse and SampleMass; the same

  double AttentionSeconds() const { return dense_s + sparse_s + decode_s; }
  double SelectionSeconds() const { return rows_s + mass_s + select_s; }
  void Add(const OpProfile& other);
};

class ProfilingBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  // Of everything since the last call.
  OpProfile TakeProfile();

  void Linear(const LinearArgs& args) override;
  void NormLinear(const RmsNormArgs& norm, const LinearArgs& linear) override;
  void SwiGluLinear(const SwiGluArgs& gate, const LinearArgs& linear) override;
  void AttendDense(const AttendDenseArgs& args) override;
  void AttendDecode(const AttendDecodeArgs& args) override;
  void SampleLse(const SampleLseArgs& args) override;
  void SelectStreaming(const SelectStreamingArgs& args) override;
  void SampleMass(const SampleMassArgs& args) override;
  void SelectKeys(const SelectKeysArgs& args) override;
  void SelectBudget(const SelectBudgetArgs& args) override;
  void AttendSparse(const AttendSparseArgs& args) override;
  void Audit(const AuditArgs& args) override;

 private:
  template <typename Op>
  void Time(double OpProfile::*seconds, const Op& op);
  // Of a linear layer, and what makes its input in the same op.
  template <typename Op>
  void TimeLinear(const LinearArgs& args, const Op& op);

  OpProfile profile_;
};

}  // namespace longhaul
