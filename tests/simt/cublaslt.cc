// The stand-in <cublasLt.h>: plain loops, in the order of the stream.
#include <cublasLt.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "tests/simt/device_memory.h"
#include "tests/simt/runtime.h"

using longhaul::BF16;
using longhaul::ToBF16;
using longhaul::ToF32;
using longhaul::simt::DeviceMemory;
using longhaul::simt::Runtime;

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasOperation_t trans_a = CUBLAS_OP_N;
  cublasOperation_t trans_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int32_t bias_type = -1;  // as the result
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type = CUDA_R_32F;
  int64_t n_rows = 0;
  int64_t n_cols = 0;
  int64_t ld = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  uint64_t workspace_bytes = 0;
};

namespace {

using Layout = cublasLtMatrixLayoutOpaque_t;

struct Product {
  cublasLtMatmulDescOpaque_t desc;
  float alpha = 1;
  float beta = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;
  void* d = nullptr;
  Layout a_layout, b_layout, c_layout, d_layout;
};

int64_t ElementBytes(int32_t type) { return type == CUDA_R_32F ? 4 : 2; }

std::byte* Storage(const void* address, int64_t n_bytes, const char* operand) {
  std::string why;
  std::byte* storage = DeviceMemory::Get().Find(address, static_cast<size_t>(n_bytes), &why);
  if (storage == nullptr) {
    Runtime::Get().Fail(std::string("cublasLtMatmul, operand ") + operand + ": " + why);
  }
  return storage;
}
std::byte* Storage(const void* address, const Layout& layout, const char* operand) {
  const int64_t n = (layout.n_cols - 1) * layout.ld + layout.n_rows;
  return Storage(address, n * ElementBytes(layout.type), operand);
}

float Load(const std::byte* storage, int64_t i, int32_t type) {
  if (type == CUDA_R_32F) return reinterpret_cast<const float*>(storage)[i];
  return ToF32(reinterpret_cast<const BF16*>(storage)[i]);
}

// [n, k] f32, row-major: operand a as it is multiplied, or b transposed.
std::vector<float> Widen(const std::byte* storage, const Layout& layout, bool rows_are_columns) {
  const int64_t n = rows_are_columns ? layout.n_cols : layout.n_rows;
  const int64_t k = rows_are_columns ? layout.n_rows : layout.n_cols;
  std::vector<float> wide(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t at = rows_are_columns ? i * layout.ld + j : j * layout.ld + i;
      wide[static_cast<size_t>(i * k + j)] = Load(storage, at, layout.type);
    }
  }
  return wide;
}

void Multiply(const Product& p) {
  const std::byte* a = Storage(p.a, p.a_layout, "a");
  const std::byte* b = Storage(p.b, p.b_layout, "b");
  const std::byte* c = p.beta == 0 ? nullptr : Storage(p.c, p.c_layout, "c");
  std::byte* d = Storage(p.d, p.d_layout, "d");
  const int32_t bias_type = p.desc.bias_type < 0 ? p.d_layout.type : p.desc.bias_type;
  const bool has_bias = p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
  const std::byte* bias =
      has_bias ? Storage(p.desc.bias, p.d_layout.n_rows * ElementBytes(bias_type), "bias")
               : nullptr;
  if (a == nullptr || b == nullptr || d == nullptr || (p.beta != 0 && c == nullptr) ||
      (has_bias && bias == nullptr)) {
    return;
  }
  const std::vector<float> rows = Widen(a, p.a_layout, p.desc.trans_a == CUBLAS_OP_T);
  const std::vector<float> cols = Widen(b, p.b_layout, p.desc.trans_b == CUBLAS_OP_N);
  const int64_t k = p.desc.trans_a == CUBLAS_OP_T ? p.a_layout.n_rows : p.a_layout.n_cols;
  for (int64_t col = 0; col < p.d_layout.n_cols; ++col) {
    for (int64_t row = 0; row < p.d_layout.n_rows; ++row) {
      const float* x = rows.data() + row * k;
      const float* y = cols.data() + col * k;
      float lanes[16] = {};  // sums side by side, for the compiler's vectors
      int64_t i = 0;
      for (; i + 16 <= k; i += 16) {
        for (int lane = 0; lane < 16; ++lane) lanes[lane] += x[i + lane] * y[i + lane];
      }
      for (; i < k; ++i) lanes[0] += x[i] * y[i];
      float sum = 0;
      for (const float lane : lanes) sum += lane;
      sum *= p.alpha;
      if (c != nullptr) sum += p.beta * Load(c, col * p.c_layout.ld + row, p.c_layout.type);
      if (bias != nullptr) sum += Load(bias, row, bias_type);
      const int64_t at = col * p.d_layout.ld + row;
      if (p.d_layout.type == CUDA_R_32F) {
        reinterpret_cast<float*>(d)[at] = sum;
      } else {
        reinterpret_cast<BF16*>(d)[at] = ToBF16(sum);
      }
    }
  }
}

bool Fits(const cublasLtMatmulDescOpaque_t& desc, const Layout& a, const Layout& b, const Layout& c,
          const Layout& d) {
  const bool ta = desc.trans_a == CUBLAS_OP_T;
  const bool tb = desc.trans_b == CUBLAS_OP_T;
  return a.type == CUDA_R_16BF && b.type == CUDA_R_16BF && c.type == d.type &&
         (ta ? a.n_cols : a.n_rows) == d.n_rows && (tb ? b.n_rows : b.n_cols) == d.n_cols &&
         (ta ? a.n_rows : a.n_cols) == (tb ? b.n_cols : b.n_rows) && c.n_rows == d.n_rows &&
         c.n_cols == d.n_cols;
}

template <class T>
cublasStatus_t Set(const void* value, size_t n_bytes, T* to) {
  if (n_bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (Runtime::Get().n_devices == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasLtContext();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t,
                                        cudaDataType_t scale_type) {
  if (scale_type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *desc = new cublasLtMatmulDescOpaque_t();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t n_bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return Set(value, n_bytes, &desc->trans_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return Set(value, n_bytes, &desc->trans_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return Set(value, n_bytes, &desc->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return Set(value, n_bytes, &desc->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return Set(value, n_bytes, &desc->bias_type);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t n_rows, uint64_t n_cols, int64_t ld) {
  if (n_rows == 0 || n_cols == 0 || ld < static_cast<int64_t>(n_rows)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  *layout = new cublasLtMatrixLayoutOpaque_t{type, static_cast<int64_t>(n_rows),
                                             static_cast<int64_t>(n_cols), ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t n_bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    return Set(value, n_bytes, &preference->workspace_bytes);
  }
  return n_bytes == sizeof(uint32_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int n_requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* n_found) {
  *n_found = 0;
  if (n_requested < 1 || !Fits(*desc, *a, *b, *c, *d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  *n_found = 1;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t*, void*,
                              size_t, cudaStream_t stream) {
  if (!Fits(*desc, *a_layout, *b_layout, *c_layout, *d_layout)) return CUBLAS_STATUS_INVALID_VALUE;
  const Product product{.desc = *desc,
                        .alpha = *static_cast<const float*>(alpha),
                        .beta = *static_cast<const float*>(beta),
                        .a = a,
                        .b = b,
                        .c = c,
                        .d = d,
                        .a_layout = *a_layout,
                        .b_layout = *b_layout,
                        .c_layout = *c_layout,
                        .d_layout = *d_layout};
  const cudaError_t error = Runtime::Get().Enqueue(stream, [product] { Multiply(product); });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
