// What attention means, on every host backend: a plain softmax in f64 written out again here, and
// the identities between plans. Fast against reference in depth: attention_cpu_test.cc.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/backend.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace longhaul {
namespace {

using testing::IsClose;
using testing::PagedKv;
using testing::PlanOwner;
using testing::Random;
using testing::View;

struct Geometry {
  int64_t n_heads;
  int32_t n_kv_heads, head_dim;
  int64_t q_begin, n_q;
  DType dtype;
};

const Geometry kGeometries[] = {
    {2, 2, 64, 0, 1, DType::kF32},       {4, 2, 64, 0, 113, DType::kBF16},
    {4, 1, 80, 200, 17, DType::kF32},    {8, 1, 96, 333, 3, DType::kBF16},
    {2, 1, 64, 100, 41, DType::kF8E4M3}, {4, 4, 128, 130, 70, DType::kF32}};
constexpr double kTolerance = 2e-5;
// Where keys and values are bf16 numbers the CPU may round queries and weights to bf16 too. Weights
// off by 2^-8 give outputs like rounded ones; scores of 4 are then off by up to 2^-6.
constexpr double kRoundedOut = 2e-3;
constexpr double kRoundedLse = 0x1p-6;

class AttentionSemanticsTest : public ::testing::TestWithParam<BackendKind> {
 protected:
  // Inputs and outputs of one geometry.
  struct Case {
    explicit Case(const Geometry& geometry)
        : g(geometry),
          n_keys(g.q_begin + g.n_q),
          pages(g.n_kv_heads, g.head_dim, n_keys, g.dtype),
          q(Random(3).Normals(g.n_q * g.n_heads * g.head_dim)),
          out(q.size(), NAN),
          lse(g.n_q * g.n_heads, NAN),
          scale(static_cast<float>(1 / std::sqrt(g.head_dim))) {
      pages.Fill(7);
    }
    TensorView Heads(std::vector<float>& x) { return View(x, {g.n_q, g.n_heads, g.head_dim}); }
    TensorView Lse() { return View(lse, {g.n_q, g.n_heads}); }

    Geometry g;
    int64_t n_keys;
    PagedKv pages;
    std::vector<float> q, out, lse;
    float scale;
  };

  void Dense(Case& c, int64_t window = 0) {
    backend_->AttendDense({.q = c.Heads(c.q),
                           .q_begin = c.g.q_begin,
                           .kv = c.pages.View(),
                           .scale = c.scale,
                           .window = window,
                           .out = c.Heads(c.out),
                           .lse = c.Lse()});
  }
  void Sparse(Case& c, const SparsePlan& plan) {
    backend_->AttendSparse({.q = c.Heads(c.q),
                            .q_begin = c.g.q_begin,
                            .kv = c.pages.View(),
                            .scale = c.scale,
                            .plan = plan,
                            .out = c.Heads(c.out),
                            .lse = c.Lse()});
  }
  // Overwrites out and lse with the softmax over the pairs that kept(row, key) admits.
  template <typename Kept>
  static void Naive(Case& c, const Kept& kept) {
    const int64_t group = c.g.n_heads / c.g.n_kv_heads;
    for (int64_t t = 0; t < c.g.n_q; ++t) {
      for (int64_t h = 0; h < c.g.n_heads; ++h) {
        const int64_t row = c.g.q_begin + t;
        const float* q = &c.q[(t * c.g.n_heads + h) * c.g.head_dim];
        std::vector<double> sum(c.g.head_dim, 0.0);
        double total = 0;  // scores of normal data are far from overflow
        for (int64_t key = 0; key <= row; ++key) {
          if (!kept(row, key)) continue;
          const std::vector<float> k = c.pages.Key(1, key, h / group);
          const std::vector<float> v = c.pages.Value(1, key, h / group);
          const double dot = std::inner_product(k.begin(), k.end(), q, 0.0);
          const double weight = std::exp(dot * c.scale);
          total += weight;
          for (int64_t d = 0; d < c.g.head_dim; ++d) sum[d] += weight * v[d];
        }
        for (int64_t d = 0; d < c.g.head_dim; ++d) {
          c.out[(t * c.g.n_heads + h) * c.g.head_dim + d] = static_cast<float>(sum[d] / total);
        }
        c.lse[t * c.g.n_heads + h] = static_cast<float>(std::log(total));
      }
    }
  }
  static bool MayRound(const Case& c) {
    return GetParam() == BackendKind::kCpu && c.g.dtype != DType::kF32;
  }
  static ::testing::AssertionResult IsSameOut(const Case& c, const std::vector<float>& actual,
                                              const std::vector<float>& expected) {
    return MayRound(c) ? IsClose(actual, expected, DType::kBF16, kRoundedOut)
                       : IsClose(actual, expected, DType::kF32, kTolerance);
  }
  static void ExpectSame(const Case& actual, const Case& expected) {
    EXPECT_TRUE(IsSameOut(actual, actual.out, expected.out));
    EXPECT_TRUE(IsClose(actual.lse, expected.lse, DType::kF32,
                        MayRound(actual) ? kRoundedLse : kTolerance));
  }

