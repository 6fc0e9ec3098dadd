// The specification as a backend: `--backend ref`. Slow on purpose.
#include <vector>

#include "kernels/backend.h"
#include "kernels/check_args.h"
#include "kernels/draw_token.h"
#include "kernels/host_memory.h"
#include "kernels/ref/ref_ops.h"
#include "kernels/select_budget.h"
#include "kernels/select_keys.h"

namespace longhaul {
namespace {

// What the format holds of a weight, as numbers: of kInt8 the whole multiples and their scales.
class RefWeight : public LinearWeight {
 public:
  std::vector<float> values;  // [n_out, n_in]
  std::vector<float> scales;  // [n_out], of kInt8
};

class RefBackend : public Backend {
 public:
  std::string Description() const override { return "ref (plain loops, 1 thread)"; }
  absl::StatusOr<Buffer> Allocate(int64_t n_bytes) override { return AllocateHost(n_bytes); }
  MemoryInfo Memory() const override { return ReadHostMemory(); }
  void Upload(const void* from, void* to, int64_t n_bytes) override { CopyHost(from, to, n_bytes); }
  void Download(const void* from, void* to, int64_t n_bytes) override {
    CopyHost(from, to, n_bytes);
  }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(TensorView weight,
                                                              WeightFormat format) override {
    LH_CHECK(weight.rank() == 2 && weight.IsDense());
    auto prepared = std::make_unique<RefWeight>();
    prepared->n_out = weight.dim(0);
    prepared->n_in = weight.dim(1);
    prepared->format = format;
    prepared->values.resize(weight.NumElements());
    prepared->n_bytes = weight.NumElements() * static_cast<int64_t>(sizeof(float));
    for (int64_t i = 0; i < weight.NumElements(); ++i) {
      prepared->values[i] = ref::LoadElement(weight.data(), weight.dtype(), i);
    }
    prepared->scales =
        ref::RoundRows(prepared->values.data(), prepared->n_out, prepared->n_in, format);
    return prepared;
  }

  void Embed(const EmbedArgs& args) override { ref::Embed(args); }
  void RmsNorm(const RmsNormArgs& args) override { ref::RmsNorm(args); }
  void Linear(const LinearArgs& args) override {
    const auto& weight = static_cast<const RefWeight&>(*args.weight);
    ref::Linear(args, {.data = weight.values.data(),
                       .n_out = weight.n_out,
                       .n_in = weight.n_in,
                       .format = weight.format,
                       .scales = weight.scales.data()});
  }
  void SwiGlu(const SwiGluArgs& args) override { ref::SwiGlu(args); }
  void RouteExperts(const RouteExpertsArgs& args) override { ref::RouteExperts(args); }
  void GatherRows(const GatherRowsArgs& args) override { ref::GatherRows(args); }
  void ScatterAddRows(const ScatterAddRowsArgs& args) override { ref::ScatterAddRows(args); }
  void RopeTable(const RopeTableArgs& args) override { ref::RopeTable(args); }
  void RopeKvWrite(const RopeKvWriteArgs& args) override { ref::RopeKvWrite(args); }
  void CopyPages(const CopyPagesArgs& args) override { ref::CopyPages(args); }

  void AttendDense(const AttendDenseArgs& args) override { ref::AttendDense(args); }
  void AttendDecode(const AttendDecodeArgs& args) override { ref::AttendDecode(args); }

  void SampleLse(const SampleLseArgs& args) override { ref::SampleLse(args); }
  void SelectStreaming(const SelectStreamingArgs& args) override {
    CheckArgs(args);
    for (int64_t h = 0; h < args.lse_full.dim(0); ++h) SelectStreamingOfHead(args, h);
  }
  void SampleMass(const SampleMassArgs& args) override { ref::SampleMass(args); }
  void SelectKeys(const SelectKeysArgs& args) override {
    CheckArgs(args);
    for (int64_t r = 0; r < args.mass_sum.dim(0); ++r) {
      SelectKeysOfHead(args, args.head_begin + r);
    }
  }
  void SelectBudget(const SelectBudgetArgs& args) override {
    CheckArgs(args);
    for (int64_t r = 0; r < args.mass_sum.dim(0); ++r) {
      SelectBudgetOfHead(args, args.head_begin + r);
    }
  }
  void AttendSparse(const AttendSparseArgs& args) override { ref::AttendSparse(args); }
  void Audit(const AuditArgs& args) override {
    CheckArgs(args);
    for (int64_t h = 0; h < args.lse_full.dim(0); ++h) AuditHead(args, h);
  }
  void DrawTokens(const DrawTokensArgs& args) override {
    CheckArgs(args);
    for (int64_t row = 0; row < args.logits.dim(0); ++row) DrawTokenOfRow(args, row);
  }

  void Synchronize() override {}
};

}  // namespace

std::unique_ptr<Backend> CreateRefBackend() { return std::make_unique<RefBackend>(); }

}  // namespace longhaul
