// A row's result depends on its query and its keys only: not on the rows around it, on where the
// call starts, or on the number of threads. Bit for bit.

#include <algorithm>

#include "kernels/cpu/attention.h"
#include "kernels/ref/ref_ops.h"
#include "tests/kernels/attention_cpu_fixture.h"

namespace longhaul {
namespace {

using testing_attention::FillRandomPlan;
using testing_attention::PlanStorage;
using testing_attention::Problem;
using testing_attention::ProblemShape;
using testing_attention::Tensor;

class AttentionCpuInvarianceTest : public ::testing::TestWithParam<DType> {
 protected:
  ProblemShape shape_{.n_tokens = 700,
                      .q_begin = 333,
                      .n_heads = 4,
                      .n_kv_heads = 2,
                      .head_dim = 64,
                      .dtype = GetParam(),
                      .q_gain = 3.0f};
  Problem problem_{shape_, /*seed=*/21};
  ThreadPool one_{1};
  ThreadPool three_{3};
  CpuAttention alone_{&one_};
  CpuAttention together_{&three_};
};

TEST_P(AttentionCpuInvarianceTest, DenseRowsAloneAndSliced) {
  for (int64_t window : {0, 1, 64, 150}) {
    Tensor whole({700, 4, 64}), whole_lse({700, 4});
    together_.AttendDense({.q = problem_.q(),
                           .q_begin = 333,
                           .kv = problem_.kv(),
                           .scale = problem_.scale(),
                           .window = window,
                           .out = whole.view(),
                           .lse = whole_lse.view()});
    Tensor parts({700, 4, 64}), parts_lse({700, 4});
    const int64_t cuts[] = {0, 1, 2, 5, 64, 65, 300, 301, 699, 700};
    for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
      const int64_t begin = cuts[i], end = cuts[i + 1];
      KvView kv = problem_.kv();
      kv.n_tokens = 333 + end;
      alone_.AttendDense({.q = problem_.q().Slice(begin, end),
                          .q_begin = 333 + begin,
                          .kv = kv,
                          .scale = problem_.scale(),
                          .window = window,
                          .out = parts.view().Slice(begin, end),
                          .lse = parts_lse.view().Slice(begin, end)});
    }
    EXPECT_EQ(whole.data(), parts.data());
    EXPECT_EQ(whole_lse.data(), parts_lse.data());
  }
}

TEST_P(AttentionCpuInvarianceTest, DenseHeadsAlone) {
  Tensor whole({700, 4, 64}), parts({700, 4, 64});
  together_.AttendDense({.q = problem_.q(),
                         .q_begin = 333,
                         .kv = problem_.kv(),
                         .scale = problem_.scale(),
                         .out = whole.view(),
                         .lse = {}});
  for (int h = 0; h < 4; ++h) {
    uint8_t mask[4] = {};
    mask[h] = 1;
    alone_.AttendDense({.q = problem_.q(),
                        .q_begin = 333,
                        .kv = problem_.kv(),
                        .scale = problem_.scale(),
                        .head_mask = mask,
                        .out = parts.view(),
                        .lse = {}});
  }
  EXPECT_EQ(whole.data(), parts.data());
}

TEST_P(AttentionCpuInvarianceTest, SparseRowsSlicedUnderOnePlan) {
  PlanStorage storage(4, problem_.n_keys(), 32);
  storage.plan.local = {.sink = 64, .window = 128};
  FillRandomPlan(storage, problem_, 0.1, 0.1, problem_.random());
  Tensor whole({700, 4, 64}), whole_lse({700, 4}), parts({700, 4, 64}), parts_lse({700, 4});
  together_.AttendSparse({.q = problem_.q(),
                          .q_begin = 333,
                          .kv = problem_.kv(),
                          .scale = problem_.scale(),
                          .plan = storage.plan,
                          .out = whole.view(),
                          .lse = whole_lse.view()});
  const int64_t cuts[] = {0, 1, 3, 100, 612, 700};
  for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
    const int64_t begin = cuts[i], end = cuts[i + 1];
    alone_.AttendSparse({.q = problem_.q().Slice(begin, end),
                         .q_begin = 333 + begin,
                         .kv = problem_.kv(),
                         .scale = problem_.scale(),
                         .plan = storage.plan,
                         .out = parts.view().Slice(begin, end),
                         .lse = parts_lse.view().Slice(begin, end)});
  }
  EXPECT_EQ(whole.data(), parts.data());
  EXPECT_EQ(whole_lse.data(), parts_lse.data());
}

TEST_P(AttentionCpuInvarianceTest, DecodeAloneAndBatched) {
  const int64_t lengths[] = {700, 64, 1033};
  std::vector<KvView> kvs;
  Tensor q({3, 4, 64}), batched({3, 4, 64}), single({3, 4, 64});
  for (int64_t b = 0; b < 3; ++b) {
    kvs.push_back(problem_.kv());
    kvs.back().n_tokens = lengths[b];
    std::copy_n(problem_.q().Row<float>(b), 4 * 64, q.view().Row<float>(b));
  }
  together_.AttendDecode(
      {.q = q.view(), .kvs = kvs.data(), .scale = problem_.scale(), .out = batched.view()});
  for (int64_t b = 0; b < 3; ++b) {
    alone_.AttendDecode({.q = q.view().Slice(b, b + 1),
                         .kvs = &kvs[b],
                         .scale = problem_.scale(),
                         .out = single.view().Slice(b, b + 1)});
  }
  EXPECT_EQ(batched.data(), single.data());
}

