// Dual chunk attention of kernels/cpu against kernels/ref, over rows and keys of three chunks and
// more; and the reference itself against plain attention where the forms are the same.

#include <algorithm>

#include "tests/kernels/attention_cpu_compare.h"

namespace longhaul {
namespace {

using testing_attention::FillRandomPlan;
using testing_attention::Name;
using testing_attention::PlanStorage;
using testing_attention::Problem;
using testing_attention::ProblemShape;
using testing_attention::Tensor;

constexpr int64_t kChunkTokens = 128;

// Rows from the second chunk into the fourth; borders inside row blocks.
const ProblemShape kShapes[] = {
    {.n_tokens = 300, .q_begin = 150, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64},
    {.n_tokens = 300,
     .q_begin = 150,
     .n_heads = 2,
     .n_kv_heads = 1,
     .head_dim = 64,
     .dtype = DType::kBF16},
    {.n_tokens = 70, .q_begin = 380, .n_heads = 3, .n_kv_heads = 1, .head_dim = 10},
};

// A problem whose queries have three unrelated forms.
struct DualProblem {
  explicit DualProblem(const ProblemShape& shape) : problem(shape, /*seed=*/31) {
    for (Tensor* form : {&next, &far}) {
      std::normal_distribution<float> normal;
      const int64_t row = shape.n_heads * shape.head_dim;
      for (int64_t t = 0; t < shape.n_tokens; ++t) {
        std::generate_n(form->view().Row<float>(t), row,
                        [&] { return problem.Query(normal(problem.random())); });
      }
    }
  }
  DualChunkQueries dual() const { return {next.view(), far.view(), kChunkTokens}; }
  const ProblemShape& shape() const { return problem.shape(); }

  Problem problem;
  Tensor next{problem.shape().n_tokens, problem.shape().n_heads, problem.shape().head_dim};
  Tensor far{problem.shape().n_tokens, problem.shape().n_heads, problem.shape().head_dim};
};

using AttentionDualChunkTest = testing_attention::AttentionAgainstRef;

TEST_F(AttentionDualChunkTest, Dense) {
  for (const ProblemShape& shape : kShapes) {
    SCOPED_TRACE(Name(shape));
    DualProblem p(shape);
    ExpectDense({.q = p.problem.q(),
                 .dual = p.dual(),
                 .q_begin = shape.q_begin,
                 .kv = p.problem.kv(),
                 .scale = p.problem.scale(),
                 .out = {},
                 .lse = {}},
                /*with_lse=*/true);
  }
}

TEST_F(AttentionDualChunkTest, Decode) {
  for (const ProblemShape& shape : kShapes) {
    SCOPED_TRACE(Name(shape));
    DualProblem p(shape);
    // Rows at the end of the first chunk, at the beginning of the third, and at the end.
    const int64_t lengths[] = {128, 257, shape.q_begin + shape.n_tokens};
    std::vector<KvView> kvs(3, p.problem.kv());
    for (int b = 0; b < 3; ++b) kvs[b].n_tokens = lengths[b];
    ExpectDecode({.q = p.problem.q().Slice(0, 3),
                  .dual = p.dual().Slice(0, 3),
                  .kvs = kvs.data(),
                  .scale = p.problem.scale(),
                  .out = {}});
  }
}

TEST_F(AttentionDualChunkTest, SamplePasses) {
  for (const ProblemShape& shape : kShapes) {
    SCOPED_TRACE(Name(shape));
    DualProblem p(shape);
    const int32_t rows[] = {0, 5, 17, 69, 33};
    const LocalPattern local{.sink = 5, .window = 64};
    const Tensor lse_full = ExpectSampleLse({.q = p.problem.q(),
                                             .dual = p.dual(),
                                             .q_begin = shape.q_begin,
                                             .kv = p.problem.kv(),
                                             .scale = p.problem.scale(),
                                             .local = local,
                                             .rows = rows,
                                             .n_rows = 5,
                                             .lse_full = {},
                                             .lse_local = {}});
    ExpectSampleMass({.q = p.problem.q(),
                      .dual = p.dual(),
                      .q_begin = shape.q_begin,
                      .kv = p.problem.kv(),
                      .scale = p.problem.scale(),
                      .local = local,
                      .rows = rows,
                      .n_voting = 4,
                      .kv_head_begin = 0,
                      .kv_head_end = shape.n_kv_heads,
                      .lse_full = lse_full.view(),
                      .mass_sum = {},
                      .mass_max = {}},
                     /*with_bands=*/false);
  }
}

TEST_F(AttentionDualChunkTest, Sparse) {
  for (const ProblemShape& shape : kShapes) {
    SCOPED_TRACE(Name(shape));
    DualProblem p(shape);
    PlanStorage storage(shape.n_heads, p.problem.n_keys(), 8);
    storage.plan.local = {.sink = 64, .window = 64};
    FillRandomPlan(storage, p.problem, 0.4, 0.2, p.problem.random());
    ExpectSparse({.q = p.problem.q(),
                  .dual = p.dual(),
                  .q_begin = shape.q_begin,
                  .kv = p.problem.kv(),
                  .scale = p.problem.scale(),
                  .plan = storage.plan,
                  .out = {},
                  .lse = {}});
  }
}

// The definition: each key meets the form that belongs to the distance of the chunks.
TEST_F(AttentionDualChunkTest, ReferenceUsesEachForm) {
  const ProblemShape shape{.n_tokens = 300, .q_begin = 0, .n_heads = 1, .n_kv_heads = 1};
  DualProblem p(shape);
  Tensor same({300, 1, 64}), plain({300, 1, 64});
  AttendDenseArgs args{.q = p.problem.q(),
                       .q_begin = 0,
                       .kv = p.problem.kv(),
                       .scale = p.problem.scale(),
                       .out = plain.view(),
                       .lse = {}};
  ref::AttendDense(args);
  args.out = same.view();
  args.dual = {p.problem.q(), p.problem.q(), kChunkTokens};
  ref::AttendDense(args);
  EXPECT_EQ(same.data(), plain.data());
  // Another form for the next chunk changes rows from the second chunk on, a far one from the
  // third.
  const auto first_changed = [&](const DualChunkQueries& dual) {
    args.dual = dual;
    ref::AttendDense(args);
    const auto at = std::mismatch(same.data().begin(), same.data().end(), plain.data().begin());
    return (at.first - same.data().begin()) / 64;
  };
  EXPECT_EQ(first_changed({p.next.view(), p.problem.q(), kChunkTokens}), 128);
  EXPECT_EQ(first_changed({p.problem.q(), p.far.view(), kChunkTokens}), 256);
}

}  // namespace
}  // namespace longhaul
