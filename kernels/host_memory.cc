#include "kernels/host_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// Below this a block comes from the C heap; from here on from mmap, with huge pages where the
// system has them: attention walks the whole KV pool, and 4 KiB pages cost a TLB miss every few
// keys.
constexpr int64_t kMapBytes = int64_t{1} << 20;
constexpr int64_t kAlignment = 64;

}  // namespace

absl::StatusOr<Buffer> AllocateHost(int64_t n_bytes) {
  if (n_bytes < 0)
    return absl::InvalidArgumentError(fmt::format("cannot allocate {} bytes", n_bytes));
  const auto no_memory = [n_bytes] {
    return absl::ResourceExhaustedError(
        fmt::format("cannot allocate {} bytes ({:.2f} GiB) of host memory: {}. Lower the KV cache "
                    "memory or the maximum model length, or free memory on this machine",
                    n_bytes, static_cast<double>(n_bytes) / (1 << 30), std::strerror(errno)));
  };
  if (n_bytes < kMapBytes) {
    const size_t rounded = RoundUp(n_bytes > 0 ? n_bytes : 1, kAlignment);
    void* data = std::aligned_alloc(kAlignment, rounded);
    if (data == nullptr) return no_memory();
    std::memset(data, 0, rounded);
    return Buffer(data, n_bytes, [](void* block, size_t) { std::free(block); });
  }
  void* data = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return no_memory();
  madvise(data, n_bytes, MADV_HUGEPAGE);  // a wish: small pages work as well
  return Buffer(data, n_bytes, [](void* block, size_t size) { munmap(block, size); });
}

void CopyHost(const void* from, void* to, int64_t n_bytes) {
  if (n_bytes > 0) std::memcpy(to, from, static_cast<size_t>(n_bytes));
}

MemoryInfo ReadHostMemory() {
  constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
  MemoryInfo memory{.total_bytes = kUnlimited, .available_bytes = kUnlimited};
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  for (int64_t kib = 0; meminfo >> name >> kib; std::getline(meminfo, unit)) {
    if (name == "MemTotal:") memory.total_bytes = kib * 1024;
    if (name == "MemAvailable:") memory.available_bytes = kib * 1024;
  }
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit_bytes = 0;
    if (std::ifstream(path) >> limit_bytes && limit_bytes > 0) {
      memory.total_bytes = std::min(memory.total_bytes, limit_bytes);
      memory.available_bytes = std::min(memory.available_bytes, limit_bytes);
    }
  }
  return memory;
}

}  // namespace longhaul
