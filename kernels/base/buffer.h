// Buffer: owns one block of memory of a backend, 64-byte aligned at least. Move only.
// The deleter comes from whoever allocated it (Backend::Allocate), so a Buffer may outlive nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace longhaul {

// Memory of a device, or of a machine.
struct MemoryInfo {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;
};

class Buffer {
 public:
  using Deleter = std::function<void(void* data, size_t n_bytes)>;

  Buffer() = default;
  Buffer(void* data, size_t n_bytes, Deleter deleter)
      : data_(data), n_bytes_(n_bytes), deleter_(std::move(deleter)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this == &other) return *this;
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    n_bytes_ = std::exchange(other.n_bytes_, 0);
    deleter_ = std::move(other.deleter_);
    return *this;
  }
  ~Buffer() { Reset(); }

  void* data() const { return data_; }
  size_t n_bytes() const { return n_bytes_; }

 private:
  void Reset() {
    if (data_ != nullptr) deleter_(data_, n_bytes_);
    data_ = nullptr;
  }

  void* data_ = nullptr;
  size_t n_bytes_ = 0;
  Deleter deleter_;
};

}  // namespace longhaul
