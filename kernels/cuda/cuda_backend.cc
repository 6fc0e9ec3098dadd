// The CUDA backend: one GPU, one stream. Owns the stream, the staging memory and the scratch of the
// ops, and hands each op to the file that implements it; nothing waits but Synchronize.
//
// One stream for work and copies alike. A second one for copies has nothing to overlap with: what a
// step uploads (token ids, positions, page tables) depends on the tokens that the step before it
// downloads, is small, and its first op needs it.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/check_args.h"
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/attention_dense.h"
#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/audit.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/draw_tokens.h"
#include "kernels/cuda/errors.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/graphs.h"
#include "kernels/cuda/hopper_attention.h"
#include "kernels/cuda/hopper_check.h"
#include "kernels/cuda/hopper_sparse.h"
#include "kernels/cuda/sample_passes.h"
#include "kernels/cuda/select_budget.h"
#include "kernels/cuda/select_keys.h"
#include "kernels/cuda/token_ops.h"
#include "kernels/draw_token.h"

namespace longhaul {
namespace {

using cuda::CheckCuda;

constexpr DType kAct = DType::kBF16;
constexpr int kMinMajor = 8;  // sm_80: cp.async, ldmatrix, bf16 mma

// Stripes are gathered from their pages: no copies until a GPU has shown that they pay.
constexpr cuda::StripeCopies kStripeCopies = {.n_keys = 0};

cuda::DeviceLimits LimitsOf(const cudaDeviceProp& properties) {
  return {.n_multiprocessors = properties.multiProcessorCount,
          .shared_bytes = static_cast<int>(properties.sharedMemPerMultiprocessor),
          .l2_bytes = properties.l2CacheSize};
}

// Which kernels prefill attention runs on: those for Hopper where they suit a call, else mma.
struct PrefillKernels {
  bool hopper_dense = false;
  bool hopper_sparse = false;
  std::string remark;  // for the operator; "" where there is no choice
};

class CudaBackend : public Backend {
 public:
  // The stream, the staging memory and the GEMM are those of this object.
  CudaBackend(const cudaDeviceProp& properties, PrefillKernels prefill, cudaStream_t stream,
              std::unique_ptr<cuda::StagingCopies> staging, std::unique_ptr<cuda::Gemm> gemm)
      : properties_(properties),
        limits_(LimitsOf(properties)),
        prefill_(std::move(prefill)),
        stream_(stream),
        staging_(std::move(staging)),
        gemm_(std::move(gemm)),
        scratch_(stream),
        graphs_(stream) {}
  ~CudaBackend() override {
    cudaStreamSynchronize(stream_);
    gemm_.reset();
    staging_.reset();
    cudaStreamDestroy(stream_);
  }

  std::string Description() const override {
    return fmt::format("cuda ({}, sm_{}{}, {} multiprocessors, {:.1f} GiB{}{})", properties_.name,
                       properties_.major, properties_.minor, properties_.multiProcessorCount,
                       static_cast<double>(properties_.totalGlobalMem) / (1 << 30),
                       prefill_.remark.empty() ? "" : ", ", prefill_.remark);
  }
  DType activation_dtype() const override { return kAct; }
  bool is_host() const override { return false; }

  MemoryInfo Memory() const override {
    size_t free_bytes = 0, total_bytes = 0;
    CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "Memory");
    return {.total_bytes = static_cast<int64_t>(total_bytes),
            .available_bytes = static_cast<int64_t>(free_bytes)};
  }

