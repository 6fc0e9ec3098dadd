// Attention ops of the CPU backend: dense prefill, decode, the two sampling passes and the sparse
// kernel. Owned by CpuBackend; called from its rank's thread, one op at a time; work is spread over
// the pool. Argument meaning and shapes: kernels/args.h. Choosing keys (SelectKeys, Audit) is not
// here: it is plain logic shared with the reference backend.
//
// Guarantee: a row's result is a function of that row's query and keys alone, bit for bit. It does
// not change with the rows around it, with where the call starts, or with the number of threads:
// every row walks the same absolute 64-key tiles in the same order, and sums of key chunks on an
// absolute grid are added in the order of the chunks.
//
// Memory: scratch per thread and per op, grown to a high-water mark and kept; it depends on
// head_dim, sampled rows and the number of stripes of one chunk, never on rows x keys.
#pragma once

#include <memory>
#include <vector>

#include "kernels/args.h"
#include "kernels/base/thread_pool.h"

namespace longhaul {
namespace cpu {
struct DenseItem;
struct DenseTensors;
}  // namespace cpu

class CpuAttention {
 public:
  // The pool must outlive this object.
  explicit CpuAttention(ThreadPool* pool);
  ~CpuAttention();
  CpuAttention(const CpuAttention&) = delete;
  CpuAttention& operator=(const CpuAttention&) = delete;

  void AttendDense(const AttendDenseArgs& args);
  void AttendDecode(const AttendDecodeArgs& args);
  void SampleLse(const SampleLseArgs& args);
  void SampleMass(const SampleMassArgs& args);
  void AttendSparse(const AttendSparseArgs& args);

 private:
  struct Scratch;  // attention_scratch.h

  // Few rows with many keys: the keys are shared by the threads.
  void RunDenseSplit(const cpu::DenseTensors& tensors, const std::vector<cpu::DenseItem>& items);

  ThreadPool* pool_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace longhaul
