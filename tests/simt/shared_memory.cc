#include "tests/simt/shared_memory.h"

#include <fmt/format.h>

#include <cstring>

namespace longhaul::simt {
namespace {

constexpr int kCellBytes = 2;
constexpr uint32_t kSeveralLanes = 32;
constexpr int kRowBytes = 16;

size_t FirstCell(SharedAddress at) { return static_cast<size_t>(at.offset) / kCellBytes; }
size_t EndCell(SharedAddress at, int n_bytes) {
  return static_cast<size_t>(at.offset + n_bytes + kCellBytes - 1) / kCellBytes;
}
int ThreadOf(uint32_t write_stamp) { return static_cast<int>(write_stamp & 1023u); }
uint32_t ClockOf(uint32_t write_stamp) { return write_stamp >> 10; }

}  // namespace

void SharedMemory::Reset(int n_bytes) {
  n_bytes_ = n_bytes;
  n_warps_ = static_cast<size_t>(clocks_->n_warps());
  const size_t n_cells = static_cast<size_t>(n_bytes + kCellBytes - 1) / kCellBytes;
  bytes_.assign(static_cast<size_t>(n_bytes), std::byte{0xff});
  writes_.assign(n_cells, 0);
  uses_.assign(n_cells, Use::kPlain);
  n_product_reads_.assign(n_cells, 0);
  write_fences_.assign(n_cells, 0);
  n_fences_.assign(n_warps_ * 32, 0);
  reads_.clear();
  atomics_.clear();
}

void SharedMemory::CheckAddress(SharedAddress at, int n_bytes, int align_bytes,
                                const char* action) const {
  if (at.offset < at.begin || at.offset + n_bytes > at.end) {
    throw Fault{fmt::format(
        "{} shared memory out of bounds: bytes [{}, {}) of an array of {} bytes (at {} of the "
        "block's {})",
        action, at.offset - at.begin, at.offset - at.begin + n_bytes, at.end - at.begin, at.begin,
        n_bytes_)};
  }
  if (at.offset % align_bytes != 0) {
    throw Fault{
        fmt::format("{} {} bytes of shared memory at offset {}, misaligned: must be a "
                    "multiple of {}",
                    action, n_bytes, at.offset, align_bytes)};
  }
}

void SharedMemory::Race(SharedAddress at, size_t cell, const char* action, int other_thread,
                        const char* other_action) const {
  std::string other = fmt::format("thread {}", other_thread);
  if (other_thread < 0) other = "several lanes";
  if (other_thread >= static_cast<int>(n_warps_) * 32) {
    other = "a tensor copy whose barrier this thread has not waited for";
  }
  throw Fault{fmt::format(
      "race in shared memory: {} byte {} of the array at {}, which {} {}, with no barrier between",
      action, static_cast<int64_t>(cell) * kCellBytes - at.begin, at.begin, other, other_action)};
}

void SharedMemory::CheckUse(SharedAddress at, int n_bytes, const char* action) const {
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    if (uses_[cell] == Use::kBarrier) {
      throw Fault{fmt::format("{} the transaction barrier at {}", action, at.offset)};
    }
    if (uses_[cell] == Use::kCopying) {
      throw Fault{
          fmt::format("{} byte {} of the shared array at {} while the asynchronous copy of "
                      "thread {} into it is under way (not waited for)",
                      action, static_cast<int64_t>(cell) * kCellBytes - at.begin, at.begin,
                      ThreadOf(writes_[cell]))};
    }
  }
}

void SharedMemory::CheckAfterWrites(SharedAddress at, int n_bytes, int thread, bool whole_warp,
                                    const char* action) const {
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    const uint32_t write = writes_[cell];
    const int writer = ThreadOf(write);
    if (write == 0 || (writer == thread && !whole_warp)) continue;
    if (!clocks_->Ordered(thread / 32, writer / 32, ClockOf(write))) {
      Race(at, cell, action, writer, "wrote");
    }
  }
}

void SharedMemory::CheckAfter(const ByWarp& by_warp, SharedAddress at, int n_bytes, int thread,
                              const char* action, const char* other_action) const {
  if (by_warp.empty()) return;
  const int warp = thread / 32;
  const uint32_t lane = static_cast<uint32_t>(thread % 32);
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    for (int other = 0; other < clocks_->n_warps(); ++other) {
      const uint32_t access = by_warp[cell * n_warps_ + static_cast<size_t>(other)];
      const uint32_t other_lane = access & 63u;
      if (access == 0 || (other == warp && other_lane == lane)) continue;
      if (!clocks_->Ordered(warp, other, access >> 6)) {
        const bool is_several = other_lane == kSeveralLanes;
        Race(at, cell, action, is_several ? -1 : other * 32 + static_cast<int>(other_lane),
             other_action);
      }
    }
  }
}