  std::unique_ptr<Backend> backend_ = CreateBackend(GetParam(), /*n_threads=*/2).value();
};

INSTANTIATE_TEST_SUITE_P(Backends, AttentionSemanticsTest,
                         ::testing::Values(BackendKind::kRef, BackendKind::kCpu));

TEST_P(AttentionSemanticsTest, DenseIsSoftmax) {
  for (const Geometry& geometry : kGeometries) {
    Case actual(geometry), expected(geometry);
    Dense(actual);
    Naive(expected, [](int64_t, int64_t) { return true; });
    ExpectSame(actual, expected);
  }
}

TEST_P(AttentionSemanticsTest, WindowKeepsTheLastKeys) {
  for (const Geometry& geometry : kGeometries) {
    for (int64_t window : {1, 64, 100}) {
      Case actual(geometry), expected(geometry);
      Dense(actual, window);
      Naive(expected, [&](int64_t row, int64_t key) { return row - key < window; });
      ExpectSame(actual, expected);
    }
  }
}

TEST_P(AttentionSemanticsTest, DecodeIsTheLastDenseRow) {
  for (const Geometry& geometry : kGeometries) {
    for (int64_t window : {0, 1, 70}) {
      Case c(geometry);
      Dense(c, window);
      const int64_t row = c.g.n_heads * c.g.head_dim;
      std::vector<float> out(row, NAN);
      const KvView kv = c.pages.View();
      backend_->AttendDecode({.q = c.Heads(c.q).Slice(c.g.n_q - 1, c.g.n_q),
                              .kvs = &kv,
                              .scale = c.scale,
                              .window = window,
                              .out = View(out, {1, c.g.n_heads, c.g.head_dim})});
      EXPECT_TRUE(IsSameOut(c, out, {c.out.end() - row, c.out.end()}));
    }
  }
}

TEST_P(AttentionSemanticsTest, EverythingSelectedIsDense) {
  for (const Geometry& geometry : kGeometries) {
    for (int64_t width : {1, 8, 16, 64}) {
      Case actual(geometry), expected(geometry);
      PlanOwner plan(geometry.n_heads, {.sink = 3, .window = 64}, width, 1024, 64);
      std::vector<int32_t> stripes, bands;
      for (int64_t key = 0; key < actual.n_keys; key += width) stripes.push_back(key);
      for (int64_t b = 1; b <= (actual.n_keys - 1) / kBandWidth; ++b) bands.push_back(b);
      // All by stripes, all by bands, all by both (no pair counts twice), and a dense head.
      for (int64_t h = 0; h < geometry.n_heads; ++h) {
        if (h % 4 == 3) {
          plan.Set(h, HeadKind::kDense);
        } else {
          plan.Set(h, HeadKind::kSparse, h % 4 == 1 ? std::vector<int32_t>() : stripes,
                   h % 4 == 0 ? std::vector<int32_t>() : bands);
        }
      }
      Sparse(actual, plan.plan());
      Dense(expected);
      ExpectSame(actual, expected);
    }
  }
}

TEST_P(AttentionSemanticsTest, StreamingKeepsSinkAndWindow) {
  for (const Geometry& geometry : kGeometries) {
    Case actual(geometry), expected(geometry);
    PlanOwner plan(geometry.n_heads, {.sink = 5, .window = 64}, 1, 4, 4);
    for (int64_t h = 0; h < geometry.n_heads; ++h) {
      // Streaming by name, and a sparse head with empty lists: the same.
      plan.Set(h, h % 2 == 0 ? HeadKind::kStreaming : HeadKind::kSparse);
    }
    Sparse(actual, plan.plan());
    Naive(expected, [](int64_t row, int64_t key) { return key < 5 || row - key < 64; });
    ExpectSame(actual, expected);
  }
}

TEST_P(AttentionSemanticsTest, StripesAndBandsAreAUnion) {
  for (const Geometry& geometry : kGeometries) {
    Case actual(geometry), expected(geometry);
    PlanOwner plan(geometry.n_heads, {.sink = 0, .window = 64}, 8, 8, 8);
    for (int64_t h = 0; h < geometry.n_heads; ++h) {
      plan.Set(h, HeadKind::kSparse, {0, 64, 104}, {2, 3});
    }
    Sparse(actual, plan.plan());
    Naive(expected, [](int64_t row, int64_t key) {
      const int64_t stripe = key / 8 * 8, band = (row - key) / kBandWidth;
      return row - key < 64 || stripe == 0 || stripe == 64 || stripe == 104 || band == 2 ||
             band == 3;
    });
    ExpectSame(actual, expected);
  }
}

// Mass of pass 2 plus the local mass of pass 1 is everything: one per voting row.
TEST_P(AttentionSemanticsTest, MassAddsUpToOnePerRow) {
  for (const Geometry& geometry : kGeometries) {
    Case c(geometry);
    const LocalPattern local{.sink = 4, .window = 64};
    std::vector<int32_t> rows = {0};
    if (geometry.n_q > 2)
      rows = {0, static_cast<int32_t>(geometry.n_q / 2), static_cast<int32_t>(geometry.n_q - 1)};
    const int64_t n_rows = static_cast<int64_t>(rows.size()), n_heads = geometry.n_heads;
    const int64_t n_bands = CeilDiv(c.n_keys, kBandWidth);
    std::vector<float> full(n_heads * n_rows, NAN), near = full;
    std::vector<float> sum(n_heads * c.n_keys, NAN), max = sum, band(n_heads * n_bands, NAN);
    backend_->SampleLse({.q = c.Heads(c.q),
                         .q_begin = geometry.q_begin,
                         .kv = c.pages.View(),
                         .scale = c.scale,
                         .local = local,
                         .rows = rows.data(),
                         .n_rows = n_rows,
                         .lse_full = View(full, {n_heads, n_rows}),
                         .lse_local = View(near, {n_heads, n_rows})});
    Dense(c);
    for (const MassScope scope : {MassScope::kRemote, MassScope::kAll}) {
      backend_->SampleMass({.q = c.Heads(c.q),
                            .q_begin = geometry.q_begin,
                            .kv = c.pages.View(),
                            .scale = c.scale,
                            .local = local,
                            .scope = scope,
                            .rows = rows.data(),
                            .n_voting = n_rows,
                            .kv_head_end = geometry.n_kv_heads,
                            .lse_full = View(full, {n_heads, n_rows}),
                            .mass_sum = View(sum, {n_heads, c.n_keys}),
                            .mass_max = View(max, {n_heads, c.n_keys}),
                            .band_mass = View(band, {n_heads, n_bands})});
      for (int64_t h = 0; h < n_heads; ++h) {
        double keys = 0, bands = 0, local_mass = 0;
        for (int64_t key = 0; key < c.n_keys; ++key) {
          keys += sum[h * c.n_keys + key];
          EXPECT_LE(max[h * c.n_keys + key], sum[h * c.n_keys + key] + 1e-6f);
        }
        for (int64_t b = 0; b < n_bands; ++b) bands += band[h * n_bands + b];
        for (int64_t r = 0; r < n_rows; ++r) {
          local_mass += std::exp(double{near[h * n_rows + r]} - full[h * n_rows + r]);
          EXPECT_NEAR(full[h * n_rows + r], c.lse[rows[r] * n_heads + h], kTolerance);
        }
        const double n = static_cast<double>(n_rows);
        EXPECT_NEAR(keys, scope == MassScope::kAll ? n : n - local_mass, 1e-4);
        EXPECT_NEAR(bands, keys, 1e-4);
      }
    }
  }
}

}  // namespace
}  // namespace longhaul
