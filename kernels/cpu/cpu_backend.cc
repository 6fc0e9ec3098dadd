// The CPU backend: owns the thread pool and hands each op to the file that implements it.
#include <fmt/format.h>

#include "kernels/backend.h"
#include "kernels/base/thread_pool.h"
#include "kernels/check_args.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/expert_ops.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/token_ops.h"
#include "kernels/draw_token.h"
#include "kernels/host_memory.h"
#include "kernels/select_budget.h"
#include "kernels/select_keys.h"

namespace longhaul {
namespace {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int n_threads) : pool_(n_threads), gemm_(&pool_), attention_(&pool_) {}

  std::string Description() const override {
    return fmt::format("cpu ({}, {} threads)", SimdTargetName(), pool_.n_threads());
  }
  absl::StatusOr<Buffer> Allocate(int64_t n_bytes) override { return AllocateHost(n_bytes); }
  MemoryInfo Memory() const override { return ReadHostMemory(); }
  void Upload(const void* from, void* to, int64_t n_bytes) override { CopyHost(from, to, n_bytes); }
  void Download(const void* from, void* to, int64_t n_bytes) override {
    CopyHost(from, to, n_bytes);
  }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(TensorView weight,
                                                              WeightFormat format) override {
    return gemm_.Prepare(weight, format);
  }
  std::string PackedLayoutName() const override { return gemm_.PackedLayoutName(); }
  absl::StatusOr<std::unique_ptr<LinearWeight>> AdoptLinear(
      int64_t n_out, int64_t n_in, WeightFormat format,
      std::span<const std::byte> packed) override {
    return gemm_.Adopt(n_out, n_in, format, packed);
  }

  void Embed(const EmbedArgs& args) override { cpu::Embed(args, pool_); }
  void RmsNorm(const RmsNormArgs& args) override { cpu::RmsNorm(args, pool_); }
  void Linear(const LinearArgs& args) override { gemm_.Linear(args); }
  void SwiGlu(const SwiGluArgs& args) override { cpu::SwiGlu(args, pool_); }
  // Products that read rows in a narrower type have them made where they are rounded.
  void NormLinear(const RmsNormArgs& norm, const LinearArgs& linear) override {
    if (linear.weight->format == WeightFormat::kF32) return Backend::NormLinear(norm, linear);
    CheckArgs(norm);
    gemm_.Linear(linear, [&](int64_t t, float* out) { cpu::RmsNormRow(norm, t, out); });
  }
  void SwiGluLinear(const SwiGluArgs& gate, const LinearArgs& linear) override {
    if (linear.weight->format == WeightFormat::kF32) return Backend::SwiGluLinear(gate, linear);
    CheckArgs(gate);
    gemm_.Linear(linear, [&](int64_t t, float* out) { cpu::SwiGluRow(gate, t, out); });
  }
  void RouteExperts(const RouteExpertsArgs& args) override { cpu::RouteExperts(args, pool_); }
  void GatherRows(const GatherRowsArgs& args) override { cpu::GatherRows(args, pool_); }
  void ScatterAddRows(const ScatterAddRowsArgs& args) override { cpu::ScatterAddRows(args, pool_); }
  void RopeTable(const RopeTableArgs& args) override { cpu::RopeTable(args, pool_); }
  void RopeKvWrite(const RopeKvWriteArgs& args) override { cpu::RopeKvWrite(args, pool_); }
  void CopyPages(const CopyPagesArgs& args) override { cpu::CopyPages(args, pool_); }

  void AttendDense(const AttendDenseArgs& args) override {
    CheckArgs(args);
    attention_.AttendDense(args);
  }
  void AttendDecode(const AttendDecodeArgs& args) override {
    CheckArgs(args);
    attention_.AttendDecode(args);
  }

  void SampleLse(const SampleLseArgs& args) override {
    CheckArgs(args);
    attention_.SampleLse(args);
  }
  void SelectStreaming(const SelectStreamingArgs& args) override {
    CheckArgs(args);
    for (int64_t h = 0; h < args.lse_full.dim(0); ++h) SelectStreamingOfHead(args, h);
  }
  void SampleMass(const SampleMassArgs& args) override {
    CheckArgs(args);
    attention_.SampleMass(args);
  }
  void SelectKeys(const SelectKeysArgs& args) override {
    CheckArgs(args);
    pool_.ParallelFor(args.mass_sum.dim(0),
                      [&](int64_t r, int) { SelectKeysOfHead(args, args.head_begin + r); });
  }
  void SelectBudget(const SelectBudgetArgs& args) override {
    CheckArgs(args);
    pool_.ParallelFor(args.mass_sum.dim(0),
                      [&](int64_t r, int) { SelectBudgetOfHead(args, args.head_begin + r); });
  }
  void AttendSparse(const AttendSparseArgs& args) override {
    CheckArgs(args);
    attention_.AttendSparse(args);
  }
  void Audit(const AuditArgs& args) override {
    CheckArgs(args);
    for (int64_t h = 0; h < args.lse_full.dim(0); ++h) AuditHead(args, h);
  }
  void DrawTokens(const DrawTokensArgs& args) override {
    CheckArgs(args);
    pool_.ParallelFor(args.logits.dim(0), [&](int64_t row, int) { DrawTokenOfRow(args, row); });
  }

  void Synchronize() override {}  // every op returns when it is done

 private:
  ThreadPool pool_;
  CpuGemm gemm_;
  CpuAttention attention_;
};

}  // namespace

std::unique_ptr<Backend> CreateCpuBackend(int n_threads) {
  return std::make_unique<CpuBackend>(n_threads);
}

}  // namespace longhaul
