// PackedWeight: a weight matrix as CpuGemm multiplies it, in one block of memory that can be kept
// on disk and mapped again. Const after it was made; read by all threads of the pool.
//
// Formats that the processor multiplies in hardware are packed for their own kernels. The others
// are packed for the f32 kernels and narrowed element by element: a panel is widened again right
// before it is used, in cache, so memory and bandwidth are those of the narrow type everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/thread_pool.h"
#include "kernels/cpu/matmul.h"

namespace longhaul::cpu {

struct Panel {
  int64_t begin = 0;  // output columns [begin, begin + n)
  int64_t n = 0;
  int64_t n_elements = 0;  // as packed: n * n_in and padding; of kernels that are not f32, bytes
  const std::byte* data = nullptr;
  bool streamed = false;  // GemvInt8 can read it
};

class PackedWeight : public LinearWeight {
 public:
  MatmulType type = MatmulType::kF32;  // of the kernels
  bool widen = false;                  // panels hold bf16 or i8 for f32 kernels
  std::vector<Panel> panels;
  const float* scales = nullptr;   // [n_out], of kInt8
  const int32_t* zeros = nullptr;  // [n_out], of kInt8 kernels: what moving x by 128 adds to a sum

  Buffer storage;  // all of the above; empty when it belongs to somebody else
};

// weight: [n_out, n_in] of any float type, dense. Quantises and packs on all threads.
absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(TensorView weight, WeightFormat format,
                                                         MatmulCache& matmuls, ThreadPool& pool);

// The same from the bytes of an earlier PackedWeight (LinearWeight::packed), 64-byte aligned, which
// must outlive it. InvalidArgument when their number is wrong.
absl::StatusOr<std::unique_ptr<PackedWeight>> AdoptPackedWeight(int64_t n_out, int64_t n_in,
                                                                WeightFormat format,
                                                                std::span<const std::byte> bytes,
                                                                MatmulCache& matmuls);

// A panel of a `widen` weight in f32; out: [panel.n_elements].
void WidenPanel(const PackedWeight& weight, const Panel& panel, float* out);

}  // namespace longhaul::cpu