void SharedMemory::Remember(ByWarp& by_warp, SharedAddress at, int n_bytes, int thread,
                            bool whole_warp) {
  if (by_warp.empty()) by_warp.assign(writes_.size() * n_warps_, 0);
  const uint32_t now = clocks_->Now(thread / 32);
  const uint32_t lane = whole_warp ? kSeveralLanes : static_cast<uint32_t>(thread % 32);
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    uint32_t& access = by_warp[cell * n_warps_ + static_cast<size_t>(thread / 32)];
    const bool is_several = access >> 6 == now && (access & 63u) != lane;
    access = now << 6 | (is_several ? kSeveralLanes : lane);
  }
}

void SharedMemory::CheckRead(SharedAddress at, int n_bytes, int thread, bool whole_warp) {
  CheckUse(at, n_bytes, "reads");
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    if (writes_[cell] == 0) {
      throw Fault{fmt::format("reads shared memory that nobody wrote: byte {} of the array at {}",
                              static_cast<int64_t>(cell) * kCellBytes - at.begin, at.begin)};
    }
  }
  CheckAfterWrites(at, n_bytes, thread, whole_warp, "reads");
  CheckAfter(atomics_, at, n_bytes, thread, "reads", "updated (atomic)");
  Remember(reads_, at, n_bytes, thread, whole_warp);
}

void SharedMemory::CheckWrite(SharedAddress at, int n_bytes, int thread, const char* action) {
  CheckUse(at, n_bytes, action);
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    if (n_product_reads_[cell] > 0) {
      throw Fault{fmt::format("{} shared memory at {} that a wgmma under way reads", action,
                              static_cast<int64_t>(cell) * kCellBytes)};
    }
  }
  CheckAfterWrites(at, n_bytes, thread, /*whole_warp=*/false, action);
  CheckAfter(reads_, at, n_bytes, thread, action, "read");
  CheckAfter(atomics_, at, n_bytes, thread, action, "updated (atomic)");
  const uint32_t stamp = Stamp(clocks_->Now(thread / 32), thread);
  const uint16_t fences = static_cast<uint16_t>(1 + n_fences_[static_cast<size_t>(thread)]);
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    writes_[cell] = stamp;
    write_fences_[cell] = fences;
  }
}

void SharedMemory::Read(SharedAddress from, int n_bytes, int align_bytes, int thread, void* to) {
  CheckAddress(from, n_bytes, align_bytes, "reads");
  CheckRead(from, n_bytes, thread, /*whole_warp=*/false);
  std::memcpy(to, bytes_.data() + from.offset, static_cast<size_t>(n_bytes));
}

const std::byte* SharedMemory::ReadByWarp(SharedAddress from, int lane, int warp) {
  CheckAddress(from, kRowBytes, kRowBytes, "reads (ldmatrix)");
  CheckRead(from, kRowBytes, warp * 32 + lane, /*whole_warp=*/true);
  return bytes_.data() + from.offset;
}

void SharedMemory::Write(SharedAddress to, int n_bytes, int align_bytes, int thread,
                         const void* from) {
  CheckAddress(to, n_bytes, align_bytes, "writes");
  CheckWrite(to, n_bytes, thread, "writes");
  std::memcpy(bytes_.data() + to.offset, from, static_cast<size_t>(n_bytes));
}

std::byte* SharedMemory::Atomic(SharedAddress at, int n_bytes, int align_bytes, int thread) {
  CheckAddress(at, n_bytes, align_bytes, "updates (atomic)");
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    if (writes_[cell] == 0) {
      throw Fault{
          fmt::format("atomic on shared memory that nobody wrote: byte {} of the array at "
                      "{}",
                      static_cast<int64_t>(cell) * kCellBytes - at.begin, at.begin)};
    }
  }
  CheckUse(at, n_bytes, "updates (atomic)");
  CheckAfterWrites(at, n_bytes, thread, /*whole_warp=*/false, "updates (atomic)");
  CheckAfter(reads_, at, n_bytes, thread, "updates (atomic)", "read");
  Remember(atomics_, at, n_bytes, thread, /*whole_warp=*/false);
  return bytes_.data() + at.offset;
}

