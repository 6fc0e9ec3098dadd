// Backend: what a device can compute. One of the two virtual interfaces on the hot path (the other
// is the communicator of tensor parallelism). Ops are coarse, take views and argument structs, are
// issued in order on one stream, and allocate nothing after the first call of a shape.
//
// Owned by a rank; called from that rank's thread only. Shapes are the caller's promise (checked
// with LH_CHECK); everything a user can get wrong was refused before.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "kernels/args.h"
#include "kernels/base/buffer.h"
#include "kernels/base/check.h"
#include "kernels/base/status.h"
#include "kernels/weight_format.h"

namespace longhaul {

// A matrix [n_out, n_in] in the format that the backend's GEMM likes best.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  int64_t n_out = 0;
  int64_t n_in = 0;
  int64_t n_bytes = 0;  // memory held
  WeightFormat format = WeightFormat::kF32;
  // Where it can be kept on disk: all of it, for Backend::AdoptLinear. Else empty.
  std::span<const std::byte> packed;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // One line for logs: "cpu (AVX3, 2 threads)".
  virtual std::string Description() const = 0;

  // Type of the activations between the ops ("act" in args.h). The residual stream, log-sum-exps
  // and logits are f32 everywhere.
  virtual DType activation_dtype() const { return DType::kF32; }

  // True where the host may read and write the backend's memory itself, after Synchronize().
  virtual bool is_host() const { return true; }

  // Unimplemented, with what is possible, where the attention ops cannot work on such a KV cache.
  virtual absl::Status CheckKvLayout(const KvLayout& /*layout*/) const { return absl::OkStatus(); }

  // Of the device, or of this machine and its control group.
  virtual MemoryInfo Memory() const = 0;

  // Zeroed memory, 64-byte aligned; ResourceExhausted with the size when there is not enough.
  virtual absl::StatusOr<Buffer> Allocate(int64_t n_bytes) = 0;

  // Copies between host and backend memory, in the order of the ops. `from` of an upload may change
  // as soon as the call returns; what is downloaded is there after Synchronize().
  virtual void Upload(const void* from, void* to, int64_t n_bytes) = 0;
  virtual void Download(const void* from, void* to, int64_t n_bytes) = 0;

  // Converts a dense matrix [n_out, n_in] of any dtype in host memory, which may be unmapped
  // afterwards. InvalidArgument for a format that the backend does not have.
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> PrepareLinear(TensorView weight,
                                                                      WeightFormat format) = 0;

  // Names the form of LinearWeight::packed on this machine: bytes packed under one name serve under
  // the same. Empty where weights are not kept.
  virtual std::string PackedLayoutName() const { return ""; }
  // A weight from the bytes of an earlier one, 64-byte aligned, which must outlive it.
  // InvalidArgument when their number is not that of the shape and format.
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> AdoptLinear(
      int64_t /*n_out*/, int64_t /*n_in*/, WeightFormat /*format*/,
      std::span<const std::byte> /*packed*/) {
    return absl::UnimplementedError("this backend keeps no packed weights");
  }

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void SwiGlu(const SwiGluArgs& args) = 0;
  // The first op, then Linear on its `out`, which is linear.x and scratch: a backend that hands
  // rows over in registers or cache leaves it unwritten.
  virtual void NormLinear(const RmsNormArgs& norm, const LinearArgs& linear) {
    RmsNorm(norm);
    Linear(linear);
  }
  virtual void SwiGluLinear(const SwiGluArgs& gate, const LinearArgs& linear) {
    SwiGlu(gate);
    Linear(linear);
  }
  virtual void RouteExperts(const RouteExpertsArgs& args) = 0;
  virtual void GatherRows(const GatherRowsArgs& args) = 0;
  virtual void ScatterAddRows(const ScatterAddRowsArgs& args) = 0;
  virtual void RopeTable(const RopeTableArgs& args) = 0;
  virtual void RopeKvWrite(const RopeKvWriteArgs& args) = 0;
  virtual void CopyPages(const CopyPagesArgs& args) = 0;

  virtual void AttendDense(const AttendDenseArgs& args) = 0;
  virtual void AttendDecode(const AttendDecodeArgs& args) = 0;

  virtual void SampleLse(const SampleLseArgs& args) = 0;
  virtual void SelectStreaming(const SelectStreamingArgs& args) = 0;
  virtual void SampleMass(const SampleMassArgs& args) = 0;
  virtual void SelectKeys(const SelectKeysArgs& args) = 0;
  virtual void SelectBudget(const SelectBudgetArgs& args) = 0;
  virtual void AttendSparse(const AttendSparseArgs& args) = 0;
  virtual void Audit(const AuditArgs& args) = 0;

  virtual void DrawTokens(const DrawTokensArgs& args) = 0;

  // Issues the ops that `issue` issues. Where has_replay(), they are recorded under `key` and
  // played back from then on, without a call of `issue`: it must be the same ops on the same memory
  // again, without uploads, downloads and waits. What the memory holds may change. A key is one
  // recording of this backend.
  virtual bool has_replay() const { return false; }
  virtual void Replay(int64_t /*key*/, const std::function<void()>& issue) { issue(); }

  // Waits for everything issued so far: downloads are complete afterwards.
  virtual void Synchronize() = 0;
};

// kCudaMma: kCuda without the kernels that only Hopper GPUs can run.
enum class BackendKind : uint8_t { kAuto, kRef, kCpu, kCuda, kCudaMma };

// "auto", "ref", "cpu", "cuda" or "cuda-mma"; InvalidArgument otherwise.
absl::StatusOr<BackendKind> ParseBackendKind(const std::string& name);

// n_threads: threads of a CPU backend, 0 = all processors. kAuto takes CUDA where it is built and a
// GPU is found, else the CPU, and then says in `why_cpu` (may be null) what is missing. kCuda is
// Unavailable where it is not built or there is no GPU.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(BackendKind kind, int n_threads,
                                                       std::string* why_cpu = nullptr);

// Defined by each backend's own target.
std::unique_ptr<Backend> CreateRefBackend();
std::unique_ptr<Backend> CreateCpuBackend(int n_threads);
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    bool may_use_hopper = true);  // no_cuda.cc: Unavailable

}  // namespace longhaul
