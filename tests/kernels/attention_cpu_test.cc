// kernels/cpu attention against kernels/ref, on every instruction set of this machine.

#include <algorithm>

#include "tests/kernels/attention_cpu_compare.h"

namespace longhaul {
namespace {

using testing_attention::ExpectClose;
using testing_attention::FillRandomPlan;
using testing_attention::kPairRms;
using testing_attention::kTolerance;
using testing_attention::Name;
using testing_attention::PlanStorage;
using testing_attention::Problem;
using testing_attention::ProblemShape;
using testing_attention::Tensor;

using AttentionCpuTest = testing_attention::AttentionAgainstRef;

const ProblemShape kShapes[] = {
    {.n_tokens = 1, .q_begin = 0, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64},
    {.n_tokens = 3, .q_begin = 62, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64},
    {.n_tokens = 17, .q_begin = 1000, .n_heads = 8, .n_kv_heads = 1, .head_dim = 80},
    {.n_tokens = 113, .q_begin = 0, .n_heads = 3, .n_kv_heads = 3, .head_dim = 96},
    {.n_tokens = 300, .q_begin = 64, .n_heads = 4, .n_kv_heads = 1, .head_dim = 128},
    {.n_tokens = 130, .q_begin = 7, .n_heads = 2, .n_kv_heads = 1, .head_dim = 10},
    {.n_tokens = 100,
     .q_begin = 500,
     .n_heads = 4,
     .n_kv_heads = 2,
     .head_dim = 64,
     .dtype = DType::kBF16},
    {.n_tokens = 65,
     .q_begin = 63,
     .n_heads = 2,
     .n_kv_heads = 2,
     .head_dim = 20,
     .dtype = DType::kBF16},
    {.n_tokens = 100,
     .q_begin = 500,
     .n_heads = 4,
     .n_kv_heads = 2,
     .head_dim = 80,
     .dtype = DType::kF8E4M3},
    {.n_tokens = 65,
     .q_begin = 63,
     .n_heads = 2,
     .n_kv_heads = 2,
     .head_dim = 20,
     .dtype = DType::kF8E4M3},
    {.n_tokens = 200,
     .q_begin = 300,
     .n_heads = 2,
     .n_kv_heads = 1,
     .head_dim = 64,
     .q_gain = 20.0f},
};

AttendDenseArgs DenseArgs(Problem& problem) {
  return {.q = problem.q(),
          .q_begin = problem.shape().q_begin,
          .kv = problem.kv(),
          .scale = problem.scale(),
          .out = {},
          .lse = {}};
}

TEST_F(AttentionCpuTest, DenseMatchesReference) {
  for (const ProblemShape& shape : kShapes) {
    SCOPED_TRACE(Name(shape));
    Problem problem(shape, /*seed=*/11);
    ExpectDense(DenseArgs(problem), /*with_lse=*/true, kTolerance * shape.q_gain);
  }
}

// Windows below, at and above a tile, the row block and the whole length.
TEST_F(AttentionCpuTest, DenseWindowMatchesReference) {
  for (const ProblemShape& shape : kShapes) {
    Problem problem(shape, /*seed=*/15);
    for (int64_t window : {1, 63, 65, 150}) {
      SCOPED_TRACE(fmt::format("{} window {}", Name(shape), window));
      AttendDenseArgs args = DenseArgs(problem);
      args.window = window;
      ExpectDense(args, /*with_lse=*/true, kTolerance * shape.q_gain);
    }
  }
}

TEST_F(AttentionCpuTest, DenseComputesOnlyMaskedHeads) {
  const ProblemShape shape{.n_tokens = 70, .q_begin = 30, .n_heads = 6, .n_kv_heads = 3};
  Problem problem(shape, /*seed=*/12);
  const uint8_t mask[] = {0, 1, 0, 0, 1, 1};
  AttendDenseArgs args = DenseArgs(problem);
  args.head_mask = mask;
  ExpectDense(args, /*with_lse=*/false);
}

TEST_F(AttentionCpuTest, DecodeMatchesReference) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (int head_dim : {20, 64, 80, 128}) {
      if (dtype == DType::kF8E4M3 && head_dim == 128) continue;  // the reference is slow
      // Sequences of 1, 64, 65, 1024 and 2500 keys: one chunk, full chunks, a tail.
      std::vector<Problem> problems;
      std::vector<KvView> kvs;
      for (int64_t n_keys : {1, 64, 65, 1024, 2500}) {
        problems.emplace_back(ProblemShape{.n_tokens = 1,
                                           .q_begin = n_keys - 1,
                                           .n_heads = 6,
                                           .n_kv_heads = 2,
                                           .head_dim = head_dim,
                                           .dtype = dtype},
                              /*seed=*/static_cast<uint32_t>(n_keys));
      }
      for (const Problem& problem : problems) kvs.push_back(problem.kv());
      Tensor q({5, 6, head_dim});
      for (int64_t b = 0; b < 5; ++b) {
        std::copy_n(problems[b].q().As<float>(), 6 * head_dim, q.view().Row<float>(b));
      }
      for (int64_t window : {0, 65, 1500}) {
        SCOPED_TRACE(fmt::format("{} D{} window {}", DTypeName(dtype), head_dim, window));
        ExpectDecode({.q = q.view(),
                      .kvs = kvs.data(),
                      .scale = problems[0].scale(),
                      .window = window,
                      .out = {}});
      }
    }
  }
}