  absl::Status CheckKvLayout(const KvLayout& layout) const override {
    const int32_t d = layout.head_dim;
    if (d != 64 && d != 80 && d != 96 && d != 128) {
      return absl::UnimplementedError(
          fmt::format("head_dim {} does not run on the GPU yet: 64, 80, 96 and 128 do; use "
                      "--backend cpu",
                      d));
    }
    if (layout.dtype != DType::kBF16 && layout.dtype != DType::kF8E4M3) {
      return absl::UnimplementedError(fmt::format(
          "a KV cache of {} does not run on the GPU; use --kv-cache-dtype auto, bfloat16 or fp8",
          DTypeName(layout.dtype)));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Buffer> Allocate(int64_t n_bytes) override {
    return cuda::AllocateDevice(n_bytes, stream_);
  }
  void Upload(const void* from, void* to, int64_t n_bytes) override {
    LH_CHECK(!graphs_.is_recording());  // a replay would copy what stands there by then
    staging_->Upload(from, to, n_bytes);
  }
  void Download(const void* from, void* to, int64_t n_bytes) override {
    LH_CHECK(!graphs_.is_recording());
    staging_->Download(from, to, n_bytes);
  }
  void Synchronize() override { staging_->FinishDownloads(); }

  bool has_replay() const override { return true; }
  void Replay(int64_t key, const std::function<void()>& issue) override {
    graphs_.Replay(key, scratch_.n_grown(), issue);
  }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(TensorView weight,
                                                              WeightFormat format) override {
    if (format != WeightFormat::kBF16) {
      return absl::InvalidArgumentError(fmt::format(
          "weights in {} do not run on the GPU; use bfloat16", WeightFormatName(format)));
    }
    return gemm_->Prepare(weight);
  }

  void Embed(const EmbedArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::Embed(args, stream_), "Embed");
  }
  void RmsNorm(const RmsNormArgs& args) override {
    CheckArgs(args, kAct);
    CheckCuda(cuda::RmsNorm(args, stream_), "RmsNorm");
  }
  void Linear(const LinearArgs& args) override {
    CheckArgs(args, kAct);
    gemm_->Linear(args);
  }
  void SwiGlu(const SwiGluArgs& args) override {
    CheckArgs(args, kAct);
    CheckCuda(cuda::SwiGlu(args, stream_), "SwiGlu");
  }
  void RouteExperts(const RouteExpertsArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::RouteExperts(args, stream_), "RouteExperts");
  }
  void GatherRows(const GatherRowsArgs& args) override {
    CheckArgs(args, kAct);
    CheckCuda(cuda::GatherRows(args, stream_), "GatherRows");
  }
  void ScatterAddRows(const ScatterAddRowsArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::ScatterAddRows(args, stream_), "ScatterAddRows");
  }
  void RopeTable(const RopeTableArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::RopeTable(args, DeviceFrequencies(args), stream_), "RopeTable");
  }
  void RopeKvWrite(const RopeKvWriteArgs& args) override {
    if (args.q.dim(0) == 0) return;
    CheckArgs(args, kAct);
    LH_CHECK(args.rows_per_kv == args.q.dim(0) || args.kvs_copy != nullptr);
    CheckCuda(cuda::RopeKvWrite(args, stream_), "RopeKvWrite");
  }
  void CopyPages(const CopyPagesArgs& args) override {
    for (int64_t i = 0; i < args.n; ++i) {
      CheckCuda(
          cudaMemcpyAsync(args.pool + args.dst[i] * args.page_bytes,
                          args.pool + args.src[i] * args.page_bytes,
                          static_cast<size_t>(args.page_bytes), cudaMemcpyDeviceToDevice, stream_),
          "CopyPages");
    }
  }

  void AttendDense(const AttendDenseArgs& args) override {
    CheckArgs(args, kAct);
    if (prefill_.hopper_dense && cuda::SuitsHopper(args, limits_)) {
      CheckCuda(cuda::AttendDenseHopper(args, {}, limits_, stream_), "AttendDense");
      return;
    }
    if (prefill_.hopper_sparse && cuda::SuitsPlan(args, limits_)) {
      const int64_t n_bytes = cuda::AttendDenseByPlanScratchBytes(args);
      std::byte* scratch = scratch_.Ensure(n_bytes, "AttendDense");
      CheckCuda(cuda::AttendDenseByPlan(args, scratch, stream_), "AttendDense");
      return;
    }
    std::byte* scratch =
        scratch_.Ensure(cuda::AttendDenseScratchBytes(limits_, args.kv.head_dim), "AttendDense");
    CheckCuda(cuda::AttendDense(args, {}, limits_, scratch, stream_), "AttendDense");
  }
  void AttendDecode(const AttendDecodeArgs& args) override {
    CheckArgs(args, kAct);
    std::byte* scratch =
        scratch_.Ensure(cuda::AttendDecodeScratchBytes(args, limits_), "AttendDecode");
    CheckCuda(cuda::AttendDecode(args, limits_, scratch, stream_), "AttendDecode");
  }

  void SampleLse(const SampleLseArgs& args) override {
    CheckArgs(args, kAct);
    std::byte* scratch = scratch_.Ensure(
        cuda::SampleLseScratchBytes(args.q.dim(1), args.n_rows, args.q_begin + args.q.dim(0)),
        "SampleLse");
    CheckCuda(cuda::SampleLse(args, scratch, stream_), "SampleLse");
  }
  void SelectStreaming(const SelectStreamingArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::SelectStreaming(args, stream_), "SelectStreaming");
  }
  void SampleMass(const SampleMassArgs& args) override {
    CheckArgs(args, kAct);
    const int64_t group = args.q.dim(1) / args.kv.n_kv_heads;
    std::byte* scratch =
        scratch_.Ensure(cuda::SampleMassScratchBytes(args.mass_sum.dim(0), group, args.n_voting,
                                                     args.mass_sum.dim(1), !args.band_mass.empty()),
                        "SampleMass");
    CheckCuda(cuda::SampleMass(args, scratch, stream_), "SampleMass");
  }
  void SelectKeys(const SelectKeysArgs& args) override {
    CheckArgs(args);
    std::byte* scratch = scratch_.Ensure(
        cuda::SelectKeysScratchBytes(args.mass_sum.dim(0), args.mass_sum.dim(1)), "SelectKeys");
    CheckCuda(cuda::SelectKeys(args, scratch, stream_), "SelectKeys");
  }
  void SelectBudget(const SelectBudgetArgs& args) override {
    CheckArgs(args);
    std::byte* scratch = scratch_.Ensure(
        cuda::SelectBudgetScratchBytes(args.mass_sum.dim(0), args.mass_sum.dim(1)), "SelectBudget");
    CheckCuda(cuda::SelectBudget(args, scratch, stream_), "SelectBudget");
  }
  void AttendSparse(const AttendSparseArgs& args) override {
    CheckArgs(args, kAct);
    std::byte* scratch = scratch_.Ensure(
        cuda::AttendSparseScratchBytes(args.q.dim(1), args.kv.head_dim, kStripeCopies),
        "AttendSparse");
    CheckCuda(prefill_.hopper_sparse && cuda::SuitsHopper(args)
                  ? cuda::AttendSparseHopper(args, kStripeCopies, scratch, stream_)
                  : cuda::AttendSparse(args, kStripeCopies, limits_, scratch, stream_),
              "AttendSparse");
  }
  void Audit(const AuditArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::Audit(args, stream_), "Audit");
  }
  void DrawTokens(const DrawTokensArgs& args) override {
    CheckArgs(args);
    CheckCuda(cuda::DrawTokens(args, stream_), "DrawTokens");
  }

 private:
  struct Frequencies {
    std::vector<double> values;
    Buffer copy;
  };

  // On the device, uploaded once: a recorded step must not copy.
  const double* DeviceFrequencies(const RopeTableArgs& args) {
    const std::span values(args.inv_freq, static_cast<size_t>(args.cos_sin.dim(1)));
    const auto known = std::find_if(frequencies_.begin(), frequencies_.end(), [&](const auto& f) {
      return std::equal(f.values.begin(), f.values.end(), values.begin(), values.end());
    });
    if (known != frequencies_.end()) return static_cast<const double*>(known->copy.data());
    const auto n_bytes = static_cast<int64_t>(values.size_bytes());
    absl::StatusOr<Buffer> copy = Allocate(n_bytes);
    CheckCuda(copy.ok() ? cudaSuccess : cudaErrorMemoryAllocation, "RopeTable");
    staging_->Upload(values.data(), copy->data(), n_bytes);
    frequencies_.push_back({{values.begin(), values.end()}, *std::move(copy)});
    return static_cast<const double*>(frequencies_.back().copy.data());
  }

  const cudaDeviceProp properties_;
  const cuda::DeviceLimits limits_;
  const PrefillKernels prefill_;
  const cudaStream_t stream_;
  std::unique_ptr<cuda::StagingCopies> staging_;
  std::unique_ptr<cuda::Gemm> gemm_;
  cuda::DeviceScratch scratch_;           // of one op at a time: they run in order
  std::vector<Frequencies> frequencies_;  // a few: one per kind of rotation
  cuda::Graphs graphs_;
};

