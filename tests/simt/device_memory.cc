#include "tests/simt/device_memory.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "kernels/base/check.h"
#include "tests/simt/shared_memory.h"

namespace longhaul::simt {
namespace {

// Address space, never used up: freed addresses do not come back, so that a use after free is seen.
constexpr size_t kRangeBytes = size_t{64} << 30;
constexpr uintptr_t kNullBytes = 65536;  // nothing is mapped there
constexpr size_t kGuardBytes = 256;      // and the alignment of allocations, as on a real device

uintptr_t range_begin = 0;  // for the signal handler

void OnSegmentationFault(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (address >= range_begin && address < range_begin + kRangeBytes) {
    constexpr char kText[] = "host code touched device memory\n";
    [[maybe_unused]] const ssize_t n_written = write(STDERR_FILENO, kText, sizeof(kText) - 1);
  }
  ::signal(signal, SIG_DFL);  // the access is tried again and ends the process
}

// The whole pages among n_bytes of our own memory.
void GiveBack(void* address, size_t n_bytes) {
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<uintptr_t>(address);
  const uintptr_t begin = (at + page_bytes - 1) / page_bytes * page_bytes;
  const uintptr_t end = (at + n_bytes) / page_bytes * page_bytes;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

DeviceMemory& DeviceMemory::Get() {
  static DeviceMemory memory;
  return memory;
}

DeviceMemory::DeviceMemory() {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* range = mmap(nullptr, kRangeBytes, PROT_NONE, kFlags, -1, 0);
  void* storage = mmap(nullptr, kRangeBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  void* cells = mmap(nullptr, kRangeBytes / kGlobalCellBytes * sizeof(GlobalCell),
                     PROT_READ | PROT_WRITE, kFlags, -1, 0);
  LH_CHECK(range != MAP_FAILED && storage != MAP_FAILED && cells != MAP_FAILED);
  cells_ = static_cast<GlobalCell*>(cells);
  base_ = reinterpret_cast<uintptr_t>(range);
  to_storage_ = static_cast<std::byte*>(storage) - static_cast<std::byte*>(range);
  next_ = base_ + kGuardBytes;
  range_begin = base_;
  struct sigaction action = {};
  action.sa_sigaction = OnSegmentationFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
}

void* DeviceMemory::Allocate(size_t n_bytes) {
  const size_t left = static_cast<size_t>(capacity_bytes_ - used_bytes_);
  if (n_bytes > left) return nullptr;
  const size_t taken = (n_bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes + kGuardBytes;
  LH_CHECK(next_ + taken < base_ + kRangeBytes);
  const uintptr_t begin = next_;
  next_ += taken;
  allocations_.emplace(begin, n_bytes);
  used_bytes_ += static_cast<int64_t>(n_bytes);
  void* address = reinterpret_cast<void*>(begin);
  std::memset(static_cast<std::byte*>(address) + to_storage_, 0xff, n_bytes);
  return address;
}

bool DeviceMemory::Free(void* address) {
  const auto found = allocations_.find(reinterpret_cast<uintptr_t>(address));
  if (found == allocations_.end()) return false;
  GiveBack(static_cast<std::byte*>(address) + to_storage_, found->second);
  GiveBack(Cells(address), found->second / kGlobalCellBytes * sizeof(GlobalCell));
  used_bytes_ -= static_cast<int64_t>(found->second);
  allocations_.erase(found);
  last_begin_ = last_end_ = 0;
  return true;
}

bool DeviceMemory::Owns(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at >= base_ && at < base_ + kRangeBytes;
}

std::byte* DeviceMemory::Find(const void* address, size_t n_bytes, std::string* why) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin < last_begin_ || begin + n_bytes > last_end_) {
    auto found = allocations_.upper_bound(begin);
    const bool none_before = found == allocations_.begin();
    if (!none_before) --found;
    if (none_before || begin + n_bytes > found->first + found->second || begin + n_bytes < begin) {
      *why = Explain(begin, n_bytes);
      return nullptr;
    }
    last_begin_ = found->first;
    last_end_ = found->first + found->second;
  }
  return reinterpret_cast<std::byte*>(begin + static_cast<uintptr_t>(to_storage_));
}

std::string DeviceMemory::Explain(uintptr_t begin, size_t n_bytes) const {
  if (begin < kNullBytes) return fmt::format("a null pointer plus {} bytes", begin);
  if (!Owns(reinterpret_cast<void*>(begin))) return fmt::format("host memory ({:#x})", begin);
  // The allocation that the address is nearest to.
  auto after = allocations_.upper_bound(begin);
  std::string text;
  if (after != allocations_.begin()) {
    const auto before = std::prev(after);
    text = fmt::format("bytes [{}, {}) of an allocation of {} bytes", begin - before->first,
                       begin - before->first + n_bytes, before->second);
  }
  if (after != allocations_.end() && after->first - begin <= kGuardBytes) {
    text += fmt::format("{}{} bytes before the start of an allocation of {}",
                        text.empty() ? "" : ", ", after->first - begin, after->second);
  }
  return text.empty() ? "no allocation" : text;
}

std::byte* DeviceMemory::Checked(const void* address, int n_bytes, int align_bytes,
                                 const char* action) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin % static_cast<uintptr_t>(align_bytes) != 0) {
    throw Fault{
        fmt::format("{} {} bytes of global memory at {:#x}, misaligned: must be a multiple "
                    "of {}",
                    action, n_bytes, begin, align_bytes)};
  }
  std::string why;
  std::byte* storage = Find(address, static_cast<size_t>(n_bytes), &why);
  if (storage == nullptr)
    throw Fault{fmt::format("{} global memory out of bounds: {}", action, why)};
  return storage;
}

}  // namespace longhaul::simt