// Long enough for several key chunks, whose partial results meet in a fixed order.
TEST(AttentionCpuThreadsTest, SamplePassesDoNotDependOnThreads) {
  const ProblemShape shape{
      .n_tokens = 256, .q_begin = 9000, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64};
  Problem problem(shape, /*seed=*/22);
  const int32_t rows[] = {0, 50, 100, 150, 200, 255, 20};
  const int64_t n_keys = problem.n_keys(), n_bands = CeilDiv(n_keys, kBandWidth);
  std::vector<std::vector<float>> results[2];
  for (int run = 0; run < 2; ++run) {
    ThreadPool pool(run == 0 ? 1 : 3);
    CpuAttention attention(&pool);
    const LocalPattern local;
    Tensor full({2, 7}), near({2, 7}), sum({2, n_keys}), max({2, n_keys}), band({2, n_bands});
    attention.SampleLse({.q = problem.q(),
                         .q_begin = 9000,
                         .kv = problem.kv(),
                         .scale = problem.scale(),
                         .local = local,
                         .rows = rows,
                         .n_rows = 7,
                         .lse_full = full.view(),
                         .lse_local = near.view()});
    attention.SampleMass({.q = problem.q(),
                          .q_begin = 9000,
                          .kv = problem.kv(),
                          .scale = problem.scale(),
                          .local = local,
                          .rows = rows,
                          .n_voting = 6,
                          .kv_head_begin = 0,
                          .kv_head_end = 1,
                          .lse_full = full.view(),
                          .mass_sum = sum.view(),
                          .mass_max = max.view(),
                          .band_mass = band.view()});
    for (const Tensor* t : {&full, &near, &sum, &max, &band}) results[run].push_back(t->data());
  }
  EXPECT_EQ(results[0], results[1]);
  // The masses of a row and of the diagonals are the same mass: 6 rows less their local part.
  double sum = 0, band = 0;
  for (float x : results[0][2]) sum += x;
  for (float x : results[0][4]) band += x;
  EXPECT_NEAR(sum, band, 1e-4);
  EXPECT_LT(sum, 12.0);
  EXPECT_GT(sum, 6.0);
}

// Few rows with many keys share the keys among the threads; many rows do not. Both merge the same
// chunks of keys in the same order.
TEST(AttentionCpuThreadsTest, DenseRowsAloneShareTheirKeys) {
  const ProblemShape shape{
      .n_tokens = 1600, .q_begin = 32000, .n_heads = 2, .n_kv_heads = 1, .head_dim = 16};
  Problem problem(shape, /*seed=*/23);
  ThreadPool pool(3);
  CpuAttention attention(&pool);
  for (int64_t window : {0, 20000}) {
    const auto attend = [&](int64_t begin, int64_t end, Tensor& out, Tensor& lse) {
      attention.AttendDense({.q = problem.q().Slice(begin, end),
                             .q_begin = 32000 + begin,
                             .kv = problem.kv(),
                             .scale = problem.scale(),
                             .window = window,
                             .out = out.view().Slice(begin, end),
                             .lse = lse.view().Slice(begin, end)});
    };
    Tensor whole({1600, 2, 16}), whole_lse({1600, 2}), parts({1600, 2, 16}), parts_lse({1600, 2});
    attend(0, 1600, whole, whole_lse);
    // The second to last part crosses the border of a chunk at 32768.
    const int64_t cuts[] = {0, 1, 60, 760, 770, 1600};
    for (size_t i = 0; i + 1 < std::size(cuts); ++i) attend(cuts[i], cuts[i + 1], parts, parts_lse);
    EXPECT_EQ(whole.data(), parts.data());
    EXPECT_EQ(whole_lse.data(), parts_lse.data());

    Tensor expected({3, 2, 16}), expected_lse({3, 2});
    ref::AttendDense({.q = problem.q().Slice(1597, 1600),
                      .q_begin = 33597,
                      .kv = problem.kv(),
                      .scale = problem.scale(),
                      .window = window,
                      .out = expected.view(),
                      .lse = expected_lse.view()});
    for (int64_t r = 0; r < 3; ++r) {
      EXPECT_NEAR(whole_lse.view().Row<float>(1597 + r)[1], expected_lse.view().Row<float>(r)[1],
                  1e-4);
      for (int64_t i = 0; i < 32; ++i) {
        EXPECT_NEAR(whole.view().Row<float>(1597 + r)[i], expected.view().Row<float>(r)[i], 2e-5);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kv, AttentionCpuInvarianceTest,
                         ::testing::Values(DType::kF32, DType::kBF16, DType::kF8E4M3),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace longhaul
