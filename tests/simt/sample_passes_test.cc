// The two passes over the sampled rows on the device against kernels/ref.
#include "kernels/cuda/sample_passes.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/ref/ref_ops.h"
#include "tests/simt/device_problem.h"

namespace longhaul::cuda {
namespace {

using simt::DeviceArray;
using testing::DeviceProblem;
using testing::DeviceTensor;
using testing::IsClose;
using testing::ProblemShape;
using testing::View;

// Scores are sums of products of bf16 numbers in f32; log2 and exp2 are approximate.
constexpr double kFloor = 2e-5;

struct Case {
  ProblemShape shape;
  LocalPattern local;
  int64_t n_voting = 1;
  int64_t n_audit = 0;
};

const Case kCases[] = {
    {{.n_tokens = 1, .q_begin = 0}, {64, 64}, 1, 0},  // one key
    {{.n_tokens = 1, .q_begin = 200, .head_dim = 128}, {16, 64}, 1, 0},
    {{.n_tokens = 70, .q_begin = 300, .n_heads = 4}, {64, 64}, 20, 5},
    {{.n_tokens = 113, .q_begin = 64, .n_heads = 2, .n_kv_heads = 2, .head_dim = 80},
     {3, 64},
     17,
     3},
    {{.n_tokens = 129, .q_begin = 511, .n_heads = 4, .head_dim = 128}, {64, 128}, 48, 16},
    {{.n_tokens = 70, .q_begin = 90, .n_heads = 4, .kv_dtype = DType::kF8E4M3}, {64, 64}, 20, 5},
    {{.n_tokens = 3, .q_begin = 190, .n_heads = 2, .head_dim = 80, .kv_dtype = DType::kF8E4M3},
     {3, 64},
     2,
     1},
    {{.n_tokens = 90, .q_begin = 38, .n_heads = 3, .head_dim = 96}, {0, 64}, 67, 1},
    // Dual chunk attention: rows of several chunks, chunks of an odd number of pages.
    {{.n_tokens = 150, .q_begin = 370, .n_heads = 2, .chunk_tokens = 64}, {16, 64}, 20, 5},
    {{.n_tokens = 100,
      .q_begin = 500,
      .n_heads = 4,
      .n_kv_heads = 2,
      .head_dim = 128,
      .chunk_tokens = 192},
     {80, 128},
     20,
     5},
    {{.n_tokens = 70,
      .q_begin = 190,
      .n_heads = 2,
      .kv_dtype = DType::kF8E4M3,
      .chunk_tokens = 128},
     {16, 64},
     20,
     5},
};

// n distinct rows of [0, n_tokens), in no order.
std::vector<int32_t> SomeRows(int64_t n_tokens, int64_t n) {
  std::vector<int32_t> rows(n_tokens);
  std::iota(rows.begin(), rows.end(), 0);
  testing::Random random(n);
  for (int64_t i = n_tokens - 1; i > 0; --i) std::swap(rows[i], rows[random.Below(i + 1)]);
  rows.resize(n);
  return rows;
}

// One case on the host, and what the device needs of it.
struct Problem {
  explicit Problem(const Case& test)
      : c(test),
        attention(test.shape, /*seed=*/5),
        n_rows(test.n_voting + test.n_audit),
        rows(SomeRows(test.shape.n_tokens, n_rows)),
        device_rows(rows),
        lse_full(test.shape.n_heads * n_rows),
        lse_local(test.shape.n_heads * n_rows) {
    SampleLseArgs args = LseArgs();
    args.q = attention.q();
    args.dual = attention.dual();
    args.kv = attention.kv();
    args.rows = rows.data();
    args.lse_full = View(lse_full, {c.shape.n_heads, n_rows});
    args.lse_local = View(lse_local, {c.shape.n_heads, n_rows});
    ref::SampleLse(args);
  }