void SharedMemory::StartCopy(SharedAddress to, int thread) {
  CheckAddress(to, kRowBytes, kRowBytes, "copies asynchronously into");
  CheckWrite(to, kRowBytes, thread, "copies asynchronously into");
  for (size_t cell = FirstCell(to); cell < EndCell(to, kRowBytes); ++cell) {
    uses_[cell] = Use::kCopying;
  }
}

void SharedMemory::LandCopy(SharedAddress to, int thread, const void* from) {
  const uint32_t stamp = Stamp(clocks_->Now(thread / 32), thread);
  for (size_t cell = FirstCell(to); cell < EndCell(to, kRowBytes); ++cell) {
    uses_[cell] = Use::kPlain;
    writes_[cell] = stamp;
  }
  if (from == nullptr) {
    std::memset(bytes_.data() + to.offset, 0, kRowBytes);
  } else {
    std::memcpy(bytes_.data() + to.offset, from, kRowBytes);
  }
}

// ---- Async proxy ----

void SharedMemory::CheckFenced(SharedAddress at, int n_bytes, const char* action) const {
  for (size_t cell = FirstCell(at); cell < EndCell(at, n_bytes); ++cell) {
    if (writes_[cell] == 0 || write_fences_[cell] == 0) continue;
    const int writer = ThreadOf(writes_[cell]);
    if (write_fences_[cell] > n_fences_[static_cast<size_t>(writer)]) {
      throw Fault{fmt::format(
          "{} shared memory at {} by the async proxy after an ordinary store of thread {}, with no "
          "FenceProxyAsync of that thread between",
          action, static_cast<int64_t>(cell) * kCellBytes, writer)};
    }
  }
}

void SharedMemory::MakeBarrier(SharedAddress at, int thread) {
  constexpr uint64_t kMade = 0;
  Write(at, sizeof(kMade), sizeof(kMade), thread, &kMade);
  for (size_t cell = FirstCell(at); cell < EndCell(at, sizeof(kMade)); ++cell) {
    uses_[cell] = Use::kBarrier;
  }
}

void SharedMemory::CheckBarrier(SharedAddress at, int thread, bool from_async_proxy) const {
  CheckAfterWrites(at, sizeof(uint64_t), thread, /*whole_warp=*/false, "uses the barrier");
  if (from_async_proxy) CheckFenced(at, sizeof(uint64_t), "uses the barrier");
}

void SharedMemory::StartTensorCopy(SharedAddress to, int n_bytes, int thread) {
  constexpr const char* kAction = "copies a tensor into";
  CheckAddress(to, n_bytes, 1024, kAction);
  CheckFenced(to, n_bytes, kAction);
  CheckWrite(to, n_bytes, thread, kAction);
  for (size_t cell = FirstCell(to); cell < EndCell(to, n_bytes); ++cell) {
    uses_[cell] = Use::kCopying;
    write_fences_[cell] = 0;
  }
}

void SharedMemory::LandTensorCopy(int64_t offset, int agent, const void* from) {
  const SharedAddress to = {.offset = offset, .begin = 0, .end = n_bytes_};
  LandCopy(to, agent * 32, from);
}

const std::byte* SharedMemory::BeginProductRead(int64_t offset, int warp) {
  const SharedAddress at = {.offset = offset, .begin = 0, .end = n_bytes_};
  CheckAddress(at, kRowBytes, kRowBytes, "reads (wgmma)");
  CheckFenced(at, kRowBytes, "reads (wgmma)");
  CheckRead(at, kRowBytes, warp * 32, /*whole_warp=*/true);
  for (size_t cell = FirstCell(at); cell < EndCell(at, kRowBytes); ++cell) {
    ++n_product_reads_[cell];
  }
  return bytes_.data() + offset;
}

void SharedMemory::EndProductRead(int64_t offset, int warp) {
  const SharedAddress at = {.offset = offset, .begin = 0, .end = n_bytes_};
  Remember(reads_, at, kRowBytes, warp * 32, /*whole_warp=*/true);
  for (size_t cell = FirstCell(at); cell < EndCell(at, kRowBytes); ++cell) {
    --n_product_reads_[cell];
  }
}

}  // namespace longhaul::simt
