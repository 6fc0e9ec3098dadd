#include "kernels/cpu/gemm.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/gemm_rows.h"
#include "kernels/cpu/gemv_int8.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/parallel_rows.h"

namespace longhaul {
namespace {

using cpu::Epilogue;
using cpu::Matmul;
using cpu::MatmulCache;
using cpu::MatmulType;
using cpu::PackedWeight;
using cpu::Panel;

// Rows of one primitive. More than 256 gave nothing (257 GFLOP/s per core at 256, 512 and 1024).
constexpr int64_t kMaxBlockRows = 256;

// Rows that are brought into the weight's format at a time: bounds that memory, and what was
// converted is still in the last-level cache when the products read it.
constexpr int64_t kConvertedRows = 1024;

// Below this, waking the workers costs more than it saves. A matrix-vector product moves its weight
// at some 50 GB/s; a block of rows does some 250 GFLOP/s per core in f32.
constexpr double kSerialMicroseconds = 20;

// Names of the layout below and in packed_weight.cc; to be changed with it.
constexpr int kLayoutVersion = 2;

// Primitives are made per row count and kept, so their number is bounded: about 256, 128, 64, and
// each (padded) count below as it is (the rows of a decode batch).
int64_t BlockRows(int64_t n_rows, int64_t quantum) {
  for (int64_t rows : {kMaxBlockRows, kMaxBlockRows / 2, kMaxBlockRows / 4}) {
    rows -= rows % quantum;
    if (n_rows >= rows) return rows;
  }
  return RoundUp(n_rows, quantum);
}

// Memory that grows to a high-water mark. What was in it is lost when it grows.
class Scratch {
 public:
  template <typename T>
  T* Get(int64_t n) {
    const size_t n_words = CeilDiv(n * static_cast<int64_t>(sizeof(T)), int64_t{sizeof(uint64_t)});
    if (words_.size() < n_words) words_.resize(n_words);
    return reinterpret_cast<T*>(words_.data());
  }

 private:
  std::vector<uint64_t> words_;
};

double MicrosecondsOfOneThread(const PackedWeight& weight, int64_t n_rows) {
  double flops_per_us = 250e3;
  if (weight.type == MatmulType::kBF16) flops_per_us *= 2;
  if (weight.type == MatmulType::kInt8) flops_per_us *= 4;
  const double n_weights = static_cast<double>(weight.n_out) * static_cast<double>(weight.n_in);
  return std::max(static_cast<double>(weight.n_bytes) / 50e3,
                  2.0 * static_cast<double>(n_rows) * n_weights / flops_per_us);
}

// Rows as the kernels read them: dense, of the kernels' type.
struct ConvertedRows {
  const std::byte* data = nullptr;  // null: x itself is read
  int64_t row_bytes = 0;
  const float* scales = nullptr;  // one per row, of kInt8
};

}  // namespace

struct CpuGemm::Impl {
  explicit Impl(ThreadPool* thread_pool)
      : pool(thread_pool), matmuls(thread_pool->n_threads()), threads(thread_pool->n_threads()) {}

  ConvertedRows Convert(TensorView x, const MakeRow& make_row, const PackedWeight& weight);
  void LinearRows(const LinearArgs& args, const MakeRow& make_row, const PackedWeight& weight);

  struct WorkItem {
    Matmul* matmul;
    const Panel* panel;
    int64_t row_begin;
    int64_t n_rows;
    int64_t m;  // of the matmul: n_rows, or more where rows are padded
  };
  struct PerThread {
    Scratch x;      // rows of a strided x, gathered; a row being converted
    Scratch sums;   // [m, n] before the epilogue
    Scratch panel;  // widened
  };
  const void* RowsOf(const LinearArgs& args, const WorkItem& item, const ConvertedRows& converted,
                     PerThread& thread);
  void RunItem(const LinearArgs& args, const PackedWeight& weight, const WorkItem& item,
               const ConvertedRows& converted, int thread);
  void StoreTile(const LinearArgs& args, const PackedWeight& weight, const WorkItem& item,
                 const ConvertedRows& converted, const void* sums);

