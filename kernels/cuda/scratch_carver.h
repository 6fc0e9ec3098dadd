// Hands out a block of scratch memory, front to back, 16-byte aligned; host code. With a null block
// it only counts: the same code says how much scratch an op needs and where its parts lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/checked_math.h"

namespace longhaul::cuda {

class ScratchCarver {
 public:
  explicit ScratchCarver(std::byte* block) : block_(reinterpret_cast<uintptr_t>(block)) {}

  template <class T>
  T* Take(int64_t n) {
    T* taken = reinterpret_cast<T*>(block_ + static_cast<uintptr_t>(used_bytes_));
    used_bytes_ += RoundUp(n * static_cast<int64_t>(sizeof(T)), 16);
    return taken;
  }
  int64_t used_bytes() const { return used_bytes_; }

 private:
  uintptr_t block_;
  int64_t used_bytes_ = 0;
};

}  // namespace longhaul::cuda
