// The memory of the simulated device. A device address lies in a range that the host cannot touch
// (a stray host access is a segmentation fault that says so); its storage is a fixed distance away,
// and only the checked functions here go there. Every allocation is surrounded by bytes that belong
// to nobody and starts out as 0xff (NaN as f32 and bf16, -1 as an index).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace longhaul::simt {

// The last write of a kernel to two bytes of device memory.
struct GlobalCell {
  uint32_t launch = 0;  // 0: none
  int32_t block = 0;
  uint32_t clock = 0;  // of the writing warp
  uint16_t thread = 0;
  uint8_t bytes = 0;  // which of the two: bits 0 and 1
  bool is_atomic = false;
};
inline constexpr int kGlobalCellBytes = 2;

class DeviceMemory {
 public:
  // The process is one device.
  static DeviceMemory& Get();

  // nullptr if the device has not that much left.
  void* Allocate(size_t n_bytes);
  bool Free(void* address);  // false: not an allocation
  void SetCapacity(int64_t n_bytes) { capacity_bytes_ = n_bytes; }
  int64_t capacity_bytes() const { return capacity_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }

  // True of any address of the device, allocated or not.
  bool Owns(const void* address) const;
  // The storage of n_bytes at a device address. Checked throws Fault; Find gives nullptr and says
  // why.
  std::byte* Checked(const void* address, int n_bytes, int align_bytes, const char* action);
  std::byte* Find(const void* address, size_t n_bytes, std::string* why);
  // Of the two bytes at an address that Checked has let pass, and of those that follow.
  GlobalCell* Cells(const void* address) const {
    return cells_ + (reinterpret_cast<uintptr_t>(address) - base_) / kGlobalCellBytes;
  }

 private:
  DeviceMemory();
  std::string Explain(uintptr_t begin, size_t n_bytes) const;

  uintptr_t base_ = 0;
  ptrdiff_t to_storage_ = 0;
  GlobalCell* cells_ = nullptr;
  uintptr_t next_ = 0;
  int64_t capacity_bytes_ = int64_t{1} << 30;
  int64_t used_bytes_ = 0;
  std::map<uintptr_t, size_t> allocations_;  // begin -> bytes
  uintptr_t last_begin_ = 0;                 // the allocation that the last access found
  uintptr_t last_end_ = 0;
};

}  // namespace longhaul::simt