// Queries as they come.
TEST_F(AttentionCpuTest, RoundedQueriesStayClose) {
  for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
    SCOPED_TRACE(DTypeName(dtype));
    Problem problem({.n_tokens = 100,
                     .q_begin = 500,
                     .n_heads = 4,
                     .n_kv_heads = 2,
                     .head_dim = 64,
                     .dtype = dtype,
                     .any_query = true},
                    /*seed=*/16);
    const auto run = [&](const auto& attend) {
      std::pair<Tensor, Tensor> result{Tensor({100, 4, 64}), Tensor({100, 4})};
      AttendDenseArgs args = DenseArgs(problem);
      args.out = result.first.view();
      args.lse = result.second.view();
      attend(args);
      return result;
    };
    const auto expected = run([](const AttendDenseArgs& args) { ref::AttendDense(args); });
    const auto actual = run([&](const AttendDenseArgs& args) { attention_.AttendDense(args); });
    EXPECT_LE(testing_attention::RelativeRms(actual.first, expected.first), kPairRms);
    ExpectClose(actual.second, expected.second, 0x1p-8f);
  }
}

// What a tile is made of, read back from its places.
TEST_F(AttentionCpuTest, PackedTilesHoldTheRows) {
  using cpu::TileWord;
  std::mt19937 random(17);
  for (const auto& [n_keys, head_dim] : {std::pair{64, 64}, {64, 20}, {63, 80}, {17, 10}, {1, 2}}) {
    std::vector<BF16> rows(n_keys * head_dim);
    std::normal_distribution<float> normal;
    for (BF16& x : rows) x = ToBF16(normal(random));
    const void* at[64];
    for (int c = 0; c < n_keys; ++c) at[c] = rows.data() + c * head_dim;
    const auto bits = [&](int c, int i) -> uint32_t {
      return c < n_keys && i < head_dim ? rows[c * head_dim + i].bits : 0;
    };
    const int dim = static_cast<int>(cpu::PaddedDim(head_dim));
    for (TileWord word : {TileWord::kF32, TileWord::kBF16Pair}) {
      const int n = word == TileWord::kF32 ? 1 : 2;  // numbers in a word
      SCOPED_TRACE(fmt::format("{} keys of {}, {} in a word", n_keys, head_dim, n));
      ForEachTarget([&] {
        std::vector<uint32_t> kt(head_dim / n * 64), v((n_keys + n - 1) / n * dim);
        cpu::PackKeys({word, at, n_keys, head_dim, DType::kBF16, nullptr, kt.data()});
        cpu::PackValues({word, at, n_keys, head_dim, DType::kBF16, nullptr, v.data()});
        for (int i = 0; i < head_dim / n; ++i) {
          for (int c = 0; c < 64; ++c) {
            const uint32_t expected =
                n == 1 ? bits(c, i) << 16 : bits(c, 2 * i) | bits(c, 2 * i + 1) << 16;
            ASSERT_EQ(kt[i * 64 + c], expected) << "key " << c << " word " << i;
          }
        }
        for (int c = 0; c < (n_keys + n - 1) / n; ++c) {
          for (int i = 0; i < dim; ++i) {
            const uint32_t expected =
                n == 1 ? bits(c, i) << 16 : bits(2 * c, i) | bits(2 * c + 1, i) << 16;
            ASSERT_EQ(v[c * dim + i], expected) << "value row " << c << " column " << i;
          }
        }
      });
    }
  }
}

