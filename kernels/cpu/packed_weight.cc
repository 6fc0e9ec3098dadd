#include "kernels/cpu/packed_weight.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/gemm_rows.h"
#include "kernels/host_memory.h"

namespace longhaul::cpu {
namespace {

// A weight is cut into panels of up to 256 output columns, packed one by one: few rows are spread
// over the threads by panel, and a panel of a 4096-wide f32 layer (4 MiB) stays in the last-level
// cache while all row blocks pass. One that is widened should fit the second-level cache.
constexpr int64_t kPanelColumns = 256;
constexpr int64_t kWidenedPanelColumns = 64;
// A panel's end is a multiple of oneDNN's widest column block, so only the last has a tail.
constexpr int64_t kColumnBlock = 64;
constexpr int64_t kAlignment = 64;

// |sum| of u8 x s8 stays below 2^31.
constexpr int64_t kMaxInt8Inputs = 65536;

size_t ElementBytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return sizeof(float);
    case WeightFormat::kBF16:
      return sizeof(BF16);
    case WeightFormat::kInt8:
      return sizeof(int8_t);
  }
  return 0;
}

MatmulType NativeType(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return MatmulType::kF32;
    case WeightFormat::kBF16:
      return MatmulType::kBF16;
    case WeightFormat::kInt8:
      return MatmulType::kInt8;
  }
  return MatmulType::kF32;
}

// Everything but the bytes: panels follow one another, then scales, then zeros.
struct Layout {
  std::unique_ptr<PackedWeight> weight;
  std::vector<int64_t> panel_offsets;
  int64_t scales_offset = 0;
  int64_t zeros_offset = 0;
};

absl::StatusOr<Layout> MakeLayout(int64_t n_out, int64_t n_in, WeightFormat format,
                                  MatmulCache& matmuls) {
  if (format == WeightFormat::kInt8 && n_in > kMaxInt8Inputs) {
    return absl::InvalidArgumentError(
        fmt::format("a weight matrix of {} x {} cannot be held as int8: at most {} inputs", n_out,
                    n_in, kMaxInt8Inputs));
  }
  Layout layout;
  layout.weight = std::make_unique<PackedWeight>();
  PackedWeight& weight = *layout.weight;
  weight.n_out = n_out;
  weight.n_in = n_in;
  weight.format = format;
  weight.widen = !MatmulCache::IsNative(NativeType(format));
  weight.type = weight.widen ? MatmulType::kF32 : NativeType(format);
  const int64_t n_panels = CeilDiv(n_out, weight.widen ? kWidenedPanelColumns : kPanelColumns);
  const int64_t width = RoundUp(CeilDiv(n_out, n_panels), kColumnBlock);
  for (int64_t begin = 0; begin < n_out; begin += width) {
    const int64_t n = std::min(width, n_out - begin);
    int64_t n_bytes = matmuls.PackedBytes(weight.type, n, n_in);
    int64_t n_elements = n_bytes;
    if (weight.type == MatmulType::kF32) n_elements /= static_cast<int64_t>(sizeof(float));
    if (weight.widen) n_bytes = n_elements * static_cast<int64_t>(ElementBytes(format));
    const bool streamed = weight.type == MatmulType::kInt8 && matmuls.IsStreamed(n, n_in);
    weight.panels.push_back({begin, n, n_elements, nullptr, streamed});
    layout.panel_offsets.push_back(weight.n_bytes);
    weight.n_bytes += RoundUp(n_bytes, kAlignment);
  }
  if (format == WeightFormat::kInt8) {
    layout.scales_offset = weight.n_bytes;
    weight.n_bytes += RoundUp(n_out * static_cast<int64_t>(sizeof(float)), kAlignment);
    layout.zeros_offset = weight.n_bytes;
    weight.n_bytes += RoundUp(n_out * static_cast<int64_t>(sizeof(int32_t)), kAlignment);
  }
  return layout;
}

std::unique_ptr<PackedWeight> Place(Layout layout, const std::byte* bytes) {
  PackedWeight& weight = *layout.weight;
  for (size_t i = 0; i < weight.panels.size(); ++i) {
    weight.panels[i].data = bytes + layout.panel_offsets[i];
  }
  if (weight.format == WeightFormat::kInt8) {
    weight.scales = reinterpret_cast<const float*>(bytes + layout.scales_offset);
    weight.zeros = reinterpret_cast<const int32_t*>(bytes + layout.zeros_offset);
  }
  weight.packed = {bytes, static_cast<size_t>(weight.n_bytes)};
  return std::move(layout.weight);
}

// Packs panels of one weight; one per thread.
class Packer {
 public:
  Packer(TensorView source, const PackedWeight& weight, MatmulCache& matmuls)
      : source_(source), weight_(weight), matmuls_(matmuls) {}

  // Rows [begin, begin + n) of the source. scales, zeros: of the whole weight.
  void Pack(const Panel& panel, std::byte* out, float* scales, int32_t* zeros, int thread) {
    const int64_t k = weight_.n_in;
    const int64_t n_elements = panel.n * k;
    const TensorView slice = source_.Slice(panel.begin, panel.begin + panel.n);
    // Straight from the source where no bit changes.
    if (!weight_.widen &&
        ((weight_.format == WeightFormat::kF32 && slice.dtype() == DType::kF32) ||
         (weight_.format == WeightFormat::kBF16 && slice.dtype() == DType::kBF16))) {
      matmuls_.Pack(weight_.type, panel.n, k, slice.data(), out, thread);
      return;
    }
    rows_.resize(n_elements);
    WidenToF32(slice.data(), slice.dtype(), n_elements, rows_.data());
    if (weight_.format == WeightFormat::kInt8) {
      Quantize(panel, scales, zeros);
    } else if (weight_.format == WeightFormat::kBF16) {
      narrow_.resize(n_elements * sizeof(BF16));
      RoundToBF16(rows_.data(), n_elements, reinterpret_cast<BF16*>(narrow_.data()));
    }
    if (weight_.widen) {
      PackNarrowed(panel, out, thread);
      return;
    }
    const bool f32 = weight_.format == WeightFormat::kF32;
    const void* rows = f32 ? static_cast<const void*>(rows_.data()) : narrow_.data();
    matmuls_.Pack(weight_.type, panel.n, k, rows, out, thread);
  }