  const int64_t row_quantum = MatmulCache::RowQuantum();
  ThreadPool* pool;
  MatmulCache matmuls;
  std::vector<PerThread> threads;
  std::vector<WorkItem> items;  // of the current call; kept for its memory
  Scratch converted_rows;
  Scratch converted_scales;
};

CpuGemm::CpuGemm(ThreadPool* pool) : impl_(std::make_unique<Impl>(pool)) {}
CpuGemm::~CpuGemm() = default;

absl::StatusOr<std::unique_ptr<LinearWeight>> CpuGemm::Prepare(TensorView weight,
                                                               WeightFormat format) {
  return cpu::PackWeight(weight, format, impl_->matmuls, *impl_->pool);
}

std::string CpuGemm::PackedLayoutName() const {
  return fmt::format("cpu-{}-{}", kLayoutVersion, MatmulCache::LayoutName());
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CpuGemm::Adopt(int64_t n_out, int64_t n_in,
                                                             WeightFormat format,
                                                             std::span<const std::byte> packed) {
  return cpu::AdoptPackedWeight(n_out, n_in, format, packed, impl_->matmuls);
}

// Brings all rows of x into the weight's format, once for all panels. Rows that fill the last block
// up to the row quantum are behind them, whatever they hold.
ConvertedRows CpuGemm::Impl::Convert(TensorView x, const MakeRow& make_row,
                                     const PackedWeight& weight) {
  if (weight.format == WeightFormat::kF32) return {};
  const int64_t n_rows = x.dim(0);
  const int64_t n_in = weight.n_in;
  const bool int8 = weight.format == WeightFormat::kInt8;
  int64_t element_bytes = sizeof(float);
  if (!weight.widen) element_bytes = int8 ? sizeof(uint8_t) : sizeof(BF16);
  const int64_t row_bytes = n_in * element_bytes;
  auto* rows = converted_rows.Get<std::byte>(RoundUp(n_rows, row_quantum) * row_bytes);
  float* scales = int8 ? converted_scales.Get<float>(n_rows) : nullptr;
  cpu::ParallelRows(*pool, n_rows, n_in, [&](int64_t begin, int64_t end, int thread) {
    auto* row = threads[thread].x.Get<float>(n_in);
    for (int64_t t = begin; t < end; ++t) {
      std::byte* out = rows + t * row_bytes;
      if (make_row) make_row(t, row);
      const float* in = make_row ? row : x.Row<float>(t);
      if (int8) {
        cpu::RotateRow(in, n_in, row);
        scales[t] = weight.widen ? cpu::QuantizeRowF32(row, n_in, reinterpret_cast<float*>(out))
                                 : cpu::QuantizeRowU8(row, n_in, reinterpret_cast<uint8_t*>(out));
      } else if (weight.widen) {
        cpu::RoundRowToBF16(in, n_in, reinterpret_cast<float*>(out));
      } else {
        RoundToBF16(in, n_in, reinterpret_cast<BF16*>(out));
      }
    }
  });
  return {rows, row_bytes, scales};
}

// x of an item, dense and padded.
const void* CpuGemm::Impl::RowsOf(const LinearArgs& args, const WorkItem& item,
                                  const ConvertedRows& converted, PerThread& thread) {
  if (converted.data != nullptr) return converted.data + item.row_begin * converted.row_bytes;
  const int64_t n_in = args.x.dim(1);
  const bool padded = item.m != item.n_rows;
  if (!padded && (item.n_rows == 1 || args.x.stride(0) == n_in)) {
    return args.x.Row<float>(item.row_begin);
  }
  float* x = thread.x.Get<float>(item.m * n_in);
  for (int64_t r = 0; r < item.n_rows; ++r) {
    std::memcpy(x + r * n_in, args.x.Row<float>(item.row_begin + r), n_in * sizeof(float));
  }
  std::fill_n(x + item.n_rows * n_in, (item.m - item.n_rows) * n_in, 0.0f);
  return x;
}

void CpuGemm::Impl::RunItem(const LinearArgs& args, const PackedWeight& weight,
                            const WorkItem& item, const ConvertedRows& converted, int thread) {
  const Panel& panel = *item.panel;
  PerThread& scratch = threads[thread];
  const void* x = RowsOf(args, item, converted, scratch);
  const void* packed = panel.data;
  if (weight.widen) {
    float* widened = scratch.panel.Get<float>(panel.n_elements);
    cpu::WidenPanel(weight, panel, widened);
    packed = widened;
  }
  const bool direct = item.m == item.n_rows && weight.scales == nullptr && args.bias.empty() &&
                      !args.accumulate && (item.n_rows == 1 || args.y.stride(0) == panel.n);
  if (direct) {
    float* y = args.y.Row<float>(item.row_begin) + panel.begin;
    matmuls.Run(*item.matmul, x, packed, y, thread);
    return;
  }
  void* sums = scratch.sums.Get<float>(item.m * panel.n);
  if (panel.streamed && item.n_rows <= cpu::kMaxGemvRows) {
    cpu::GemvInt8(static_cast<const uint8_t*>(x), item.n_rows, weight.n_in, panel.data, panel.n,
                  static_cast<int32_t*>(sums));
  } else {
    matmuls.Run(*item.matmul, x, packed, sums, thread);
  }
  StoreTile(args, weight, item, converted, sums);
}

// The epilogue of the rows and columns of one tile, while it is still in the L2 cache.
void CpuGemm::Impl::StoreTile(const LinearArgs& args, const PackedWeight& weight,
                              const WorkItem& item, const ConvertedRows& converted,
                              const void* sums) {
  const Panel& panel = *item.panel;
  Epilogue epilogue{.accumulate = args.accumulate};
  if (!args.bias.empty()) epilogue.bias = args.bias.As<float>() + panel.begin;
  if (weight.scales != nullptr) epilogue.scales = weight.scales + panel.begin;
  if (weight.zeros != nullptr) epilogue.zeros = weight.zeros + panel.begin;
  for (int64_t r = 0; r < item.n_rows; ++r) {
    const int64_t row = item.row_begin + r;
    float* y = args.y.Row<float>(row) + panel.begin;
    if (converted.scales != nullptr) epilogue.row_scale = converted.scales[row];
    if (weight.type == MatmulType::kInt8) {
      cpu::StoreRow(static_cast<const int32_t*>(sums) + r * panel.n, panel.n, epilogue, y);
    } else {
      cpu::StoreRow(static_cast<const float*>(sums) + r * panel.n, panel.n, epilogue, y);
    }
  }
}

void CpuGemm::Impl::LinearRows(const LinearArgs& args, const MakeRow& make_row,
                               const PackedWeight& weight) {
  const int64_t n_rows = args.x.dim(0);
  const ConvertedRows converted = Convert(args.x, make_row, weight);
  items.clear();
  for (const Panel& panel : weight.panels) {
    for (int64_t row = 0, m; row < n_rows; row += m) {
      m = BlockRows(n_rows - row, row_quantum);
      items.push_back({&matmuls.Get({weight.type, m, panel.n, weight.n_in}), &panel, row,
                       std::min(m, n_rows - row), m});
    }
  }
  const auto run = [&](int64_t i, int thread) {
    RunItem(args, weight, items[i], converted, thread);
  };
  if (MicrosecondsOfOneThread(weight, n_rows) < kSerialMicroseconds) {
    for (size_t i = 0; i < items.size(); ++i) run(i, 0);
  } else {
    pool->ParallelFor(static_cast<int64_t>(items.size()), run);
  }
}

void CpuGemm::Linear(const LinearArgs& args, const MakeRow& make_row) {
  CheckArgs(args);
  LH_CHECK(!make_row || args.weight->format != WeightFormat::kF32);
  const auto& weight = static_cast<const PackedWeight&>(*args.weight);
  const int64_t n_rows = args.x.dim(0);
  const int64_t step = weight.format == WeightFormat::kF32 ? n_rows : kConvertedRows;
  for (int64_t begin = 0; begin < n_rows; begin += step) {
    const int64_t end = std::min(begin + step, n_rows);
    LinearArgs part = args;
    part.x = args.x.Slice(begin, end);
    part.y = args.y.Slice(begin, end);
    MakeRow make_part_row;
    if (make_row) make_part_row = [&](int64_t t, float* out) { make_row(begin + t, out); };
    impl_->LinearRows(part, make_part_row, weight);
  }
}

}  // namespace longhaul
