#include "kernels/cpu/gemm.h"

#include <fmt/format.h>
#include <dnnl.hpp>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <map>
#include <vector>

#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cpu/convert.h"
#include "kernels/host_memory.h"

// Of libgomp, which Debian's oneDNN runs on. Declared here since <omp.h> comes with -fopenmp, which
// nothing of ours wants.
extern "C" void omp_set_num_threads(int n_threads);

namespace longhaul {
namespace {

using dnnl::memory;

// A weight is cut into panels of up to 256 output columns, packed one by one: few rows are spread
// over the threads by panel, and a panel of a 4096-wide layer (4 MiB) stays in the last-level cache
// while all row blocks pass.
constexpr int64_t kPanelColumns = 256;
// A panel's end is a multiple of oneDNN's widest column block, so only the last has a tail.
constexpr int64_t kColumnBlock = 64;

// Rows of one primitive. More than 256 gave nothing (257 GFLOP/s per core at 256, 512 and 1024).
constexpr int64_t kMaxBlockRows = 256;

// Below this, waking the workers costs more than it saves. A matrix-vector product moves 4 bytes
// per weight at some 50 GB/s, a block of rows does some 250 GFLOP/s.
constexpr double kSerialMicroseconds = 20;

// A row's result must not depend on the rows beside it. oneDNN's AVX-512 kernels keep to that for
// any row count; the older ones compute the rows beyond a multiple of 6 in another order, so there
// rows are padded to it.
int64_t RowQuantum() {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  const auto bits = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
  return (static_cast<unsigned>(isa) & bits) == bits ? 1 : 6;
}

// Primitives are made per row count and kept, so their number is bounded: about 256, 128, 64, and
// each (padded) count below as it is (the rows of a decode batch).
int64_t BlockRows(int64_t n_rows, int64_t quantum) {
  for (int64_t rows : {kMaxBlockRows, kMaxBlockRows / 2, kMaxBlockRows / 4}) {
    rows -= rows % quantum;
    if (n_rows >= rows) return rows;
  }
  return RoundUp(n_rows, quantum);
}

struct Panel {
  int64_t begin = 0;  // output columns [begin, begin + n)
  int64_t n = 0;
  memory::desc desc;  // packed [n_in, n]
  std::byte* data = nullptr;
};

class PackedWeight : public LinearWeight {
 public:
  std::vector<Panel> panels;
  Buffer storage;  // of all panels
};

// Everything that a primitive is specialised on. x, y and the panel are dense: with a stride wider
// than the row oneDNN 2.6 leaves its fast path for a scalar loop, a thousand times slower.
struct MatmulShape {
  int64_t m, n, k;
  auto operator<=>(const MatmulShape&) const = default;
};

memory::desc MatrixDesc(int64_t rows, int64_t columns) {
  return memory::desc({rows, columns}, memory::data_type::f32, memory::format_tag::ab);
}

dnnl::matmul::primitive_desc MakeMatmul(const MatmulShape& shape, const memory::desc& weight,
                                        const dnnl::engine& engine) {
  // oneDNN plans for the thread count that it finds; every thread that executes sets the same.
  omp_set_num_threads(1);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // one primitive runs on many threads
  return {dnnl::matmul::desc(MatrixDesc(shape.m, shape.k), weight, MatrixDesc(shape.m, shape.n)),
          attr, engine};
}

// A primitive with the memory objects of each thread, so that a call allocates nothing.
class Matmul {
 public:
  Matmul(const MatmulShape& shape, const memory::desc& weight, const dnnl::engine& engine,
         int n_threads)
      : Matmul(MakeMatmul(shape, weight, engine), engine, n_threads) {}

  // y [m, n] = x [m, k] * panel.
  void Run(int thread, dnnl::stream& stream, const float* x, const Panel& panel, float* y) {
    PerThread& t = threads_[thread];
    Bind(t.args[0], x);
    Bind(t.args[1], panel.data);
    Bind(t.args[2], y);
    const dnnl_status_t status = dnnl_primitive_execute(
        primitive_.get(), stream.get(), static_cast<int>(t.args.size()), t.args.data());
    LH_CHECK(status == dnnl_success);
  }

 private:
  struct PerThread {
    std::vector<memory> memories;
    std::vector<std::byte> scratch;
    std::array<dnnl_exec_arg_t, 4> args;
  };

