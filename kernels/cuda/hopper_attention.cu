// One producer warp group brings tiles of keys and values into shared memory by tensor copies; two
// consumer warp groups of 64 rows each multiply (hopper_consumer.cuh).
//
// 128 rows and 128 keys: with D = 128 a consumer thread holds 64 registers of scores, 64 of output
// and 32 of weights, and two tiles of keys and of values are 128 KiB of shared memory.
#include "kernels/cuda/hopper_attention.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/check_args.h"
#include "kernels/cuda/hopper_consumer.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_map.h"

namespace longhaul::cuda {
namespace hopper {
namespace {

constexpr int kProducerRegisters = 24;  // 24 + 2 * 240 = 3 * 168, with which 384 threads start
constexpr int kConsumerRegisters = 240;

// What a consumer needs to know of its rows and tiles: see Consumer.
class DenseTiles {
 public:
  LH_DEVICE DenseTiles(const HopperParams& p, const Work& work, int consumer)
      : p_(p), work_(work), first_row_(work.row_begin + consumer * kGroupRows) {
    const int first = first_row_ + WarpId() % 4 * 16;
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      visible_[half] = VisibleKeys(p, first + 8 * half + LaneId() / 4);
    }
    whole_ = {VisibleKeys(p, first + 15).begin, VisibleKeys(p, first).end};
  }

  LH_DEVICE int n_rows() const { return p_.n_rows; }
  LH_DEVICE int first_row() const { return first_row_; }
  LH_DEVICE int TokenOf(int row) const { return row / p_.pack; }
  LH_DEVICE int HeadOf(int row) const { return work_.head_block * p_.pack + row % p_.pack; }

  LH_DEVICE bool IsEmpty() const { return work_.tile_begin == work_.tile_end; }
  LH_DEVICE int first_tile() const { return work_.tile_begin; }
  LH_DEVICE bool Has(int tile) const { return tile < work_.tile_end; }

  LH_DEVICE bool IsMasked(int tile) const {
    return tile * kBlockKeys < whole_.begin || (tile + 1) * kBlockKeys > whole_.end;
  }
  LH_DEVICE void Mask(int tile, ScoreRegisters& scores) const {
    LH_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int first_key = tile * kBlockKeys + LaneId() % 4 * 2;
      const int begin = visible_[half].begin - first_key;
      const int end = visible_[half].end - first_key;
      LH_UNROLL
      for (int n = 0; n < kBlockKeys / 8; ++n) {
        LH_UNROLL
        for (int parity = 0; parity < 2; ++parity) {
          const int column = 8 * n + parity;
          if (column < begin || column >= end) {
            scores[4 * n + 2 * half + parity] = MinusInfinity();
          }
        }
      }
    }
  }

 private:
  const HopperParams& p_;
  const Work& work_;
  const int first_row_;
  Visible visible_[2];  // by the two rows of the thread
  Visible whole_;       // by all rows of the warp
};

template <int kHeadDim>
LH_KERNEL(kThreads, 1)
HopperKernel(LH_GRID_CONSTANT const HopperParams p) {
  const Work work = WorkOfBlock(p);
  if (p.head_mask) {
    const uint8_t wanted = p.head_mask[work.head_block * p.pack];
    if (wanted == 0) return;
  }
  SharedArena arena;
  const BlockMemory<kHeadDim> memory(arena);
  if (ThreadId() == 0) {
    memory.InitBarriers(/*n_arrivals=*/1);
    FenceProxyAsync();
  }
  SyncThreads();
  // The same in all lanes, and the compiler shall know: else it runs products one after another.
  const int warp_group = Shuffle(ThreadId() / kWarpGroupThreads, 0);
  if (warp_group == 0) {
    GiveUpRegisters<kProducerRegisters>();
    if (ThreadId() == 0) Produce<kHeadDim>(p, work, memory.keys, memory.values);
  } else {
    TakeRegisters<kConsumerRegisters>();
    const DenseTiles tiles(p, work, warp_group - 1);
    Consumer<kHeadDim, HopperParams, DenseTiles> consumer(p, tiles, warp_group - 1, memory);
    consumer.Run();
    consumer.Write();
  }
}

template <int kHeadDim>
cudaError_t LaunchHopper(const HopperParams& p, cudaStream_t stream) {
  static_assert(BlockMemory<kHeadDim>::kBytes <= kMaxSharedBytes);
  return Launch({.name = "attend dense (hopper)",
                 .grid = dim3(static_cast<unsigned>(p.n_head_blocks * p.n_row_tiles)),
                 .block = kThreads,
                 .smem_bytes = BlockMemory<kHeadDim>::kBytes,
                 .stream = stream},
                HopperKernel<kHeadDim>, p);
}

int64_t Pack(const AttendDenseArgs& args) {
  return args.head_mask != nullptr ? 1 : args.q.dim(1) / args.kv.n_kv_heads;
}

cudaError_t MakePageMaps(const KvView& kv, int64_t key_end, HopperParams* p) {
  const int64_t row_bytes = kv.head_dim * int64_t{sizeof(BF16)};
  TensorShape shape = {
      .sizes = {kv.head_dim, kPageTokens, 2 * int64_t{kv.n_kv_heads},
                std::numeric_limits<int32_t>::max()},
      .stride_bytes = {0, row_bytes, kv.head_stride_bytes / 2, kv.page_stride_bytes},
      .box = {kSwizzleElements, static_cast<int32_t>(kPageTokens), 1, 1}};
  const std::byte* data = kv.pool + kv.layer_offset_bytes;
  const cudaError_t error = MakeTensorMap(data, shape, &p->pages);
  if (error != cudaSuccess) return error;
  shape.sizes[1] = std::max<int64_t>(key_end - 1, 0) % kPageTokens + 1;
  return MakeTensorMap(data, shape, &p->last_page);
}

}  // namespace
}  // namespace hopper

bool SuitsHopper(const AttendDenseArgs& args, const DeviceLimits& limits) {
  if (args.kv.head_dim != 64 && args.kv.head_dim != 128) return false;
  if (args.kv.dtype != DType::kBF16 || args.dual.chunk_tokens != 0) return false;
  const int64_t pack = hopper::Pack(args);
  const int64_t n_blocks =
      CeilDiv(args.q.dim(0) * pack, int64_t{hopper::kBlockRows}) * (args.q.dim(1) / pack);
  return n_blocks >= limits.n_multiprocessors;
}

cudaError_t AttendDenseHopper(const AttendDenseArgs& args, const KeyRange& keys,
                              const DeviceLimits& limits, cudaStream_t stream) {
  CheckArgs(args, DType::kBF16);
  if (args.q.dim(0) == 0) return cudaSuccess;
  LH_CHECK(args.kv.dtype == DType::kBF16 && args.dual.chunk_tokens == 0);

  hopper::HopperParams p{MakeDenseRows(args, keys, limits, hopper::Pack(args), hopper::kBlockRows,
                                       hopper::kBlockKeys)};
  p.page_ids = args.kv.pages;
  const cudaError_t error = hopper::MakePageMaps(args.kv, p.key_end, &p);
  if (error != cudaSuccess) return error;
  switch (args.kv.head_dim) {
    case 64:
      return hopper::LaunchHopper<64>(p, stream);
    case 128:
      return hopper::LaunchHopper<128>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace longhaul::cuda