absl::StatusOr<cudaDeviceProp> FindGpu() {
  int n_devices = 0;
  cudaError_t error = cudaGetDeviceCount(&n_devices);
  cudaDeviceProp properties = {};
  if (error == cudaSuccess && n_devices == 0) error = cudaErrorNoDevice;
  if (error == cudaSuccess) error = cudaSetDevice(0);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, 0);
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is reported here
    return absl::UnavailableError(
        fmt::format("no usable GPU: {}. Use --backend cpu, or install an NVIDIA driver (see "
                    "nvidia-smi)",
                    cudaGetErrorString(error)));
  }
  if (properties.major < kMinMajor) {
    return absl::UnavailableError(fmt::format(
        "the GPU {} has compute capability {}.{}; {}.0 (Ampere) is needed. Use --backend cpu",
        properties.name, properties.major, properties.minor, kMinMajor));
  }
  return properties;
}

// Whether a kernel for Hopper is used, after its check on this very device; says so in the remark.
absl::StatusOr<bool> MayUseHopper(const char* what, const std::string& why_not,
                                  const cudaDeviceProp& properties, cudaStream_t stream,
                                  std::string& remark) {
  if (!remark.empty()) remark += "; ";
  if (why_not.empty()) {
    remark += fmt::format("{} prefill by wgmma", what);
    return true;
  }
  cudaGetLastError();  // it is reported here
  if (cudaStreamSynchronize(stream) != cudaSuccess) {
    return absl::InternalError(
        fmt::format("the {} attention kernel for Hopper stopped the GPU {} in its check ({}). Use "
                    "--backend cuda-mma, which leaves it out",
                    what, properties.name, why_not));
  }
  remark +=
      fmt::format("{} prefill by mma: the kernel for Hopper failed its check {}", what, why_not);
  return false;
}