  Matmul(const dnnl::matmul::primitive_desc& pd, const dnnl::engine& engine, int n_threads)
      : primitive_(pd), threads_(n_threads) {
    constexpr std::array<int, 4> kSlots = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                                           DNNL_ARG_SCRATCHPAD};
    for (PerThread& t : threads_) {
      t.scratch.resize(pd.scratchpad_desc().get_size());
      t.memories = {memory(pd.src_desc(), engine, nullptr),
                    memory(pd.weights_desc(), engine, nullptr),
                    memory(pd.dst_desc(), engine, nullptr),
                    memory(pd.scratchpad_desc(), engine, t.scratch.data())};
      for (size_t i = 0; i < kSlots.size(); ++i) t.args[i] = {kSlots[i], t.memories[i].get()};
    }
  }

  static void Bind(dnnl_exec_arg_t& arg, const void* data) {
    LH_CHECK(dnnl_memory_set_data_handle(arg.memory, const_cast<void*>(data)) == dnnl_success);
  }

  dnnl::matmul primitive_;
  std::vector<PerThread> threads_;
};

// y (+)= tile + bias for the rows and columns of one tile, while it is still in the L2 cache.
void StoreTile(const float* tile, int64_t n_rows, const Panel& panel, int64_t row_begin,
               const LinearArgs& args) {
  const float* bias = args.bias.empty() ? nullptr : args.bias.As<float>() + panel.begin;
  for (int64_t r = 0; r < n_rows; ++r) {
    const float* __restrict in = tile + r * panel.n;
    float* __restrict y = args.y.Row<float>(row_begin + r) + panel.begin;
    if (bias == nullptr && !args.accumulate) {
      std::memcpy(y, in, panel.n * sizeof(float));
    } else if (bias == nullptr) {
      for (int64_t i = 0; i < panel.n; ++i) y[i] += in[i];
    } else if (!args.accumulate) {
      for (int64_t i = 0; i < panel.n; ++i) y[i] = in[i] + bias[i];
    } else {
      for (int64_t i = 0; i < panel.n; ++i) y[i] += in[i] + bias[i];
    }
  }
}

}  // namespace

struct CpuGemm::Impl {
  explicit Impl(ThreadPool* thread_pool)
      : pool(thread_pool),
        streams(thread_pool->n_threads(), dnnl::stream(engine)),
        tiles(thread_pool->n_threads()) {
    for (dnnl::stream& stream : streams) stream = dnnl::stream(engine);
  }

  Matmul& Get(const MatmulShape& shape, const memory::desc& weight) {
    const auto it = matmuls.find(shape);
    if (it != matmuls.end()) return it->second;
    try {
      return matmuls.try_emplace(shape, shape, weight, engine, pool->n_threads()).first->second;
    } catch (const std::exception& e) {  // it took the weight's shape: anything else is our bug
      internal::CheckFailed(__FILE__, __LINE__, e.what());
    }
  }

  std::unique_ptr<PackedWeight> Prepare(TensorView weight, absl::Status& status);
  void Pack(TensorView weight, const Panel& panel);

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  const int64_t row_quantum = RowQuantum();
  ThreadPool* pool;
  std::vector<dnnl::stream> streams;  // one per thread
  // A panel's packed format follows from n and k alone, so the shape identifies the primitive.
  std::map<MatmulShape, Matmul> matmuls;

  struct WorkItem {
    Matmul* matmul;
    const Panel* panel;
    int64_t row_begin;
    int64_t n_rows;
    int64_t m;  // of the matmul: n_rows, or more where rows are padded
  };
  void RunItem(const LinearArgs& args, const WorkItem& item, int thread);
  std::vector<WorkItem> items;  // of the current call; kept for its memory

  struct Tiles {
    std::vector<float> x;  // rows of a strided x, gathered
    std::vector<float> y;  // [m, n] before bias and accumulation
  };
  std::vector<Tiles> tiles;  // one per thread, grown to a high-water mark
};

CpuGemm::CpuGemm(ThreadPool* pool) : impl_(std::make_unique<Impl>(pool)) {}
CpuGemm::~CpuGemm() = default;

std::unique_ptr<PackedWeight> CpuGemm::Impl::Prepare(TensorView weight, absl::Status& status) {
  auto packed = std::make_unique<PackedWeight>();
  packed->n_out = weight.dim(0);
  packed->n_in = weight.dim(1);
  const int64_t n_panels = CeilDiv(packed->n_out, kPanelColumns);
  const int64_t width = RoundUp(CeilDiv(packed->n_out, n_panels), kColumnBlock);
  std::vector<int64_t> offsets;
  for (int64_t begin = 0; begin < packed->n_out; begin += width) {
    const int64_t n = std::min(width, packed->n_out - begin);
    const MatmulShape shape{kMaxBlockRows, n, packed->n_in};
    const memory::desc any({packed->n_in, n}, memory::data_type::f32, memory::format_tag::any);
    const memory::desc desc = MakeMatmul(shape, any, engine).weights_desc();
    packed->panels.push_back({begin, n, desc, nullptr});
    offsets.push_back(packed->n_bytes);
    packed->n_bytes += RoundUp(static_cast<int64_t>(desc.get_size()), 64);
  }
  absl::StatusOr<Buffer> storage = AllocateHost(packed->n_bytes);
  if (!storage.ok()) {
    status = storage.status();
    return nullptr;
  }
  packed->storage = *std::move(storage);
  for (size_t i = 0; i < packed->panels.size(); ++i) {
    packed->panels[i].data = static_cast<std::byte*>(packed->storage.data()) + offsets[i];
    Pack(weight, packed->panels[i]);
  }
  return packed;
}

