// kernels/cpu attention against kernels/ref, on every instruction set of this machine.

#include "kernels/cpu/attention.h"

#include <algorithm>

#include "hwy/targets.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/ref/ref_ops.h"
#include "tests/kernels/attention_cpu_fixture.h"

namespace longhaul {
namespace {

using testing_attention::ExpectClose;
using testing_attention::FillRandomPlan;
using testing_attention::Name;
using testing_attention::PlanStorage;
using testing_attention::Problem;
using testing_attention::ProblemShape;
using testing_attention::Tensor;

constexpr float kTolerance = 2e-5f;

// The parameter is a Highway target; -1 lets the machine choose.
class AttentionCpuTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    hwy::SetSupportedTargetsForTest(GetParam());
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    ASSERT_STREQ(cpu::TileTargetName(), hwy::TargetName(GetParam()));
  }
  void TearDown() override {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }

  ThreadPool pool_{2};
  CpuAttention attention_{&pool_};
};

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

TEST_P(AttentionCpuTest, DenseMatchesReference) {
  for (const ProblemShape& shape : kShapes) {
    SCOPED_TRACE(Name(shape));
    Problem problem(shape, /*seed=*/11);
    Tensor out({shape.n_tokens, shape.n_heads, shape.head_dim});
    Tensor lse({shape.n_tokens, shape.n_heads});
    Tensor expected_out({shape.n_tokens, shape.n_heads, shape.head_dim});
    Tensor expected_lse({shape.n_tokens, shape.n_heads});
    AttendDenseArgs args{.q = problem.q(),
                         .q_begin = shape.q_begin,
                         .kv = problem.kv(),
                         .scale = problem.scale(),
                         .out = expected_out.view(),
                         .lse = expected_lse.view()};
    ref::AttendDense(args);
    args.out = out.view();
    args.lse = lse.view();
    attention_.AttendDense(args);
    // Scores in the hundreds carry their own rounding into the exponent.
    const float tolerance = kTolerance * shape.q_gain;
    ExpectClose(out, expected_out, tolerance);
    ExpectClose(lse, expected_lse, kTolerance);
  }
}

// Windows below, at and above a tile, the row block and the whole length.
TEST_P(AttentionCpuTest, DenseWindowMatchesReference) {
  for (const ProblemShape& shape : kShapes) {
    Problem problem(shape, /*seed=*/15);
    for (int64_t window : {1, 63, 65, 150}) {
      SCOPED_TRACE(fmt::format("{} window {}", Name(shape), window));
      Tensor out({shape.n_tokens, shape.n_heads, shape.head_dim});
      Tensor lse({shape.n_tokens, shape.n_heads});
      Tensor expected_out({shape.n_tokens, shape.n_heads, shape.head_dim});
      Tensor expected_lse({shape.n_tokens, shape.n_heads});
      AttendDenseArgs args{.q = problem.q(),
                           .q_begin = shape.q_begin,
                           .kv = problem.kv(),
                           .scale = problem.scale(),
                           .window = window,
                           .out = expected_out.view(),
                           .lse = expected_lse.view()};
      ref::AttendDense(args);
      args.out = out.view();
      args.lse = lse.view();
      attention_.AttendDense(args);
      ExpectClose(out, expected_out, kTolerance * shape.q_gain);
      ExpectClose(lse, expected_lse, kTolerance);
    }
  }
}

TEST_P(AttentionCpuTest, DenseComputesOnlyMaskedHeads) {
  const ProblemShape shape{.n_tokens = 70, .q_begin = 30, .n_heads = 6, .n_kv_heads = 3};
  Problem problem(shape, /*seed=*/12);
  const uint8_t mask[] = {0, 1, 0, 0, 1, 1};
  Tensor out({70, 6, 64}), expected({70, 6, 64});
  AttendDenseArgs args{.q = problem.q(),
                       .q_begin = shape.q_begin,
                       .kv = problem.kv(),
                       .scale = problem.scale(),
                       .head_mask = mask,
                       .out = expected.view(),
                       .lse = {}};
  ref::AttendDense(args);
  args.out = out.view();
  attention_.AttendDense(args);
  ExpectClose(out, expected, kTolerance);
}

