// The warps of one producer warp group gather tiles of 128 keys and values
// (hopper_sparse_tiles.cuh), two consumer warp groups of 64 rows each multiply
// (hopper_consumer.cuh). A block has 128 rows of one head, whatever its kind.
#include "kernels/cuda/hopper_sparse.h"

#include "kernels/base/checked_math.h"
#include "kernels/cuda/head_dim.h"
#include "kernels/cuda/hopper_sparse_tiles.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch_carver.h"

namespace longhaul::cuda {
namespace hopper {
namespace {

constexpr int kProducerRegisters = 72;  // 72 + 2 * 216 = 3 * 168, with which 384 threads start
constexpr int kConsumerRegisters = 216;

template <class T, int kHeadDim>
LH_KERNEL(kThreads, 1)
HopperSparseKernel(LH_GRID_CONSTANT const SparseParams p) {
  SharedArena arena;
  const BlockMemory<kHeadDim> memory(arena);
  TileQueue queue(arena);
  const Shared<uint8_t> raw = arena.Carve<uint8_t>(Gatherer<T, kHeadDim>::kBytes);
  const SparseRows rows = RowsOfBlock<kHeadDim, kBlockRows>(p);
  const BandSet bands = BandsOfBlock<kThreads>(p, rows, arena);
  if (ThreadId() == 0) {
    memory.InitBarriers(/*n_arrivals=*/kCopyWarps);
    queue.InitBarriers();
  }
  SyncThreads();
  // The same in all lanes, and the compiler shall know: else it runs products one after another.
  const int warp_group = Shuffle(ThreadId() / kWarpGroupThreads, 0);
  if (warp_group == 0) {
    GiveUpRegisters<kProducerRegisters>();
    Gatherer<T, kHeadDim> gatherer(p, memory, queue, bands, raw);
    gatherer.Run(rows);
  } else {
    TakeRegisters<kConsumerRegisters>();
    const SparseTiles tiles(p, rows, queue, warp_group - 1);
    Consumer<kHeadDim, SparseParams, SparseTiles> consumer(p, tiles, warp_group - 1, memory);
    consumer.Run();
    consumer.Write();
  }
}

int BandBytes(int64_t max_bands, int64_t n_keys) {
  return max_bands > 0 ? CarvedBytes<uint32_t>(BandSetWords(n_keys)) : 0;
}

template <class T, int kHeadDim>
constexpr int kFixedBytes =
    BlockMemory<kHeadDim>::kBytes + TileQueue::kBytes + Gatherer<T, kHeadDim>::kBytes;

template <class T, int kHeadDim>
cudaError_t LaunchHopperSparse(const SparseParams& p, cudaStream_t stream) {
  return Launch(
      {.name = "attend sparse (hopper)",
       .grid = {static_cast<unsigned>(p.n_heads * p.n_row_tiles)},
       .block = kThreads,
       .smem_bytes = kFixedBytes<T, kHeadDim> + BandBytes(p.max_bands, p.q_begin + p.n_tokens),
       .stream = stream},
      HopperSparseKernel<T, kHeadDim>, p);
}

template <class T>
cudaError_t LaunchHopperSparse(const SparseParams& p, int64_t head_dim, cudaStream_t stream) {
  return head_dim == 64 ? LaunchHopperSparse<T, 64>(p, stream)
                        : LaunchHopperSparse<T, 128>(p, stream);
}

// What a dense call needs to be a sparse one.
struct DensePlan {
  SparsePlan plan;
  float* lse = nullptr;  // [T, H]
  std::byte* sparse_scratch = nullptr;
  int64_t zero_bytes = 0;  // at the begin of the scratch: the lists of the plan
  int64_t total_bytes = 0;
};

DensePlan CarveDensePlan(const AttendDenseArgs& args, std::byte* scratch) {
  static_assert(static_cast<int>(HeadKind::kStreaming) == 0);
  const int64_t n_heads = args.q.dim(1);
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  ScratchCarver carver(scratch);
  DensePlan dense;
  dense.plan.local = {.sink = 0, .window = args.window == 0 ? n_keys : args.window};
  dense.plan.kind = carver.Take<int32_t>(n_heads);
  dense.plan.n_stripes = carver.Take<int32_t>(n_heads);
  dense.plan.n_bands = carver.Take<int32_t>(n_heads);
  dense.plan.kept_pairs = carver.Take<int64_t>(n_heads);
  dense.zero_bytes = carver.used_bytes();
  if (args.lse.empty()) dense.lse = carver.Take<float>(args.q.dim(0) * n_heads);
  const int64_t sparse_bytes = AttendSparseScratchBytes(n_heads, args.kv.head_dim, {});
  dense.sparse_scratch = carver.Take<std::byte>(sparse_bytes);
  dense.total_bytes = carver.used_bytes();
  return dense;
}

}  // namespace
}  // namespace hopper

bool SuitsHopper(const AttendSparseArgs& args) {
  if (args.kv.head_dim != 64 && args.kv.head_dim != 128) return false;
  if (!IsKvTypeOfKernels(args.kv) || args.dual.chunk_tokens != 0) return false;
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  return hopper::kFixedBytes<F8E4M3, 128> + hopper::BandBytes(args.plan.max_bands, n_keys) <=
         hopper::kMaxSharedBytes;
}

cudaError_t AttendSparseHopper(const AttendSparseArgs& args, const StripeCopies& copies,
                               std::byte* scratch, cudaStream_t stream) {
  if (args.q.dim(0) == 0) return cudaSuccess;
  if (!SuitsHopper(args)) return cudaErrorInvalidValue;
  SparseParams p;
  const cudaError_t error = PrepareSparse(args, copies, hopper::kBlockRows, scratch, stream, &p);
  if (error != cudaSuccess) return error;
  return args.kv.dtype == DType::kF8E4M3
             ? hopper::LaunchHopperSparse<F8E4M3>(p, args.kv.head_dim, stream)
             : hopper::LaunchHopperSparse<BF16>(p, args.kv.head_dim, stream);
}

bool SuitsPlan(const AttendDenseArgs& args, const DeviceLimits& limits) {
  if (args.kv.dtype != DType::kF8E4M3 || args.head_mask != nullptr) return false;
  if (args.kv.head_dim != 64 && args.kv.head_dim != 128) return false;
  if (args.dual.chunk_tokens != 0) return false;
  const int64_t n_blocks = CeilDiv(args.q.dim(0), int64_t{hopper::kBlockRows}) * args.q.dim(1);
  return n_blocks >= limits.n_multiprocessors;
}

int64_t AttendDenseByPlanScratchBytes(const AttendDenseArgs& args) {
  return hopper::CarveDensePlan(args, nullptr).total_bytes;
}

cudaError_t AttendDenseByPlan(const AttendDenseArgs& args, std::byte* scratch,
                              cudaStream_t stream) {
  if (args.q.dim(0) == 0) return cudaSuccess;
  const hopper::DensePlan dense = hopper::CarveDensePlan(args, scratch);
  const cudaError_t error =
      cudaMemsetAsync(scratch, 0, static_cast<size_t>(dense.zero_bytes), stream);
  if (error != cudaSuccess) return error;
  const TensorView lse = dense.lse == nullptr
                             ? args.lse
                             : TensorView(dense.lse, DType::kF32, {args.q.dim(0), args.q.dim(1)});
  return AttendSparseHopper({.q = args.q,
                             .dual = args.dual,
                             .q_begin = args.q_begin,
                             .kv = args.kv,
                             .scale = args.scale,
                             .plan = dense.plan,
                             .out = args.out,
                             .lse = lse},
                            /*copies=*/{}, dense.sparse_scratch, stream);
}

}  // namespace longhaul::cuda
