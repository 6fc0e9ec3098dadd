// Matrix products of one thread on packed panels, by oneDNN: the only file of ours that includes
// it.
//
// oneDNN 2.6 reaches 95 % of the machine's peak in f32, bf16 and u8 x s8 alike (kernels chosen at
// run time: AVX2, AVX-512, VNNI, AVX512-BF16, AMX), so the only kernel of our own is that of few
// rows on int8 weights (gemv_int8.h). It runs one thread per call, and rows and columns are cut
// over our pool by CpuGemm. Owned by CpuGemm; Run and Pack may be called from all threads of its
// pool at a time, the rest from its own thread.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace longhaul::cpu {

// Types of one product: of x, of the weight, of the sums.
enum class MatmulType : uint8_t {
  kF32,   // f32 x f32 -> f32
  kBF16,  // bf16 x bf16 -> f32
  kInt8,  // u8 x s8 -> i32, exact
};

// Everything that a kernel is specialised on. x, y and the panel are dense: with a stride wider
// than the row oneDNN 2.6 leaves its fast path for a scalar loop, a thousand times slower.
struct MatmulShape {
  MatmulType type = MatmulType::kF32;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  auto operator<=>(const MatmulShape&) const = default;
};

class Matmul;  // one kernel

class MatmulCache {
 public:
  explicit MatmulCache(int n_threads);
  ~MatmulCache();
  MatmulCache(const MatmulCache&) = delete;
  MatmulCache& operator=(const MatmulCache&) = delete;

  // Whether this processor multiplies the type in hardware. f32 always.
  static bool IsNative(MatmulType type);
  // A row's result must not depend on the rows beside it: m is a multiple of this.
  static int64_t RowQuantum();
  // Names the kernels' weight layout: bytes packed under one name can be used under the same.
  static std::string LayoutName();

  // Size of n output columns of k inputs in the layout of the kernels. May throw what oneDNN
  // throws, like Pack.
  int64_t PackedBytes(MatmulType type, int64_t n, int64_t k);
  // Whether int8 panels of this shape are as GemvInt8 reads them. After PackedBytes of the same.
  bool IsStreamed(int64_t n, int64_t k) const;
  // rows: [n, k] in the weight's type. After PackedBytes of the same.
  void Pack(MatmulType type, int64_t n, int64_t k, const void* rows, void* packed, int thread);

  // Made once per shape and kept. The panel [n, k] must have been packed before.
  Matmul& Get(const MatmulShape& shape);

  // y [m, n] = x [m, k] * panel. Allocates nothing.
  void Run(Matmul& matmul, const void* x, const void* panel, void* y, int thread);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul::cpu
