// Linear layers of the CPU backend: matrix products on packed weights (packed_weight.h), cut over
// the thread pool by rows and output columns.
//
// Rows are brought into the weight's format once per call. The same packed weight serves prefill
// (hundreds of rows) and decode (one row at memory bandwidth). Owned by CpuBackend; called from its
// rank's thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

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

  // See the ops of the same names in kernels/backend.h.
  absl::StatusOr<std::unique_ptr<LinearWeight>> Prepare(TensorView weight, WeightFormat format);
  std::string PackedLayoutName() const;
  absl::StatusOr<std::unique_ptr<LinearWeight>> Adopt(int64_t n_out, int64_t n_in,
                                                      WeightFormat format,
                                                      std::span<const std::byte> packed);
  void Linear(const LinearArgs& args) { Linear(args, nullptr); }
  // The same of rows that are made when they are converted: make_row writes row t of x, on any
  // thread, and args.x gives no more than the shape. Of weights that are not f32.
  using MakeRow = std::function<void(int64_t t, float* out)>;
  void Linear(const LinearArgs& args, const MakeRow& make_row);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul
