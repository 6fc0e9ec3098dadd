// MappedFile: a whole file, read-only, memory-mapped. Owned by whoever reads it; move only; the
// bytes may be read from any thread. It does not survive another process truncating the file
// meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
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
      : data_(std::exchange(other.data_, nullptr)),
        n_bytes_(std::exchange(other.n_bytes_, 0)),
        modified_ns_(other.modified_ns_) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_bytes_, other.n_bytes_);
    std::swap(modified_ns_, other.modified_ns_);
    return *this;
  }
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, n_bytes_}; }
  int64_t modified_ns() const { return modified_ns_; }  // since 1970, of the file

 private:
  MappedFile(const std::byte* data, size_t n_bytes, int64_t modified_ns)
      : data_(data), n_bytes_(n_bytes), modified_ns_(modified_ns) {}

  const std::byte* data_ = nullptr;
  size_t n_bytes_ = 0;
  int64_t modified_ns_ = 0;
};

// Hints to the system about a part of a mapped file: that it is read soon, and that it was read and
// its memory may be taken (it stays in the page cache as long as that has room).
void PrefetchMapped(std::span<const std::byte> bytes);
void ReleaseMapped(std::span<const std::byte> bytes);

}  // namespace longhaul
