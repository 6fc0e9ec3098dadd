#include "kernels/cuda/gemm.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/errors.h"
#include "kernels/cuda/token_ops.h"

namespace longhaul::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what cuBLAS itself takes on Hopper
constexpr int64_t kMaxAlignmentBytes = 256;

class CudaWeight : public LinearWeight {
 public:
  Buffer values;  // [n_out, n_in] bf16
};

void CheckCublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  std::fprintf(stderr, "cuBLASLt error %d in Linear (%s); the process ends.\n",
               static_cast<int>(status), call);
  std::abort();
}

// The largest power of two that divides the address and the distance of rows.
int64_t AlignmentBytes(const void* data, int64_t row_bytes) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(row_bytes) |
                        static_cast<uint64_t>(kMaxAlignmentBytes);
  return static_cast<int64_t>(bits & (~bits + 1));
}

void ToBf16Row(const std::byte* from, DType dtype, int64_t n, BF16* to) {
  if (dtype == DType::kBF16) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(BF16));
  } else if (dtype == DType::kF32) {
    const auto* values = reinterpret_cast<const float*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = ToBF16(values[i]);
  } else {
    LH_CHECK(dtype == DType::kF16);
    const auto* values = reinterpret_cast<const F16*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = ToBF16(ToF32(values[i]));
  }
}

}  // namespace

