#include "kernels/machine_peaks.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/cpu/matmul.h"
#include "kernels/host_memory.h"

namespace longhaul {
namespace {

using cpu::Matmul;
using cpu::MatmulCache;
using cpu::MatmulType;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 6;  // the best counts: others may use the machine meanwhile

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Giga-operations per second of 256 x 256 x 1024 products, each thread on operands of its own.
absl::StatusOr<double> GemmPeak(MatmulType type, ThreadPool& pool) {
  constexpr int64_t kRows = 256, kColumns = 256, kInner = 1024, kProducts = 40;
  if (!MatmulCache::IsNative(type)) return 0.0;
  MatmulCache matmuls(pool.n_threads());
  const int64_t panel_bytes = matmuls.PackedBytes(type, kColumns, kInner);
  Matmul& matmul = matmuls.Get({type, kRows, kColumns, kInner});
  constexpr int64_t kXBytes = kRows * kInner * int64_t{sizeof(float)};
  constexpr int64_t kYBytes = kRows * kColumns * int64_t{sizeof(float)};
  std::vector<Buffer> operands(pool.n_threads());
  for (Buffer& buffer : operands) {
    LH_ASSIGN_OR_RETURN(buffer, AllocateHost(kXBytes + kYBytes + panel_bytes));
    std::memset(buffer.data(), 1, buffer.n_bytes());  // unwritten pages are all one page
  }
  double best_seconds = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point start = Clock::now();
    pool.ParallelFor(pool.n_threads(), [&](int64_t i, int thread) {
      auto* x = static_cast<std::byte*>(operands[i].data());
      for (int64_t n = 0; n < kProducts; ++n) {
        matmuls.Run(matmul, x, x + kXBytes + kYBytes, x + kXBytes, thread);
      }
    });
    best_seconds = std::min(best_seconds, SecondsSince(start));
  }
  constexpr double kOperations = 2.0 * kRows * kColumns * kInner * kProducts;
  return kOperations * pool.n_threads() / best_seconds * 1e-9;
}

constexpr int64_t kMemoryBytes = int64_t{512} << 20;  // more than any cache
constexpr int64_t kPieceBytes = int64_t{4} << 20;

double ReadBandwidth(const Buffer& buffer, ThreadPool& pool) {
  std::atomic<uint64_t> sink{0};
  double best_seconds = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point start = Clock::now();
    pool.ParallelFor(kMemoryBytes / kPieceBytes, [&](int64_t i, int) {
      const auto* words = reinterpret_cast<const uint64_t*>(static_cast<std::byte*>(buffer.data()) +
                                                            i * kPieceBytes);
      uint64_t sum = 0;
      for (size_t w = 0; w < kPieceBytes / sizeof(uint64_t); ++w) sum ^= words[w];
      sink.fetch_xor(sum, std::memory_order_relaxed);
    });
    best_seconds = std::min(best_seconds, SecondsSince(start));
  }
  return static_cast<double>(kMemoryBytes) / best_seconds * 1e-9;
}

// One half of the buffer to the other.
double CopyBandwidth(const Buffer& buffer, ThreadPool& pool) {
  auto* data = static_cast<std::byte*>(buffer.data());
  double best_seconds = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const Clock::time_point start = Clock::now();
    pool.ParallelFor(kMemoryBytes / 2 / kPieceBytes, [&](int64_t i, int) {
      std::memcpy(data + kMemoryBytes / 2 + i * kPieceBytes, data + i * kPieceBytes, kPieceBytes);
    });
    best_seconds = std::min(best_seconds, SecondsSince(start));
  }
  return static_cast<double>(kMemoryBytes) / best_seconds * 1e-9;
}

}  // namespace

void MachinePeaks::Merge(const MachinePeaks& other) {
  f32_gflops = std::max(f32_gflops, other.f32_gflops);
  bf16_gflops = std::max(bf16_gflops, other.bf16_gflops);
  int8_gops = std::max(int8_gops, other.int8_gops);
  read_gb_per_s = std::max(read_gb_per_s, other.read_gb_per_s);
  copy_gb_per_s = std::max(copy_gb_per_s, other.copy_gb_per_s);
}

double MachinePeaks::OfFormat(WeightFormat format) const {
  if (format == WeightFormat::kBF16 && bf16_gflops > 0) return bf16_gflops;
  if (format == WeightFormat::kInt8 && int8_gops > 0) return int8_gops;
  return f32_gflops;
}

absl::StatusOr<MachinePeaks> MeasureMachinePeaks(int n_threads) {
  ThreadPool pool(n_threads);
  MachinePeaks peaks;
  try {
    LH_ASSIGN_OR_RETURN(peaks.f32_gflops, GemmPeak(MatmulType::kF32, pool));
    LH_ASSIGN_OR_RETURN(peaks.bf16_gflops, GemmPeak(MatmulType::kBF16, pool));
    LH_ASSIGN_OR_RETURN(peaks.int8_gops, GemmPeak(MatmulType::kInt8, pool));
  } catch (const std::exception& e) {
    return absl::InternalError(fmt::format("cannot measure matrix products: {}", e.what()));
  }
  LH_ASSIGN_OR_RETURN(const Buffer buffer, AllocateHost(kMemoryBytes));
  std::memset(buffer.data(), 1, kMemoryBytes);
  peaks.read_gb_per_s = ReadBandwidth(buffer, pool);
  peaks.copy_gb_per_s = CopyBandwidth(buffer, pool);
  return peaks;
}

}  // namespace longhaul
