// Decode attention on the device against kernels/ref: batches of sequences of any lengths, cut into
// shares for few and for many blocks.
#include "kernels/cuda/attention_decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <vector>

#include "kernels/ref/ref_ops.h"
#include "tests/simt/device_problem.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using simt::ForEachSeed;
using testing::DeviceProblem;
using testing::DeviceTensor;
using testing::IsClose;
using testing::ProblemShape;
using testing::View;

#if defined(__CUDACC__)
constexpr int64_t kLongContext = 100000;
#else
constexpr int64_t kLongContext = 1500;  // the emulator takes its time
#endif

struct BatchShape {
  std::vector<int64_t> lengths = {};  // keys of each row, its own included
  int32_t n_heads = 1;
  int32_t n_kv_heads = 1;
  int32_t head_dim = 64;
  int64_t window = 0;
  DType kv_dtype = DType::kBF16;
  int64_t chunk_tokens = 0;  // of dual chunk attention; 0 = plain
};

class Batch {
 public:
  explicit Batch(const BatchShape& shape)
      : shape_(shape),
        row_((shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim),
        dual_(n_rows(),
              {.n_heads = shape.n_heads,
               .head_dim = shape.head_dim,
               .chunk_tokens = shape.chunk_tokens},
              /*seed=*/4) {
    testing::Random random(3);
    q_ = random.Normals(n_rows() * row_);
    std::vector<BF16> rounded;
    for (float& x : q_) {
      rounded.push_back(ToBF16(x));
      x = ToF32(rounded.back());
    }
    device_q_ = DeviceArray<BF16>(rounded);
    for (int64_t length : shape.lengths) {
      const ProblemShape sequence = {.q_begin = length - 1,
                                     .n_heads = shape.n_heads,
                                     .n_kv_heads = shape.n_kv_heads,
                                     .head_dim = shape.head_dim,
                                     .kv_dtype = shape.kv_dtype};
      sequences_.emplace_back(sequence, static_cast<uint64_t>(20 + sequences_.size()));
      kvs_.push_back(sequences_.back().kv());
      device_kvs_.push_back(sequences_.back().device_kv());
    }
  }

  std::vector<float> Expected() {
    std::vector<float> out(n_out());
    AttendDecodeArgs args = Args();
    args.q = Heads(q_.data(), DType::kF32);
    args.dual = dual_.host();
    args.kvs = kvs_.data();
    args.out = View(out, {n_rows(), shape_.n_heads, shape_.head_dim});
    ref::AttendDecode(args);
    return out;
  }

  // The first `n_idle` rows have no tokens in the copy that the device sees.
  std::vector<float> Run(const DeviceLimits& limits, int n_idle = 0) const {
    // As a backend has it: the copy is of another layer than the call.
    std::vector<KvView> copies = device_kvs_;
    for (KvView& copy : copies) copy.layer_offset_bytes = 0;
    for (int i = 0; i < n_idle; ++i) copies[static_cast<size_t>(i)].n_tokens = 0;
    const DeviceArray<KvView> kvs_copy(copies);
    const DeviceTensor<BF16> out({n_rows(), shape_.n_heads, shape_.head_dim});
    AttendDecodeArgs args = Args();
    args.q = Heads(device_q_.data(), DType::kBF16);
    args.dual = dual_.device();
    args.kvs = device_kvs_.data();
    args.kvs_copy = kvs_copy.data();
    args.out = out.view();
    const DeviceArray<std::byte> scratch(AttendDecodeScratchBytes(args, limits));
    EXPECT_EQ(AttendDecode(args, limits, scratch.data(), nullptr), cudaSuccess);
    return out.Floats();
  }

  void Check(int n_multiprocessors, int n_seeds = 1) {
    const std::vector<float> expected = Expected();
    ForEachSeed(n_seeds, [&] {
      // The weights are rounded to bf16 before they meet the values.
      EXPECT_TRUE(
          IsClose(Run({.n_multiprocessors = n_multiprocessors}), expected, DType::kBF16, 2e-3));
    });
  }

 private:
  AttendDecodeArgs Args() const {
    AttendDecodeArgs args;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    args.window = shape_.window;
    return args;
  }
  TensorView Heads(const void* data, DType dtype) const {
    return TensorView(const_cast<void*>(data), dtype, {n_rows(), row_})
        .Columns(0, int64_t{shape_.n_heads} * shape_.head_dim)
        .SplitColumns(shape_.n_heads, shape_.head_dim);
  }
  int64_t n_rows() const { return static_cast<int64_t>(shape_.lengths.size()); }
  int64_t n_out() const { return n_rows() * shape_.n_heads * shape_.head_dim; }

  BatchShape shape_;
  int64_t row_;
  testing::DualForms dual_;
  std::deque<DeviceProblem> sequences_;
  std::vector<KvView> kvs_;
  std::vector<KvView> device_kvs_;
  std::vector<float> q_;
  DeviceArray<BF16> device_q_;
};

TEST(AttendDecode, HeadDimsGroupsAndLengths) {
  const BatchShape shapes[] = {
      {.lengths = {1}},
      {.lengths = {1, 64, 65, 17, 130}, .n_heads = 4, .n_kv_heads = 1, .head_dim = 64},
      {.lengths = {63, 3, 200}, .n_heads = 3, .n_kv_heads = 1, .head_dim = 80},
      {.lengths = {113, 128}, .n_heads = 4, .n_kv_heads = 4, .head_dim = 96},
      {.lengths = {500, 1, 77}, .n_heads = 16, .n_kv_heads = 2, .head_dim = 128},
  };
  for (const BatchShape& shape : shapes) {
    for (int n_multiprocessors : {1, 3}) {
      SCOPED_TRACE(::testing::Message()
                   << "head_dim " << shape.head_dim << ", " << n_multiprocessors << " processors");
      Batch(shape).Check(n_multiprocessors);
    }
  }
}

TEST(AttendDecode, Fp8Cache) {
  const BatchShape shapes[] = {
      {.lengths = {1, 64, 65, 17, 130}, .n_heads = 4},
      {.lengths = {63, 3, 200}, .n_heads = 3, .head_dim = 80, .window = 70},
      {.lengths = {330, 1, 77}, .n_heads = 16, .n_kv_heads = 2, .head_dim = 128},
  };
  for (BatchShape shape : shapes) {
    SCOPED_TRACE(::testing::Message() << "head_dim " << shape.head_dim);
    shape.kv_dtype = DType::kF8E4M3;
    Batch(shape).Check(/*n_multiprocessors=*/2, /*n_seeds=*/2);
  }
}

TEST(AttendDecode, DualChunks) {
  const BatchShape shapes[] = {
      {.lengths = {1, 64, 65, 129, 400}, .n_heads = 4, .chunk_tokens = 64},
      {.lengths = {700, 192, 193, 3},
       .n_heads = 3,
       .head_dim = 128,
       .window = 450,
       .chunk_tokens = 192},
      {.lengths = {330, 90},
       .n_heads = 8,
       .n_kv_heads = 2,
       .kv_dtype = DType::kF8E4M3,
       .chunk_tokens = 128},
  };
  for (const BatchShape& shape : shapes) {
    SCOPED_TRACE(::testing::Message() << "chunks of " << shape.chunk_tokens);
    Batch(shape).Check(/*n_multiprocessors=*/2, /*n_seeds=*/2);
  }
}

// 20 query heads on one kv head do not fit one tile of 16.
TEST(AttendDecode, GroupsOfMoreThanSixteenHeads) {
  Batch({.lengths = {100, 400}, .n_heads = 40, .n_kv_heads = 2}).Check(1);
  Batch({.lengths = {100, 400}, .n_heads = 40, .n_kv_heads = 2}).Check(3);
}

TEST(AttendDecode, Windows) {
  for (int64_t window : {1, 64, 100, 129, 5000}) {
    SCOPED_TRACE(::testing::Message() << "window " << window);
    Batch({.lengths = {1, 64, 129, 130, 700}, .n_heads = 4, .n_kv_heads = 2, .window = window})
        .Check(2);
  }
}

// One long context among short ones, cut among 1 to 40 blocks.
TEST(AttendDecode, EqualSharesOfUnequalRows) {
  Batch batch({.lengths = {5, 2900, 64, 128, 1}, .n_heads = 8, .n_kv_heads = 2});
  for (int n_multiprocessors : {1, 2, 5, 7, 20}) {
    SCOPED_TRACE(::testing::Message() << n_multiprocessors << " multiprocessors");
    batch.Check(n_multiprocessors);
  }
}

TEST(AttendDecode, AnyOrderOfThreadsWithTwoAndThreeStages) {
  Batch batch({.lengths = {330, 40}, .n_heads = 8, .n_kv_heads = 1, .head_dim = 128});
  const std::vector<float> expected = batch.Expected();
  for (int shared_kib : {100, 228}) {
    ForEachSeed(4, [&] {
      const DeviceLimits limits = {.n_multiprocessors = 1, .shared_bytes = shared_kib << 10};
      EXPECT_TRUE(IsClose(batch.Run(limits), expected, DType::kBF16, 2e-3));
    });
  }
}

// The same work cut in the same way gives the same bits, whatever the order of blocks.
TEST(AttendDecode, IsDeterministic) {
  Batch batch({.lengths = {700, 300}, .n_heads = 4, .n_kv_heads = 2});
  const std::vector<float> first = batch.Run({.n_multiprocessors = 4});
  ForEachSeed(3, [&] { EXPECT_EQ(batch.Run({.n_multiprocessors = 4}), first); });
}

TEST(AttendDecode, LeavesIdleRowsAlone) {
  Batch batch({.lengths = {90, 64, 150}, .n_heads = 2, .n_kv_heads = 1});
  const std::vector<float> expected = batch.Expected();
  const std::vector<float> actual = batch.Run({.n_multiprocessors = 2}, /*n_idle=*/2);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (i < 2 * 2 * 64) {
      ASSERT_TRUE(std::isnan(actual[i])) << i;
    } else {
      ASSERT_NEAR(actual[i], expected[i], 1e-2) << i;
    }
  }
}

TEST(AttendDecode, LongContextOnAWholeDevice) {
  Batch({.lengths = {kLongContext, 1, kLongContext / 2 + 3}, .n_heads = 8, .head_dim = 128})
      .Check(132);
}

// More rows than the planning warp has lanes.
TEST(AttendDecode, ManyRows) {
  BatchShape shape = {.n_heads = 2};
  for (int64_t i = 0; i < 70; ++i) shape.lengths.push_back(1 + i * 37 % 150);
  Batch(shape).Check(3);
}

#if !defined(__CUDACC__)
TEST(AttendDecode, ReadsSharedMemoryWithoutBankConflicts) {
  for (int32_t head_dim : {64, 80, 96, 128}) {
    SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim);
    simt::TakeStatistics();
    Batch({.lengths = {200}, .n_heads = 2, .head_dim = head_dim}).Run({.n_multiprocessors = 1});
    const simt::Statistics statistics = simt::TakeStatistics();
    EXPECT_GT(statistics.n_ldmatrix_phases, 0);
    EXPECT_EQ(statistics.n_ldmatrix_conflicts, 0);
  }
}
#endif

}  // namespace
}  // namespace longhaul::cuda