// Rows out of order, as voting rows followed by audit rows are.
std::vector<int32_t> SampleRows(int64_t n_tokens) {
  std::vector<int32_t> rows;
  for (int64_t t = 0; t < n_tokens; t += 7) rows.push_back(static_cast<int32_t>(t));
  for (int64_t t = 3; t < n_tokens; t += 31) rows.push_back(static_cast<int32_t>(t));
  return rows;
}

TEST_F(AttentionCpuTest, SamplePassesMatchReference) {
  for (ProblemShape shape : kShapes) {
    Problem problem(shape, /*seed=*/13);
    const std::vector<int32_t> rows = SampleRows(shape.n_tokens);
    const auto n_rows = static_cast<int64_t>(rows.size());
    const LocalPattern local{.sink = 5, .window = 64};
    std::vector<uint8_t> choice(shape.n_heads, 0);
    if (shape.n_heads > 2) choice[1] = kChosen;
    SCOPED_TRACE(Name(shape));
    const Tensor lse_full = ExpectSampleLse({.q = problem.q(),
                                             .q_begin = shape.q_begin,
                                             .kv = problem.kv(),
                                             .scale = problem.scale(),
                                             .local = local,
                                             .rows = rows.data(),
                                             .n_rows = n_rows,
                                             .lse_full = {},
                                             .lse_local = {}});
    for (MassScope scope : {MassScope::kRemote, MassScope::kAll}) {
      SCOPED_TRACE(scope == MassScope::kAll ? "all" : "remote");
      ExpectSampleMass({.q = problem.q(),
                        .q_begin = shape.q_begin,
                        .kv = problem.kv(),
                        .scale = problem.scale(),
                        .local = local,
                        .scope = scope,
                        .rows = rows.data(),
                        .n_voting = n_rows,
                        .kv_head_begin = 0,
                        .kv_head_end = shape.n_kv_heads,
                        .choice = choice.data(),
                        .lse_full = lse_full.view(),
                        .mass_sum = {},
                        .mass_max = {},
                        .band_mass = {}},
                       /*with_bands=*/true, kTolerance * shape.q_gain);
    }
  }
}

TEST_F(AttentionCpuTest, SampleMassOfOneKvHeadWithoutBands) {
  const ProblemShape shape{.n_tokens = 90, .q_begin = 200, .n_heads = 6, .n_kv_heads = 3};
  Problem problem(shape, /*seed=*/14);
  const std::vector<int32_t> rows = {0, 40, 89};
  const LocalPattern local{.sink = 64, .window = 64};
  const Tensor lse_full = ExpectSampleLse({.q = problem.q(),
                                           .q_begin = 200,
                                           .kv = problem.kv(),
                                           .scale = problem.scale(),
                                           .local = local,
                                           .rows = rows.data(),
                                           .n_rows = 3,
                                           .lse_full = {},
                                           .lse_local = {}});
  ExpectSampleMass({.q = problem.q(),
                    .q_begin = 200,
                    .kv = problem.kv(),
                    .scale = problem.scale(),
                    .local = local,
                    .rows = rows.data(),
                    .n_voting = 3,
                    .kv_head_begin = 1,
                    .kv_head_end = 2,
                    .lse_full = lse_full.view(),
                    .mass_sum = {},
                    .mass_max = {},
                    .band_mass = {}},
                   /*with_bands=*/false);
}

