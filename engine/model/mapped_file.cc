#include "engine/model/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace longhaul {
namespace {

absl::Status OpenError(const std::string& path, int error) {
  std::string text = fmt::format("cannot read {}: {}", path, std::strerror(error));
  return error == ENOENT || error == ENOTDIR ? absl::NotFoundError(text)
                                             : absl::FailedPreconditionError(text);
}

// Advice for the pages that touch the bytes, or for those that lie in them whole.
void Advise(std::span<const std::byte> bytes, bool whole_pages, int advice) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data());
  uintptr_t end = begin + bytes.size();
  begin = (whole_pages ? begin + page - 1 : begin) / page * page;
  end = (whole_pages ? end : end + page - 1) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

void PrefetchMapped(std::span<const std::byte> bytes) { Advise(bytes, false, MADV_WILLNEED); }
void ReleaseMapped(std::span<const std::byte> bytes) { Advise(bytes, true, MADV_DONTNEED); }

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return OpenError(path, errno);
  struct stat info;
  if (fstat(fd, &info) != 0) {
    const int error = errno;
    close(fd);
    return OpenError(path, error);
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return absl::FailedPreconditionError(fmt::format("{} is not a regular file", path));
  }
  const size_t n_bytes = static_cast<size_t>(info.st_size);
  const int64_t modified_ns = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  if (n_bytes == 0) {
    close(fd);
    return MappedFile(nullptr, 0, modified_ns);
  }
  void* data = mmap(nullptr, n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (data == MAP_FAILED) return OpenError(path, error);
  return MappedFile(static_cast<const std::byte*>(data), n_bytes, modified_ns);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), n_bytes_);
}

}  // namespace longhaul