  // Device tensors, but for the outputs.
  SampleLseArgs LseArgs() const {
    return {.q = attention.device_q(),
            .dual = attention.device_dual(),
            .q_begin = c.shape.q_begin,
            .kv = attention.device_kv(),
            .scale = attention.scale(),
            .local = c.local,
            .rows = device_rows.data(),
            .n_rows = n_rows,
            .lse_full = {},
            .lse_local = {}};
  }
  SampleMassArgs MassArgs(MassScope scope) const {
    return {.q = attention.device_q(),
            .dual = attention.device_dual(),
            .q_begin = c.shape.q_begin,
            .kv = attention.device_kv(),
            .scale = attention.scale(),
            .local = c.local,
            .scope = scope,
            .rows = device_rows.data(),
            .n_voting = c.n_voting,
            .kv_head_begin = 0,
            .kv_head_end = c.shape.n_kv_heads,
            .lse_full = {},
            .mass_sum = {},
            .mass_max = {}};
  }

  Case c;
  DeviceProblem attention;
  int64_t n_rows;
  std::vector<int32_t> rows;
  DeviceArray<int32_t> device_rows;
  std::vector<float> lse_full;  // [H, R], of kernels/ref
  std::vector<float> lse_local;
};

TEST(SampleLseTest, MatchesReference) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.shape.Name());
    const Problem problem(c);
    simt::ForEachSeed(2, [&] {
      DeviceTensor<> full({c.shape.n_heads, problem.n_rows});
      DeviceTensor<> local({c.shape.n_heads, problem.n_rows});
      const DeviceArray<std::byte> scratch(
          SampleLseScratchBytes(c.shape.n_heads, problem.n_rows, c.shape.n_keys()));
      SampleLseArgs args = problem.LseArgs();
      args.lse_full = full.view();
      args.lse_local = local.view();
      ASSERT_EQ(SampleLse(args, scratch.data(), nullptr), cudaSuccess);
      EXPECT_TRUE(IsClose(full.Floats(), problem.lse_full, DType::kF32, kFloor));
      EXPECT_TRUE(IsClose(local.Floats(), problem.lse_local, DType::kF32, kFloor));
    });
  }
}

// Several chunks of keys, and the same bits whatever the order of the blocks.
TEST(SampleLseTest, ChunksMergeInTheirOrder) {
  const Problem problem({{.n_tokens = 40, .q_begin = 1500}, {64, 128}, 10, 2});
  std::vector<float> first;
  simt::ForEachSeed(3, [&] {
    DeviceTensor<> full({1, 12});
    DeviceTensor<> local({1, 12});
    const DeviceArray<std::byte> scratch(SampleLseScratchBytes(1, 12, 1540));
    SampleLseArgs args = problem.LseArgs();
    args.lse_full = full.view();
    args.lse_local = local.view();
    ASSERT_EQ(SampleLse(args, scratch.data(), nullptr), cudaSuccess);
    const std::vector<float> lse = full.Floats();
    EXPECT_TRUE(IsClose(lse, problem.lse_full, DType::kF32, kFloor));
    if (first.empty()) first = lse;
    EXPECT_EQ(lse, first);
  });
}

struct Mass {
  std::vector<float> sum, max, band;
};

Mass ReferenceMass(Problem& problem, MassScope scope) {
  const int64_t n_heads = problem.c.shape.n_heads;
  const int64_t n_keys = problem.c.shape.n_keys();
  const int64_t n_bands = CeilDiv(n_keys, kBandWidth);
  Mass mass;
  mass.sum.resize(n_heads * n_keys);
  mass.max.resize(n_heads * n_keys);
  mass.band.resize(n_heads * n_bands);
  SampleMassArgs args = problem.MassArgs(scope);
  args.q = problem.attention.q();
  args.dual = problem.attention.dual();
  args.kv = problem.attention.kv();
  args.rows = problem.rows.data();
  args.lse_full = View(problem.lse_full, {n_heads, problem.n_rows});
  args.mass_sum = View(mass.sum, {n_heads, n_keys});
  args.mass_max = View(mass.max, {n_heads, n_keys});
  args.band_mass = View(mass.band, {n_heads, n_bands});
  ref::SampleMass(args);
  return mass;
}

