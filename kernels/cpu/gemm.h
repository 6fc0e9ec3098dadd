// Linear layers of the CPU backend: oneDNN matmul in f32 on packed weights.
//
// oneDNN runs one thread per call; rows and columns are cut over our own pool, so that no OpenMP
// team spins beside our workers. The same packed weight serves prefill (hundreds of rows) and
// decode (one row at memory bandwidth: an own Highway GEMV had nothing left to win over 108 GB/s
// from cache and 45-56 GB/s from memory per core). Owned by CpuBackend; called from its rank's
// thread only.
#pragma once

#include <memory>

#include "kernels/args.h"
#include "kernels/backend.h"
#include "kernels/base/thread_pool.h"

namespace longhaul {

class CpuGemm {
 public:
  // The pool must outlive this object.
  explicit CpuGemm(ThreadPool* pool);
  ~CpuGemm();
  CpuGemm(const CpuGemm&) = delete;
  CpuGemm& operator=(const CpuGemm&) = delete;

  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(TensorView weight);
  void Linear(const LinearArgs& args);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul
