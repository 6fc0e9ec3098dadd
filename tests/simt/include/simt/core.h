// What the emulated primitives (simt/device.h) ask of the emulator: one function per kind of access
// and per kind of rendezvous. Called on the fiber of a simulated thread only; each function throws
// (see block.h) when the access is a fault, which ends the launch and fails the test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace longhaul::simt {

// Where a kernel calls a primitive. As std::source_location, which clang 14 does not have.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site Current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return Site{file, line};
  }
};
// "attention_dense.cu:131"
std::string ToString(const Site& site);
bool SameSite(const Site& a, const Site& b);

// Where the running thread stands.
struct ThreadPlace {
  int thread = 0;
  int n_threads = 0;
  int block[3] = {0, 0, 0};
  int grid[3] = {1, 1, 1};
};
const ThreadPlace& Here();

// An address in the block's dynamic shared memory, and the carved array [begin, end) that it is
// allowed to stay in. Bytes.
struct SharedAddress {
  int64_t offset = 0;
  int32_t begin = 0;
  int32_t end = 0;

  SharedAddress operator+(int64_t n_bytes) const { return {offset + n_bytes, begin, end}; }
};

// The storage behind a device address, after the checks of an access of n_bytes.
const std::byte* CheckedGlobalRead(const void* address, int n_bytes, int align_bytes);
// Through the read-only path: of what no thread has written in this launch.
const std::byte* CheckedGlobalReadOnly(const void* address, int n_bytes, int align_bytes);
std::byte* CheckedGlobalWrite(void* address, int n_bytes, int align_bytes);
// For a read-modify-write. Another thread, of this block or of another one, may run first.
std::byte* CheckedGlobalAtomic(void* address, int n_bytes, int align_bytes);

// Throws if the launch has fewer than end_bytes of shared memory.
void CheckCarve(int64_t end_bytes);
void ReadShared(SharedAddress from, int n_bytes, int align_bytes, void* to);
void WriteShared(SharedAddress to, int n_bytes, int align_bytes, const void* from);
// The storage for a read-modify-write of one element.
std::byte* CheckedSharedAtomic(SharedAddress at, int n_bytes, int align_bytes);

void CopyAsync16(SharedAddress to, const void* from, bool valid);
void CopyAsyncCommit();
void CopyAsyncWait(int n_pending);

// Barrier of the whole block; returns the number of threads that gave true.
int SyncThreads(bool value, const Site& site);
void SyncNamed(int id, int n_threads, const Site& site);
void ArriveNamed(int id, int n_threads, const Site& site);

void SyncWarp(const Site& site);
enum class ShuffleKind : uint8_t { kIndex, kXor, kUp, kDown };
uint64_t Shuffle(ShuffleKind kind, uint64_t value, int arg, const Site& site);
uint32_t Ballot(bool value, const Site& site);
// n_matrices registers to `out`.
void LdMatrix(SharedAddress row, int n_matrices, bool transposed, uint32_t* out, const Site& site);
// d += a b, fragments of m16n8k16.
void MmaBf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, const Site& site);

}  // namespace longhaul::simt
