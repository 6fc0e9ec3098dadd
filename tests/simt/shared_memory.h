// The shared memory of one simulated block, with a shadow that remembers for every two bytes who
// wrote them last and who has read them since. Throws Fault on an access out of the carved array, a
// misaligned one, a read of what nobody wrote, a touch of an asynchronous copy's destination before
// its wait, and two accesses of which one is a plain write and which nothing orders.
//
// The async proxy (tensor copies and wgmma, see hopper_device.h) reads and writes here as well. It
// must come after a fence of the thread whose ordinary store it follows, and its reads last from
// the product's issue to its end, in which nobody may write there.
//
// Two bytes, because bf16 is the smallest element that kernels keep there: neighbouring bytes
// written by two threads count as one location.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "simt/core.h"
#include "tests/simt/clocks.h"

namespace longhaul::simt {

// What a kernel did wrong.
struct Fault {
  std::string what;
};

class SharedMemory {
 public:
  explicit SharedMemory(const Clocks* clocks) : clocks_(clocks) {}

  void Reset(int n_bytes);
  int n_bytes() const { return n_bytes_; }

  void Read(SharedAddress from, int n_bytes, int align_bytes, int thread, void* to);
  // 16 bytes on behalf of a whole warp: every lane gets a part of every row.
  const std::byte* ReadByWarp(SharedAddress from, int lane, int warp);
  void Write(SharedAddress to, int n_bytes, int align_bytes, int thread, const void* from);
  std::byte* Atomic(SharedAddress at, int n_bytes, int align_bytes, int thread);

  // An asynchronous copy of 16 bytes: from the start on, until the landing, nobody may touch them.
  void StartCopy(SharedAddress to, int thread);
  void LandCopy(SharedAddress to, int thread, const void* from);  // from = nullptr: zeros

  // ---- Async proxy ----
  // What `thread` has written so far may be seen by it.
  void FenceProxy(int thread) { ++n_fences_[static_cast<size_t>(thread)]; }
  // A transaction barrier: written by one thread, out of bounds for plain accesses from then on.
  void MakeBarrier(SharedAddress at, int thread);
  // Throws unless `thread` knows that the barrier has been made; through the async proxy, that this
  // was fenced as well.
  void CheckBarrier(SharedAddress at, int thread, bool from_async_proxy) const;
  // A tensor copy of n_bytes, and later its landing, 16 bytes at a time, by a clock agent.
  void StartTensorCopy(SharedAddress to, int n_bytes, int thread);
  void LandTensorCopy(int64_t offset, int agent, const void* from);  // from = nullptr: zeros
  // 16 bytes of a matrix that a product of `warp` reads from now on.
  const std::byte* BeginProductRead(int64_t offset, int warp);
  void EndProductRead(int64_t offset, int warp);

 private:
  // Accesses of one kind to every cell, the last by each warp: clock << 6 | lane, with lane 32 for
  // several of them; 0 = none. Empty until the first access.
  using ByWarp = std::vector<uint32_t>;  // [n_cells, n_warps]

  // Clock and thread of a write; 0 = none.
  static uint32_t Stamp(uint32_t clock, int thread) {
    return clock << 10 | static_cast<uint32_t>(thread);
  }

  void CheckAddress(SharedAddress at, int n_bytes, int align_bytes, const char* action) const;
  void CheckUse(SharedAddress at, int n_bytes, const char* action) const;
  void CheckFenced(SharedAddress at, int n_bytes, const char* action) const;
  // Throws unless this access comes after the last plain write of each cell ...
  void CheckAfterWrites(SharedAddress at, int n_bytes, int thread, bool whole_warp,
                        const char* action) const;
  // ... and after what `by_warp` remembers.
  void CheckAfter(const ByWarp& by_warp, SharedAddress at, int n_bytes, int thread,
                  const char* action, const char* other_action) const;
  void Remember(ByWarp& by_warp, SharedAddress at, int n_bytes, int thread, bool whole_warp);
  void CheckRead(SharedAddress at, int n_bytes, int thread, bool whole_warp);
  void CheckWrite(SharedAddress at, int n_bytes, int thread, const char* action);
  [[noreturn]] void Race(SharedAddress at, size_t cell, const char* action, int other_thread,
                         const char* other_action) const;

  const Clocks* clocks_;
  int n_bytes_ = 0;
  size_t n_warps_ = 0;
  std::vector<std::byte> bytes_;
  std::vector<uint32_t> writes_;  // [n_cells] stamp of the last plain write
  enum class Use : uint8_t { kPlain, kCopying, kBarrier };
  std::vector<Use> uses_;  // [n_cells] kCopying: that write is an asynchronous copy under way
  std::vector<uint8_t> n_product_reads_;  // [n_cells] under way
  std::vector<uint16_t> write_fences_;    // [n_cells] 1 + fences of the writer before; 0 = async
  std::vector<uint16_t> n_fences_;        // [n_threads]
  ByWarp reads_;
  ByWarp atomics_;
};

}  // namespace longhaul::simt
