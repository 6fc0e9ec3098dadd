#include "kernels/cpu/matmul.h"

#include <fmt/format.h>
#include <dnnl.hpp>

#include <array>
#include <exception>
#include <map>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"

// Of libgomp, which Debian's oneDNN runs on. Declared here since <omp.h> comes with -fopenmp, which
// nothing of ours wants.
extern "C" void omp_set_num_threads(int n_threads);

namespace longhaul::cpu {
namespace {

using dnnl::memory;

// The layout of a panel is that of a kernel of many rows; it serves every row count.
constexpr int64_t kLayoutRows = 256;

struct Types {
  memory::data_type x, weight, sum;
};

Types TypesOf(MatmulType type) {
  switch (type) {
    case MatmulType::kF32:
      return {memory::data_type::f32, memory::data_type::f32, memory::data_type::f32};
    case MatmulType::kBF16:
      return {memory::data_type::bf16, memory::data_type::bf16, memory::data_type::f32};
    case MatmulType::kInt8:
      return {memory::data_type::u8, memory::data_type::s8, memory::data_type::s32};
  }
  return {};
}

dnnl::matmul::primitive_desc Describe(const MatmulShape& shape, const memory::desc& weight,
                                      const dnnl::engine& engine) {
  // oneDNN plans for the thread count that it finds; every thread that executes sets the same.
  omp_set_num_threads(1);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // one primitive runs on many threads
  const Types types = TypesOf(shape.type);
  const memory::desc x({shape.m, shape.k}, types.x, memory::format_tag::ab);
  const memory::desc y({shape.m, shape.n}, types.sum, memory::format_tag::ab);
  return {dnnl::matmul::desc(x, weight, y), attr, engine};
}

bool HasIsa(dnnl::cpu_isa isa) {
  const auto wanted = static_cast<unsigned>(isa);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
}

}  // namespace

// A primitive with the memory objects of each thread, so that a call allocates nothing.
class Matmul {
 public:
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

  void Run(int thread, dnnl::stream& stream, const void* x, const void* panel, void* y) {
    PerThread& t = threads_[thread];
    Bind(t.args[0], x);
    Bind(t.args[1], panel);
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

  static void Bind(dnnl_exec_arg_t& arg, const void* data) {
    LH_CHECK(dnnl_memory_set_data_handle(arg.memory, const_cast<void*>(data)) == dnnl_success);
  }

  dnnl::matmul primitive_;
  std::vector<PerThread> threads_;
};

struct MatmulCache::Impl {
  explicit Impl(int n_threads) {
    for (int i = 0; i < n_threads; ++i) streams.emplace_back(engine);
  }
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::vector<dnnl::stream> streams;  // one per thread
  std::map<MatmulShape, Matmul> matmuls;
  std::map<MatmulShape, memory::desc> layouts;  // of panels, by shapes of kLayoutRows
};

MatmulCache::MatmulCache(int n_threads) : impl_(std::make_unique<Impl>(n_threads)) {}
MatmulCache::~MatmulCache() = default;

bool MatmulCache::IsNative(MatmulType type) {
  switch (type) {
    case MatmulType::kF32:
      return true;
    case MatmulType::kBF16:
      return HasIsa(dnnl::cpu_isa::avx512_core_bf16);
    case MatmulType::kInt8:  // the kernels before VNNI saturate in 16 bits
      return HasIsa(dnnl::cpu_isa::avx512_core_vnni);
  }
  return false;
}

// oneDNN's AVX-512 kernels compute a row alike for any row count; the older ones compute the rows
// beyond a multiple of 6 in another order.
int64_t MatmulCache::RowQuantum() { return HasIsa(dnnl::cpu_isa::avx512_core) ? 1 : 6; }

std::string MatmulCache::LayoutName() {
  const char* isa = "base";
  if (HasIsa(dnnl::cpu_isa::avx512_core_amx)) {
    isa = "amx";
  } else if (HasIsa(dnnl::cpu_isa::avx512_core_bf16)) {
    isa = "avx512-bf16";
  } else if (HasIsa(dnnl::cpu_isa::avx512_core_vnni)) {
    isa = "avx512-vnni";
  } else if (HasIsa(dnnl::cpu_isa::avx512_core)) {
    isa = "avx512";
  } else if (HasIsa(dnnl::cpu_isa::avx2)) {
    isa = "avx2";
  }
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("onednn-{}.{}.{}-{}", version->major, version->minor, version->patch, isa);
}

int64_t MatmulCache::PackedBytes(MatmulType type, int64_t n, int64_t k) {
  const MatmulShape shape{type, kLayoutRows, n, k};
  const auto it = impl_->layouts.find(shape);
  if (it != impl_->layouts.end()) return static_cast<int64_t>(it->second.get_size());
  const memory::desc any({k, n}, TypesOf(type).weight, memory::format_tag::any);
  const memory::desc packed = Describe(shape, any, impl_->engine).weights_desc();
  impl_->layouts.emplace(shape, packed);
  return static_cast<int64_t>(packed.get_size());
}

bool MatmulCache::IsStreamed(int64_t n, int64_t k) const {
  constexpr int64_t kBlock = 64;  // columns, and inputs, of one innermost block
  const memory::desc& desc = impl_->layouts.at({MatmulType::kInt8, kLayoutRows, n, k});
  if (desc.data.format_kind != dnnl_blocked || desc.data.offset0 != 0) return false;
  const dnnl_blocking_desc_t& blocking = desc.data.format_desc.blocking;
  return blocking.inner_nblks == 3 && blocking.inner_idxs[0] == 0 && blocking.inner_blks[0] == 16 &&
         blocking.inner_idxs[1] == 1 && blocking.inner_blks[1] == kBlock &&
         blocking.inner_idxs[2] == 0 && blocking.inner_blks[2] == 4 &&
         blocking.strides[0] == kBlock * kBlock &&
         (n <= kBlock || blocking.strides[1] == RoundUp(k, kBlock) * kBlock);
}

void MatmulCache::Pack(MatmulType type, int64_t n, int64_t k, const void* rows, void* packed,
                       int thread) {
  const memory::desc plain({k, n}, TypesOf(type).weight, memory::format_tag::ba);
  memory source(plain, impl_->engine, const_cast<void*>(rows));
  memory target(impl_->layouts.at({type, kLayoutRows, n, k}), impl_->engine, packed);
  omp_set_num_threads(1);
  dnnl::reorder(source, target).execute(impl_->streams[thread], source, target);
  impl_->streams[thread].wait();
}

Matmul& MatmulCache::Get(const MatmulShape& shape) {
  const auto it = impl_->matmuls.find(shape);
  if (it != impl_->matmuls.end()) return it->second;
  try {
    const memory::desc& weight = impl_->layouts.at({shape.type, kLayoutRows, shape.n, shape.k});
    const dnnl::matmul::primitive_desc pd = Describe(shape, weight, impl_->engine);
    const auto n_threads = static_cast<int>(impl_->streams.size());
    return impl_->matmuls.try_emplace(shape, pd, impl_->engine, n_threads).first->second;
  } catch (const std::exception& e) {  // it packed the weight's shape: anything else is our bug
    internal::CheckFailed(__FILE__, __LINE__, e.what());
  }
}

void MatmulCache::Run(Matmul& matmul, const void* x, const void* panel, void* y, int thread) {
  omp_set_num_threads(1);  // of this thread; a store when it is set already
  matmul.Run(thread, impl_->streams[thread], x, panel, y);
}

}  // namespace longhaul::cpu