absl::StatusOr<PrefillKernels> ChoosePrefillKernels(const cudaDeviceProp& properties,
                                                    bool may_use_hopper, cudaStream_t stream) {
  PrefillKernels kernels;
  if (properties.major != 9) return kernels;
  if (!may_use_hopper) return PrefillKernels{.remark = "prefill by mma, as asked for"};
  const cuda::DeviceLimits limits = LimitsOf(properties);
  LH_ASSIGN_OR_RETURN(kernels.hopper_dense,
                      MayUseHopper("dense", cuda::WhyNotDenseHopper(limits, stream), properties,
                                   stream, kernels.remark));
  LH_ASSIGN_OR_RETURN(kernels.hopper_sparse,
                      MayUseHopper("sparse", cuda::WhyNotSparseHopper(limits, stream), properties,
                                   stream, kernels.remark));
  return kernels;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(bool may_use_hopper) {
  LH_ASSIGN_OR_RETURN(const cudaDeviceProp properties, FindGpu());
  cudaStream_t stream = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) {
    return absl::InternalError(
        fmt::format("the GPU {} does not start: {}", properties.name, cudaGetErrorString(error)));
  }
  LH_ASSIGN_OR_RETURN(PrefillKernels prefill,
                      ChoosePrefillKernels(properties, may_use_hopper, stream));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<cuda::StagingCopies> staging,
                      cuda::StagingCopies::Create(stream));
  LH_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Gemm> gemm, cuda::Gemm::Create(stream, staging.get()));
  return std::make_unique<CudaBackend>(properties, std::move(prefill), stream, std::move(staging),
                                       std::move(gemm));
}

}  // namespace longhaul
