// MappedFile: a whole file, read-only, memory-mapped. Owned by whoever reads it; move only; the
// bytes may be read from any thread. It does not survive another process truncating the file
// meanwhile.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "kernels/base/status.h"

namespace longhaul {

class MappedFile {
 public:
  // NotFound or FailedPrecondition with the path and the system's reason. An empty file is valid.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), n_bytes_(std::exchange(other.n_bytes_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_bytes_, other.n_bytes_);
    return *this;
  }
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, n_bytes_}; }

 private:
  MappedFile(const std::byte* data, size_t n_bytes) : data_(data), n_bytes_(n_bytes) {}

  const std::byte* data_ = nullptr;
  size_t n_bytes_ = 0;
};

}  // namespace longhaul
