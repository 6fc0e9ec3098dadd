// ForwardingBackend: passes every call on to another backend. Base of the decorators of benchmarks,
// which override what they look at. Borrows the other backend; same thread and same rules.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"

namespace longhaul {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& to) : to_(to) {}

  std::string Description() const override { return to_.Description(); }
  DType activation_dtype() const override { return to_.activation_dtype(); }
  bool is_host() const override { return to_.is_host(); }
  absl::Status CheckKvLayout(const KvLayout& layout) const override {
    return to_.CheckKvLayout(layout);
  }
  MemoryInfo Memory() const override { return to_.Memory(); }
  absl::StatusOr<Buffer> Allocate(int64_t n_bytes) override { return to_.Allocate(n_bytes); }
  void Upload(const void* from, void* to, int64_t n_bytes) override {
    to_.Upload(from, to, n_bytes);
  }
  void Download(const void* from, void* to, int64_t n_bytes) override {
    to_.Download(from, to, n_bytes);
  }
  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(TensorView weight,
                                                              WeightFormat format) override {
    return to_.PrepareLinear(weight, format);
  }
  std::string PackedLayoutName() const override { return to_.PackedLayoutName(); }
  absl::StatusOr<std::unique_ptr<LinearWeight>> AdoptLinear(
      int64_t n_out, int64_t n_in, WeightFormat format,
      std::span<const std::byte> packed) override {
    return to_.AdoptLinear(n_out, n_in, format, packed);
  }

  void Embed(const EmbedArgs& args) override { to_.Embed(args); }
  void RmsNorm(const RmsNormArgs& args) override { to_.RmsNorm(args); }
  void Linear(const LinearArgs& args) override { to_.Linear(args); }
  void SwiGlu(const SwiGluArgs& args) override { to_.SwiGlu(args); }
  void NormLinear(const RmsNormArgs& norm, const LinearArgs& linear) override {
    to_.NormLinear(norm, linear);
  }
  void SwiGluLinear(const SwiGluArgs& gate, const LinearArgs& linear) override {
    to_.SwiGluLinear(gate, linear);
  }
  void RouteExperts(const RouteExpertsArgs& args) override { to_.RouteExperts(args); }
  void GatherRows(const GatherRowsArgs& args) override { to_.GatherRows(args); }
  void ScatterAddRows(const ScatterAddRowsArgs& args) override { to_.ScatterAddRows(args); }
  void RopeTable(const RopeTableArgs& args) override { to_.RopeTable(args); }
  void RopeKvWrite(const RopeKvWriteArgs& args) override { to_.RopeKvWrite(args); }
  void CopyPages(const CopyPagesArgs& args) override { to_.CopyPages(args); }
  void AttendDense(const AttendDenseArgs& args) override { to_.AttendDense(args); }
  void AttendDecode(const AttendDecodeArgs& args) override { to_.AttendDecode(args); }
  void SampleLse(const SampleLseArgs& args) override { to_.SampleLse(args); }
  void SelectStreaming(const SelectStreamingArgs& args) override { to_.SelectStreaming(args); }
  void SampleMass(const SampleMassArgs& args) override { to_.SampleMass(args); }
  void SelectKeys(const SelectKeysArgs& args) override { to_.SelectKeys(args); }
  void SelectBudget(const SelectBudgetArgs& args) override { to_.SelectBudget(args); }
  void AttendSparse(const AttendSparseArgs& args) override { to_.AttendSparse(args); }
  void Audit(const AuditArgs& args) override { to_.Audit(args); }
  void DrawTokens(const DrawTokensArgs& args) override { to_.DrawTokens(args); }
  void Synchronize() override { to_.Synchronize(); }

 private:
  Backend& to_;
};

}  // namespace longhaul
