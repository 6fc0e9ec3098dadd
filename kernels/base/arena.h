// Arena: bump allocation inside one Buffer, for the scratch tensors of a step. Not thread safe: one
// arena per rank thread.
//
// Counting mode (default constructed): the same code runs, pointers are fake and must not be read,
// and high_water_bytes() says how large a real arena must be. Nothing is allocated in a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/base/buffer.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/tensor.h"

namespace longhaul {

class Arena {
 public:
  static constexpr int64_t kAlignment = 64;

  Arena() = default;  // counting mode
  explicit Arena(Buffer buffer) : buffer_(std::move(buffer)), counting_(false) {}

  bool counting() const { return counting_; }

  TensorView Allocate(DType dtype, std::initializer_list<int64_t> shape) {
    int64_t n_bytes = static_cast<int64_t>(DTypeBytes(dtype));
    for (int64_t extent : shape) n_bytes *= extent;
    const int64_t begin = used_bytes_;
    used_bytes_ = RoundUp(begin + n_bytes, kAlignment);
    if (used_bytes_ > high_water_bytes_) high_water_bytes_ = used_bytes_;
    if (counting_) return TensorView(reinterpret_cast<void*>(kAlignment + begin), dtype, shape);
    LH_CHECK(used_bytes_ <= static_cast<int64_t>(buffer_.n_bytes()));
    return TensorView(static_cast<std::byte*>(buffer_.data()) + begin, dtype, shape);
  }

  // Mark() and Release() free in stack order everything allocated after the mark.
  int64_t Mark() const { return used_bytes_; }
  void Release(int64_t mark) { used_bytes_ = mark; }

  int64_t high_water_bytes() const { return high_water_bytes_; }

 private:
  Buffer buffer_;
  bool counting_ = true;
  int64_t used_bytes_ = 0;
  int64_t high_water_bytes_ = 0;
};

// Frees what was allocated from the arena during its lifetime.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.Mark()) {}
  ~ArenaScope() { arena_.Release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace longhaul