TEST_P(AttentionCpuTest, DecodeMatchesReference) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (int head_dim : {64, 80, 128}) {
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
      Tensor q({5, 6, head_dim}), out({5, 6, head_dim}), expected({5, 6, head_dim});
      for (int64_t b = 0; b < 5; ++b) {
        std::copy_n(problems[b].q().As<float>(), 6 * head_dim, q.view().Row<float>(b));
      }
      for (int64_t window : {0, 65, 1500}) {
        AttendDecodeArgs args{.q = q.view(),
                              .kvs = kvs.data(),
                              .scale = problems[0].scale(),
                              .window = window,
                              .out = expected.view()};
        ref::AttendDecode(args);
        args.out = out.view();
        attention_.AttendDecode(args);
        SCOPED_TRACE(window);
        ExpectClose(out, expected, kTolerance);
      }
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

TEST_P(AttentionCpuTest, SamplePassesMatchReference) {
  for (ProblemShape shape : kShapes) {
    for (MassScope scope : {MassScope::kRemote, MassScope::kAll}) {
      SCOPED_TRACE(Name(shape) + (scope == MassScope::kAll ? " all" : " remote"));
      Problem problem(shape, /*seed=*/13);
      const std::vector<int32_t> rows = SampleRows(shape.n_tokens);
      const int64_t n_rows = static_cast<int64_t>(rows.size());
      const int64_t n_keys = problem.n_keys();
      const LocalPattern local{.sink = 5, .window = 64};
      Tensor full({shape.n_heads, n_rows}), expected_full({shape.n_heads, n_rows});
      Tensor near({shape.n_heads, n_rows}), expected_near({shape.n_heads, n_rows});
      SampleLseArgs lse{.q = problem.q(),
                        .q_begin = shape.q_begin,
                        .kv = problem.kv(),
                        .scale = problem.scale(),
                        .local = local,
                        .rows = rows.data(),
                        .n_rows = n_rows,
                        .lse_full = expected_full.view(),
                        .lse_local = expected_near.view()};
      ref::SampleLse(lse);
      lse.lse_full = full.view();
      lse.lse_local = near.view();
      attention_.SampleLse(lse);
      ExpectClose(full, expected_full, kTolerance);
      ExpectClose(near, expected_near, kTolerance);

      std::vector<uint8_t> skip(shape.n_heads, 0);
      if (shape.n_heads > 2) skip[1] = 1;
      Tensor sum({shape.n_heads, n_keys}), expected_sum({shape.n_heads, n_keys});
      Tensor max({shape.n_heads, n_keys}), expected_max({shape.n_heads, n_keys});
      Tensor band({shape.n_heads, CeilDiv(n_keys, kBandWidth)});
      Tensor expected_band({shape.n_heads, CeilDiv(n_keys, kBandWidth)});
      SampleMassArgs mass{.q = problem.q(),
                          .q_begin = shape.q_begin,
                          .kv = problem.kv(),
                          .scale = problem.scale(),
                          .local = local,
                          .scope = scope,
                          .rows = rows.data(),
                          .n_voting = n_rows,
                          .kv_head_begin = 0,
                          .kv_head_end = shape.n_kv_heads,
                          .skip = skip.data(),
                          .lse_full = expected_full.view(),
                          .mass_sum = expected_sum.view(),
                          .mass_max = expected_max.view(),
                          .band_mass = expected_band.view()};
      ref::SampleMass(mass);
      mass.mass_sum = sum.view();
      mass.mass_max = max.view();
      mass.band_mass = band.view();
      attention_.SampleMass(mass);
      const float tolerance = kTolerance * shape.q_gain;
      ExpectClose(sum, expected_sum, tolerance);
      ExpectClose(max, expected_max, tolerance);
      ExpectClose(band, expected_band, tolerance);
    }
  }
}

TEST_P(AttentionCpuTest, SampleMassOfOneKvHeadWithoutBands) {
  const ProblemShape shape{.n_tokens = 90, .q_begin = 200, .n_heads = 6, .n_kv_heads = 3};
  Problem problem(shape, /*seed=*/14);
  const std::vector<int32_t> rows = {0, 40, 89};
  const LocalPattern local{.sink = 64, .window = 64};
  Tensor full({6, 3}), near({6, 3}), sum({2, 290}), max({2, 290});
  Tensor expected_sum({2, 290}), expected_max({2, 290});
  ref::SampleLse({.q = problem.q(),
                  .q_begin = 200,
                  .kv = problem.kv(),
                  .scale = problem.scale(),
                  .local = local,
                  .rows = rows.data(),
                  .n_rows = 3,
                  .lse_full = full.view(),
                  .lse_local = near.view()});
  SampleMassArgs args{.q = problem.q(),
                      .q_begin = 200,
                      .kv = problem.kv(),
                      .scale = problem.scale(),
                      .local = local,
                      .rows = rows.data(),
                      .n_voting = 3,
                      .kv_head_begin = 1,
                      .kv_head_end = 2,
                      .lse_full = full.view(),
                      .mass_sum = expected_sum.view(),
                      .mass_max = expected_max.view(),
                      .band_mass = {}};
  ref::SampleMass(args);
  args.mass_sum = sum.view();
  args.mass_max = max.view();
  attention_.SampleMass(args);
  ExpectClose(sum, expected_sum, kTolerance);
  ExpectClose(max, expected_max, kTolerance);
}

TEST_P(AttentionCpuTest, SparseMatchesReference) {
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
      Tensor out({shape.n_tokens, shape.n_heads, shape.head_dim});
      Tensor expected_out({shape.n_tokens, shape.n_heads, shape.head_dim});
      Tensor lse({shape.n_tokens, shape.n_heads}), expected_lse({shape.n_tokens, shape.n_heads});
      AttendSparseArgs args{.q = problem.q(),
                            .q_begin = shape.q_begin,
                            .kv = problem.kv(),
                            .scale = problem.scale(),
                            .plan = storage.plan,
                            .out = expected_out.view(),
                            .lse = expected_lse.view()};
      ref::AttendSparse(args);
      args.out = out.view();
      args.lse = lse.view();
      attention_.AttendSparse(args);
      ExpectClose(out, expected_out, kTolerance * shape.q_gain);
      ExpectClose(lse, expected_lse, kTolerance);
    }
  }
}