 private:
  // narrow_ = the rows in 8 bits.
  void Quantize(const Panel& panel, float* scales, int32_t* zeros) {
    const int64_t k = weight_.n_in;
    narrow_.resize(panel.n * k);
    auto* q = reinterpret_cast<int8_t*>(narrow_.data());
    for (int64_t r = 0; r < panel.n; ++r) {
      float* row = &rows_[r * k];
      RotateRow(row, k, row);
      scales[panel.begin + r] = QuantizeRowS8(row, k, q + r * k);
      int32_t sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += q[r * k + i];
      zeros[panel.begin + r] = 128 * sum;
    }
  }

  // In the order of the f32 kernels, in the narrow type: widening and narrowing lose nothing.
  void PackNarrowed(const Panel& panel, std::byte* out, int thread) {
    const int64_t n_elements = panel.n * weight_.n_in;
    const bool int8 = weight_.format == WeightFormat::kInt8;
    if (int8) {
      WidenS8(reinterpret_cast<const int8_t*>(narrow_.data()), n_elements, rows_.data());
    } else {
      WidenToF32(narrow_.data(), DType::kBF16, n_elements, rows_.data());
    }
    packed_.resize(panel.n_elements);
    matmuls_.Pack(MatmulType::kF32, panel.n, weight_.n_in, rows_.data(), packed_.data(), thread);
    if (int8) {
      NarrowToS8(packed_.data(), panel.n_elements, reinterpret_cast<int8_t*>(out));
    } else {
      RoundToBF16(packed_.data(), panel.n_elements, reinterpret_cast<BF16*>(out));
    }
  }

  const TensorView source_;
  const PackedWeight& weight_;
  MatmulCache& matmuls_;
  std::vector<float> rows_;        // [n, n_in]
  std::vector<std::byte> narrow_;  // the same in bf16 or i8
  std::vector<float> packed_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(TensorView source, WeightFormat format,
                                                         MatmulCache& matmuls, ThreadPool& pool) {
  LH_CHECK(source.rank() == 2 && source.IsDense() && source.NumElements() > 0);
  try {
    LH_ASSIGN_OR_RETURN(Layout layout, MakeLayout(source.dim(0), source.dim(1), format, matmuls));
    LH_ASSIGN_OR_RETURN(Buffer storage, AllocateHost(layout.weight->n_bytes));
    auto* bytes = static_cast<std::byte*>(storage.data());
    auto* scales = reinterpret_cast<float*>(bytes + layout.scales_offset);
    auto* zeros = reinterpret_cast<int32_t*>(bytes + layout.zeros_offset);
    std::unique_ptr<PackedWeight> weight = Place(std::move(layout), bytes);
    weight->storage = std::move(storage);
    std::vector<Packer> packers(pool.n_threads(), Packer(source, *weight, matmuls));
    std::vector<std::string> errors(pool.n_threads());
    pool.ParallelFor(static_cast<int64_t>(weight->panels.size()), [&](int64_t i, int thread) {
      const Panel& panel = weight->panels[i];
      try {
        packers[thread].Pack(panel, bytes + (panel.data - bytes), scales, zeros, thread);
      } catch (const std::exception& e) {
        errors[thread] = e.what();
      }
    });
    for (const std::string& error : errors) {
      if (!error.empty()) throw std::runtime_error(error);
    }
    return weight;
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(fmt::format("cannot pack a weight matrix of {} x {}: {}",
                                                    source.dim(0), source.dim(1), e.what()));
  }
}

absl::StatusOr<std::unique_ptr<PackedWeight>> AdoptPackedWeight(int64_t n_out, int64_t n_in,
                                                                WeightFormat format,
                                                                std::span<const std::byte> bytes,
                                                                MatmulCache& matmuls) {
  Layout layout;
  try {
    LH_ASSIGN_OR_RETURN(layout, MakeLayout(n_out, n_in, format, matmuls));
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(
        fmt::format("cannot lay out a weight matrix of {} x {}: {}", n_out, n_in, e.what()));
  }
  if (static_cast<int64_t>(bytes.size()) != layout.weight->n_bytes ||
      reinterpret_cast<uintptr_t>(bytes.data()) % kAlignment != 0) {
    return absl::InvalidArgumentError(
        fmt::format("a packed {} weight of {} x {} takes {} aligned bytes, not {}",
                    WeightFormatName(format), n_out, n_in, layout.weight->n_bytes, bytes.size()));
  }
  return Place(std::move(layout), bytes.data());
}

void WidenPanel(const PackedWeight& weight, const Panel& panel, float* out) {
  if (weight.format == WeightFormat::kInt8) {
    WidenS8(reinterpret_cast<const int8_t*>(panel.data), panel.n_elements, out);
  } else {
    WidenToF32(panel.data, DType::kBF16, panel.n_elements, out);
  }
}

}  // namespace longhaul::cpu