TEST(SampleMassTest, MatchesReference) {
  for (const Case& c : kCases) {
    Problem problem(c);
    const int64_t n_heads = c.shape.n_heads;
    const int64_t n_keys = c.shape.n_keys();
    const int64_t n_bands = CeilDiv(n_keys, kBandWidth);
    const DeviceArray<float> device_lse(problem.lse_full);
    for (const MassScope scope : {MassScope::kRemote, MassScope::kAll}) {
      SCOPED_TRACE(c.shape.Name() + (scope == MassScope::kAll ? " all" : " remote"));
      const Mass expected = ReferenceMass(problem, scope);
      simt::ForEachSeed(2, [&] {
        DeviceTensor<> sum({n_heads, n_keys});
        DeviceTensor<> max({n_heads, n_keys});
        DeviceTensor<> band({n_heads, n_bands});
        const DeviceArray<std::byte> scratch(SampleMassScratchBytes(
            n_heads, n_heads / c.shape.n_kv_heads, c.n_voting, n_keys, /*bands=*/true));
        SampleMassArgs args = problem.MassArgs(scope);
        args.lse_full = TensorView(device_lse.data(), DType::kF32, {n_heads, problem.n_rows});
        args.mass_sum = sum.view();
        args.mass_max = max.view();
        args.band_mass = band.view();
        ASSERT_EQ(SampleMass(args, scratch.data(), nullptr), cudaSuccess);
        EXPECT_TRUE(IsClose(sum.Floats(), expected.sum, DType::kF32, kFloor));
        EXPECT_TRUE(IsClose(max.Floats(), expected.max, DType::kF32, kFloor));
        EXPECT_TRUE(IsClose(band.Floats(), expected.band, DType::kF32, kFloor));
      });
    }
  }
}

// The second of two kv heads alone, without bands, one of its heads skipped.
TEST(SampleMassTest, PartOfTheHeadsWithoutBands) {
  const Case c{{.n_tokens = 60, .q_begin = 130, .n_heads = 6, .n_kv_heads = 2}, {32, 64}, 9, 2};
  Problem problem(c);
  const int64_t n_keys = c.shape.n_keys();
  const Mass expected = ReferenceMass(problem, MassScope::kRemote);
  const DeviceArray<float> device_lse(problem.lse_full);
  const DeviceArray<uint8_t> choice(std::vector<uint8_t>{
      kChooseByMass, kChooseByMass, kChooseByMass, kChooseByBudget, kChosen, kChooseByMass});
  simt::ForEachSeed(3, [&] {
    DeviceTensor<> sum({3, n_keys});
    DeviceTensor<> max({3, n_keys});
    SampleMassArgs args = problem.MassArgs(MassScope::kRemote);
    args.kv_head_begin = 1;
    args.kv_head_end = 2;
    args.choice = choice.data();
    args.lse_full = TensorView(device_lse.data(), DType::kF32, {6, problem.n_rows});
    args.mass_sum = sum.view();
    args.mass_max = max.view();
    ASSERT_EQ(SampleMass(args, nullptr, nullptr), cudaSuccess);
    const std::vector<float> actual = sum.Floats();
    for (int64_t h = 0; h < 3; ++h) {
      const auto of = [&](const std::vector<float>& all, int64_t head) {
        return std::vector<float>(all.begin() + head * n_keys, all.begin() + (head + 1) * n_keys);
      };
      if (h == 1) {
        EXPECT_TRUE(std::isnan(of(actual, h)[0])) << "a skipped head was written";
      } else {
        EXPECT_TRUE(IsClose(of(actual, h), of(expected.sum, 3 + h), DType::kF32, kFloor));
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::cuda