TEST_P(AttentionCpuTest, SparseOverSeveralRowBlocks) {
  const ProblemShape shape{.n_tokens = 1100, .q_begin = 900, .n_heads = 1, .n_kv_heads = 1};
  Problem problem(shape, /*seed=*/16);
  PlanStorage storage(1, problem.n_keys(), 32);
  storage.plan.local = {.sink = 64, .window = 192};
  FillRandomPlan(storage, problem, 0.1, 0.1, problem.random());
  Tensor out({1100, 1, 64}), expected_out({1100, 1, 64}), lse({1100, 1}), expected_lse({1100, 1});
  AttendSparseArgs args{.q = problem.q(),
                        .q_begin = 900,
                        .kv = problem.kv(),
                        .scale = problem.scale(),
                        .plan = storage.plan,
                        .out = expected_out.view(),
                        .lse = expected_lse.view()};
  ref::AttendSparse(args);
  args.out = out.view();
  args.lse = lse.view();
  attention_.AttendSparse(args);
  ExpectClose(out, expected_out, kTolerance);
  ExpectClose(lse, expected_lse, kTolerance);
}

// A row whose mask is empty in every tile must come out as zeros and -inf, not NaN.
TEST_P(AttentionCpuTest, RowThatSeesNothing) {
  alignas(64) float q[64] = {}, kt[64 * 64] = {}, v[64 * 64] = {}, o[64] = {}, out[64];
  alignas(64) float max[1] = {cpu::kNoScore}, sum[16] = {};
  const uint64_t visible[1] = {0};
  for (int i = 0; i < 3; ++i) {
    cpu::AttendTile({.in = {.q = q, .n_rows = 1, .head_dim = 64, .kt = kt, .visible = visible},
                     .v = v,
                     .v_stride = 64,
                     .n_keys = 64,
                     .states = {.max = max, .sum = sum},
                     .o = o});
  }
  EXPECT_EQ(cpu::FinishRow(max[0], sum, o, 64, out), -std::numeric_limits<float>::infinity());
  for (float x : out) EXPECT_EQ(x, 0.0f);
}

std::string TargetTestName(const ::testing::TestParamInfo<int64_t>& info) {
  return hwy::TargetName(info.param);
}

// What this machine runs, of the sets that attention_tile.cc is compiled for.
std::vector<int64_t> Targets() {
  std::vector<int64_t> targets;
  for (int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3}) {
    if (hwy::SupportedTargets() & target) targets.push_back(target);
  }
  return targets;
}

INSTANTIATE_TEST_SUITE_P(Targets, AttentionCpuTest, ::testing::ValuesIn(Targets()), TargetTestName);

}  // namespace
}  // namespace longhaul