// In cuBLAS's column-major eyes y^T [n_out, T] = W^T-transposed [n_out, n_in] x^T [n_in, T]: the
// row-major matrices as they lie, with the weight marked as transposed.
struct Gemm::Plan {
  ~Plan() {
    for (cublasLtMatrixLayout_t layout : {weight, x, y}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (matmul != nullptr) cublasLtMatmulDescDestroy(matmul);
  }
  cublasLtMatmulDesc_t matmul = nullptr;
  cublasLtMatrixLayout_t weight = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t y = nullptr;
  cublasLtMatmulAlgo_t algo = {};
};

Gemm::Gemm(cudaStream_t stream, StagingCopies* staging) : stream_(stream), staging_(staging) {}

Gemm::~Gemm() {
  plans_.clear();
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

absl::StatusOr<std::unique_ptr<Gemm>> Gemm::Create(cudaStream_t stream, StagingCopies* staging) {
  std::unique_ptr<Gemm> gemm(new Gemm(stream, staging));
  const cublasStatus_t status = cublasLtCreate(&gemm->handle_);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return absl::InternalError(fmt::format(
        "cuBLASLt does not start (status {}); is libcublasLt of the CUDA version that this program "
        "was built with installed, and is there free GPU memory?",
        static_cast<int>(status)));
  }
  LH_ASSIGN_OR_RETURN(gemm->workspace_, AllocateDevice(kWorkspaceBytes, stream));
  return gemm;
}

absl::StatusOr<std::unique_ptr<LinearWeight>> Gemm::Prepare(TensorView weight) {
  LH_CHECK(weight.rank() == 2 && weight.IsDense());
  auto prepared = std::make_unique<CudaWeight>();
  prepared->n_out = weight.dim(0);
  prepared->n_in = weight.dim(1);
  prepared->n_bytes = weight.NumElements() * static_cast<int64_t>(sizeof(BF16));
  prepared->format = WeightFormat::kBF16;
  LH_ASSIGN_OR_RETURN(prepared->values, AllocateDevice(prepared->n_bytes, stream_));
  const auto* from = static_cast<const std::byte*>(weight.data());
  auto* to = static_cast<std::byte*>(prepared->values.data());
  constexpr int64_t kElements = StagingCopies::kSlotBytes / static_cast<int64_t>(sizeof(BF16));
  for (int64_t begin = 0; begin < weight.NumElements(); begin += kElements) {
    const int64_t n = std::min(kElements, weight.NumElements() - begin);
    const int64_t n_bytes = n * static_cast<int64_t>(sizeof(BF16));
    std::byte* staged = staging_->TakeUpload(n_bytes);
    ToBf16Row(from + begin * static_cast<int64_t>(DTypeBytes(weight.dtype())), weight.dtype(), n,
              reinterpret_cast<BF16*>(staged));
    staging_->SendUpload(staged, to + begin * static_cast<int64_t>(sizeof(BF16)), n_bytes);
  }
  return prepared;
}

const void* Gemm::Bf16Bias(TensorView bias) {
  Buffer& copy = bf16_biases_[bias.data()];
  if (copy.data() == nullptr) {
    const int64_t n = bias.dim(0);
    absl::StatusOr<Buffer> buffer = AllocateDevice(n * static_cast<int64_t>(sizeof(BF16)), stream_);
    CheckCuda(buffer.ok() ? cudaSuccess : cudaErrorMemoryAllocation, "Linear (bias)");
    copy = *std::move(buffer);
    CheckCuda(CastToBf16(bias.As<float>(), static_cast<BF16*>(copy.data()), n, stream_),
              "Linear (bias)");
  }
  return copy.data();
}

const Gemm::Plan& Gemm::PlanOf(const Shape& shape) {
  std::unique_ptr<Plan>& plan = plans_[shape];
  if (plan != nullptr) return *plan;
  plan = std::make_unique<Plan>();
  const cudaDataType_t y_type = shape.y_is_f32 ? CUDA_R_32F : CUDA_R_16BF;
  CheckCublas(cublasLtMatmulDescCreate(&plan->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              "cublasLtMatmulDescCreate");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    CheckCublas(cublasLtMatmulDescSetAttribute(plan->matmul, attribute, &value, sizeof(value)),
                "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (shape.bias) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  const auto n_out = static_cast<uint64_t>(shape.n_out);
  const auto n_in = static_cast<uint64_t>(shape.n_in);
  const auto n_rows = static_cast<uint64_t>(shape.n_rows);
  CheckCublas(cublasLtMatrixLayoutCreate(&plan->weight, CUDA_R_16BF, n_in, n_out, shape.n_in),
              "cublasLtMatrixLayoutCreate");
  CheckCublas(cublasLtMatrixLayoutCreate(&plan->x, CUDA_R_16BF, n_in, n_rows, shape.x_stride),
              "cublasLtMatrixLayoutCreate");
  CheckCublas(cublasLtMatrixLayoutCreate(&plan->y, y_type, n_out, n_rows, shape.y_stride),
              "cublasLtMatrixLayoutCreate");

  cublasLtMatmulPreference_t preference = nullptr;
  CheckCublas(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    CheckCublas(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
                "cublasLtMatmulPreferenceSetAttribute");
  };
  const auto x_alignment = static_cast<uint32_t>(shape.x_alignment_bytes);
  const auto y_alignment = static_cast<uint32_t>(shape.y_alignment_bytes);
  const auto weight_alignment = static_cast<uint32_t>(
      AlignmentBytes(nullptr, shape.n_in * static_cast<int64_t>(sizeof(BF16))));
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_alignment);
  cublasLtMatmulHeuristicResult_t found = {};
  int n_found = 0;
  CheckCublas(cublasLtMatmulAlgoGetHeuristic(handle_, plan->matmul, plan->weight, plan->x, plan->y,
                                             plan->y, preference, 1, &found, &n_found),
              "cublasLtMatmulAlgoGetHeuristic");
  CheckCublas(n_found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED,
              "no algorithm for this shape");
  cublasLtMatmulPreferenceDestroy(preference);
  plan->algo = found.algo;
  return *plan;
}

void Gemm::Linear(const LinearArgs& args) {
  const auto& weight = static_cast<const CudaWeight&>(*args.weight);
  if (args.x.dim(0) == 0) return;
  const bool y_is_f32 = args.y.dtype() == DType::kF32;
  const auto y_row_bytes = args.y.stride(0) * static_cast<int64_t>(DTypeBytes(args.y.dtype()));
  const auto x_row_bytes = args.x.stride(0) * static_cast<int64_t>(sizeof(BF16));
  const Plan& plan = PlanOf({.n_out = weight.n_out,
                             .n_in = weight.n_in,
                             .n_rows = args.x.dim(0),
                             .x_stride = args.x.stride(0),
                             .y_stride = args.y.stride(0),
                             .y_is_f32 = y_is_f32,
                             .bias = !args.bias.empty(),
                             .accumulate = args.accumulate,
                             .x_alignment_bytes = AlignmentBytes(args.x.data(), x_row_bytes),
                             .y_alignment_bytes = AlignmentBytes(args.y.data(), y_row_bytes)});
  if (!args.bias.empty()) {
    const void* bias = y_is_f32 ? args.bias.data() : Bf16Bias(args.bias);
    CheckCublas(cublasLtMatmulDescSetAttribute(plan.matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                               &bias, sizeof(bias)),
                "cublasLtMatmulDescSetAttribute");
  }
  const float alpha = 1.0f;
  const float beta = args.accumulate ? 1.0f : 0.0f;
  CheckCublas(cublasLtMatmul(handle_, plan.matmul, &alpha, weight.values.data(), plan.weight,
                             args.x.data(), plan.x, &beta, args.y.data(), plan.y, args.y.data(),
                             plan.y, &plan.algo, workspace_.data(), kWorkspaceBytes, stream_),
              "cublasLtMatmul");
}

}  // namespace longhaul::cuda