AttendSparseArgs SparseArgs(Problem& problem, const PlanStorage& storage) {
  return {.q = problem.q(),
          .q_begin = problem.shape().q_begin,
          .kv = problem.kv(),
          .scale = problem.scale(),
          .plan = storage.plan,
          .out = {},
          .lse = {}};
}

TEST_F(AttentionCpuTest, SparseMatchesReference) {
  struct Case {
    int64_t sink, window, stripe_width;
    double stripe_share, band_share;
  };
  const Case cases[] = {
      {64, 64, 1, 0.1, 0.0},  {64, 128, 1, 0.3, 0.3}, {5, 64, 8, 0.1, 0.2},   {0, 64, 16, 0.2, 0.5},
      {64, 64, 64, 0.3, 0.1}, {64, 64, 1, 0.0, 0.2},  {64, 256, 1, 1.0, 0.0}, {3, 64, 1, 0.02, 1.0},
  };
  for (const ProblemShape& shape : kShapes) {
    for (const Case& c : cases) {
      SCOPED_TRACE(Name(shape) + fmt::format(" sink {} window {} width {} bands {}", c.sink,
                                             c.window, c.stripe_width, c.band_share));
      Problem problem(shape, /*seed=*/15);
      PlanStorage storage(shape.n_heads, problem.n_keys(), CeilDiv(problem.n_keys(), kBandWidth));
      storage.plan.local = {.sink = c.sink, .window = c.window};
      storage.plan.stripe_width = c.stripe_width;
      FillRandomPlan(storage, problem, c.stripe_share, c.band_share, problem.random());
      ExpectSparse(SparseArgs(problem, storage), kTolerance * shape.q_gain);
    }
  }
}

TEST_F(AttentionCpuTest, SparseOverSeveralRowBlocks) {
  const ProblemShape shape{.n_tokens = 1100, .q_begin = 900, .n_heads = 1, .n_kv_heads = 1};
  Problem problem(shape, /*seed=*/16);
  PlanStorage storage(1, problem.n_keys(), 32);
  storage.plan.local = {.sink = 64, .window = 192};
  FillRandomPlan(storage, problem, 0.1, 0.1, problem.random());
  ExpectSparse(SparseArgs(problem, storage));
}

// A row whose mask is empty in every tile must come out as zeros and -inf, not NaN.
TEST_F(AttentionCpuTest, RowThatSeesNothing) {
  ForEachTarget([] {
    alignas(64) float q[64] = {}, kt[64 * 64] = {}, v[64 * 64] = {}, o[64] = {}, out[64];
    alignas(64) float max[1] = {cpu::kNoScore}, sum[16] = {};
    const uint64_t visible[1] = {0};
    for (int i = 0; i < 3; ++i) {
      cpu::AttendTile({.in = {.word = cpu::TileWord::kF32,
                              .q = q,
                              .n_rows = 1,
                              .head_dim = 64,
                              .kt = kt,
                              .visible = visible},
                       .v = v,
                       .n_keys = 64,
                       .states = {.max = max, .sum = sum},
                       .o = o});
    }
    EXPECT_EQ(cpu::FinishRow(max[0], sum, o, 64, out), -std::numeric_limits<float>::infinity());
    for (float x : out) EXPECT_EQ(x, 0.0f);
  });
}

}  // namespace
}  // namespace longhaul