// Rows [begin, begin + n) of the weight, widened and in oneDNN's order.
void CpuGemm::Impl::Pack(TensorView weight, const Panel& panel) {
  const int64_t n_in = weight.dim(1);
  std::vector<float> rows(panel.n * n_in);
  const TensorView slice = weight.Slice(panel.begin, panel.begin + panel.n);
  WidenToF32(slice.data(), weight.dtype(), panel.n * n_in, rows.data());
  memory source(memory::desc({n_in, panel.n}, memory::data_type::f32, memory::format_tag::ba),
                engine, rows.data());
  memory target(panel.desc, engine, panel.data);
  omp_set_num_threads(1);
  dnnl::reorder(source, target).execute(streams[0], source, target);
  streams[0].wait();
}

absl::StatusOr<std::unique_ptr<LinearWeight>> CpuGemm::Prepare(TensorView weight) {
  LH_CHECK(weight.rank() == 2 && weight.IsDense() && weight.NumElements() > 0);
  try {
    absl::Status status;
    std::unique_ptr<PackedWeight> packed = impl_->Prepare(weight, status);
    if (packed == nullptr) return status;
    return packed;
  } catch (const std::exception& e) {
    return absl::ResourceExhaustedError(fmt::format("cannot pack a weight matrix of {} x {}: {}",
                                                    weight.dim(0), weight.dim(1), e.what()));
  }
}

void CpuGemm::Impl::RunItem(const LinearArgs& args, const WorkItem& item, int thread) {
  const Panel& panel = *item.panel;
  const int64_t n_in = args.x.dim(1);
  const float* x = args.x.Row<float>(item.row_begin);
  Tiles& tile = tiles[thread];
  const bool padded = item.m != item.n_rows;
  if (padded || (item.n_rows > 1 && args.x.stride(0) != n_in)) {
    tile.x.resize(std::max<size_t>(tile.x.size(), item.m * n_in));
    for (int64_t r = 0; r < item.n_rows; ++r) {
      std::memcpy(&tile.x[r * n_in], args.x.Row<float>(item.row_begin + r), n_in * sizeof(float));
    }
    std::fill_n(tile.x.begin() + item.n_rows * n_in, (item.m - item.n_rows) * n_in, 0.0f);
    x = tile.x.data();
  }
  omp_set_num_threads(1);  // of this thread; a store when it is set already
  const bool direct = !padded && args.bias.empty() && !args.accumulate &&
                      (item.n_rows == 1 || args.y.stride(0) == panel.n);
  if (direct) {
    float* y = args.y.Row<float>(item.row_begin) + panel.begin;
    item.matmul->Run(thread, streams[thread], x, panel, y);
    return;
  }
  tile.y.resize(std::max<size_t>(tile.y.size(), item.m * panel.n));
  item.matmul->Run(thread, streams[thread], x, panel, tile.y.data());
  StoreTile(tile.y.data(), item.n_rows, panel, item.row_begin, args);
}

void CpuGemm::Linear(const LinearArgs& args) {
  CheckArgs(args);
  const auto& weight = static_cast<const PackedWeight&>(*args.weight);
  const int64_t n_rows = args.x.dim(0);
  std::vector<Impl::WorkItem>& items = impl_->items;
  items.clear();
  for (const Panel& panel : weight.panels) {
    for (int64_t row = 0, m; row < n_rows; row += m) {
      m = BlockRows(n_rows - row, impl_->row_quantum);
      items.push_back({&impl_->Get({m, panel.n, weight.n_in}, panel.desc), &panel, row,
                       std::min(m, n_rows - row), m});
    }
  }
  const auto run = [&](int64_t i, int thread) { impl_->RunItem(args, items[i], thread); };
  const double n_weights = static_cast<double>(weight.n_out) * static_cast<double>(weight.n_in);
  const double estimate_us = n_weights * std::max(4 / 50e3, 2.0 * n_rows / 250e3);
  if (estimate_us < kSerialMicroseconds) {
    for (size_t i = 0; i < items.size(); ++i) run(i, 0);
  } else {
    impl_->pool->ParallelFor(static_cast<int64_t>(items.size()), run);
  }
}

}  // namespace longhaul
