// Linear layers on the GPU by cuBLASLt: bf16 weights and activations, f32 sums. Used by the CUDA
// backend, on its thread; everything runs on one stream.
//
// The library's first proposal is taken once per shape and kept. A shape is what the choice may
// depend on: sizes, output type, bias, accumulation, alignment.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"

namespace longhaul::cuda {

class Gemm {
 public:
  static absl::StatusOr<std::unique_ptr<Gemm>> Create(cudaStream_t stream, StagingCopies* staging);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // weight: [n_out, n_in] any, host memory. Held as bf16 whatever it was.
  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(TensorView weight);
  void Linear(const LinearArgs& args);

 private:
  struct Shape {
    int64_t n_out = 0;
    int64_t n_in = 0;
    int64_t n_rows = 0;
    int64_t x_stride = 0;
    int64_t y_stride = 0;
    bool y_is_f32 = false;
    bool bias = false;
    bool accumulate = false;
    int64_t x_alignment_bytes = 0;
    int64_t y_alignment_bytes = 0;

    auto Key() const {
      return std::tie(n_out, n_in, n_rows, x_stride, y_stride, y_is_f32, bias, accumulate,
                      x_alignment_bytes, y_alignment_bytes);
    }
    bool operator<(const Shape& other) const { return Key() < other.Key(); }
  };
  struct Plan;  // descriptors and algorithm

  Gemm(cudaStream_t stream, StagingCopies* staging);
  const Plan& PlanOf(const Shape& shape);
  // `bias` [n] f32 as the epilogue of a bf16 output wants it; converted once.
  const void* Bf16Bias(TensorView bias);

  cudaStream_t stream_;
  StagingCopies* staging_;
  cublasLtHandle_t handle_ = nullptr;
  Buffer workspace_;
  std::map<Shape, std::unique_ptr<Plan>> plans_;
  std::map<const void*, Buffer> bf16_biases_;
};

}  // namespace longhaul::cuda
