// Embedding, norm, activation, rotation and page copies of every host backend against the
// reference.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/backend.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace longhaul {
namespace {

using testing::IsClose;
using testing::PagedKv;
using testing::Random;
using testing::View;

class TokenOpsTest : public ::testing::TestWithParam<BackendKind> {
 protected:
  std::unique_ptr<Backend> backend_ = CreateBackend(GetParam(), /*n_threads=*/3).value();
  std::unique_ptr<Backend> ref_ = CreateRefBackend();
};

INSTANTIATE_TEST_SUITE_P(Backends, TokenOpsTest, ::testing::Values(BackendKind::kCpu));

struct Shape {
  int64_t n_tokens, width;
};
const Shape kShapes[] = {{0, 8}, {1, 1}, {1, 3}, {3, 17}, {17, 113}, {113, 64}, {130, 1024}};

TEST_P(TokenOpsTest, Embed) {
  for (const auto& [n_tokens, width] : kShapes) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      constexpr int64_t kVocab = 37;
      Random random(n_tokens * 1000 + width);
      std::vector<uint32_t> storage(kVocab * width);
      for (uint32_t& x : storage) x = random.Next() & 0x3fff3fffu;  // finite in every dtype
      std::vector<int32_t> ids(n_tokens);
      for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(kVocab));
      if (n_tokens > 2) ids[0] = 0, ids[1] = kVocab - 1;
      std::vector<float> actual(n_tokens * width, -1), expected = actual;
      EmbedArgs args{.token_ids = ids.data(),
                     .table = TensorView(storage.data(), dtype, {kVocab, width}),
                     .out = View(actual, {n_tokens, width})};
      backend_->Embed(args);
      args.out = View(expected, {n_tokens, width});
      ref_->Embed(args);
      EXPECT_EQ(actual, expected) << n_tokens << " x " << width << " " << DTypeName(dtype);
    }
  }
}

TEST_P(TokenOpsTest, RmsNorm) {
  for (const auto& [n_tokens, width] : kShapes) {
    Random random(n_tokens + width);
    std::vector<float> x = random.Normals(n_tokens * width, 3), weight = random.Normals(width);
    std::vector<float> actual(x.size()), expected(x.size());
    RmsNormArgs args{.x = View(x, {n_tokens, width}),
                     .weight = View(weight, {width}),
                     .eps = 1e-5f,
                     .out = View(actual, {n_tokens, width})};
    backend_->RmsNorm(args);
    args.out = View(expected, {n_tokens, width});
    ref_->RmsNorm(args);
    EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 4e-6)) << n_tokens << " x " << width;
    args.out = args.x;  // in place
    backend_->RmsNorm(args);
    EXPECT_EQ(x, actual);
  }
}

// Every head of a row by itself, the rows being columns of a wider matrix.
TEST_P(TokenOpsTest, RmsNormOfHeads) {
  constexpr int64_t kTokens = 5, kHeads = 3, kDim = 18, kColumns = 71;
  Random random(7);
  std::vector<float> actual = random.Normals(kTokens * kColumns, 3), expected = actual;
  std::vector<float> weight = random.Normals(kDim);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const TensorView head(expected.data() + t * kColumns + 2 + h * kDim, DType::kF32, {1, kDim});
      ref_->RmsNorm({.x = head, .weight = View(weight, {kDim}), .out = head});
    }
  }
  const TensorView heads =
      View(actual, {kTokens, kColumns}).Columns(2, 2 + kHeads * kDim).SplitColumns(kHeads, kDim);
  std::vector<float> by_ref = actual;
  backend_->RmsNorm({.x = heads, .weight = View(weight, {kDim}), .out = heads});
  EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 4e-6));
  const TensorView ref_heads =
      View(by_ref, {kTokens, kColumns}).Columns(2, 2 + kHeads * kDim).SplitColumns(kHeads, kDim);
  ref_->RmsNorm({.x = ref_heads, .weight = View(weight, {kDim}), .out = ref_heads});
  EXPECT_EQ(by_ref, expected);
}

TEST_P(TokenOpsTest, RmsNormOfZerosIsZero) {
  std::vector<float> x(33, 0.0f), weight(33, 1.0f);
  backend_->RmsNorm({.x = View(x, {1, 33}), .weight = View(weight, {33}), .out = View(x, {1, 33})});
  EXPECT_EQ(x, std::vector<float>(33, 0.0f));
}

TEST_P(TokenOpsTest, SwiGlu) {
  for (const auto& [n_tokens, width] : kShapes) {
    Random random(n_tokens + width);
    std::vector<float> gate_up = random.Normals(n_tokens * width * 2, 4);
    std::vector<float> actual(n_tokens * width), expected(n_tokens * width);
    SwiGluArgs args{.gate_up = View(gate_up, {n_tokens, 2 * width}),
                    .out = View(actual, {n_tokens, width})};
    backend_->SwiGlu(args);
    args.out = View(expected, {n_tokens, width});
    ref_->SwiGlu(args);
    EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 2e-5)) << n_tokens << " x " << width;
  }
}

TEST_P(TokenOpsTest, SwiGluOfExtremes) {
  const std::vector<float> gates = {-1e30f, -1000,  -104, -89,  -88,  -1e-30f,
                                    0,      1e-30f, 88,   1000, 1e30f};
  const int64_t n = static_cast<int64_t>(gates.size());
  std::vector<float> gate_up(2 * n, 1.0f), actual(n), expected(n);
  std::copy(gates.begin(), gates.end(), gate_up.begin());
  backend_->SwiGlu({.gate_up = View(gate_up, {1, 2 * n}), .out = View(actual, {1, n})});
  ref_->SwiGlu({.gate_up = View(gate_up, {1, 2 * n}), .out = View(expected, {1, n})});
  for (int64_t i = 0; i < n; ++i) {
    if (i == 0) continue;  // beyond any activation: only finiteness is asked for, below
    EXPECT_NEAR(actual[i], expected[i], std::abs(expected[i]) * 1e-6 + 1e-30) << gates[i];
  }
  EXPECT_NEAR(actual[0], 0, 1e-6);
}

TEST_P(TokenOpsTest, RopeTableIsExactBeyondAMillionTokens) {
  const std::vector<int64_t> positions = {0, 1, 65535, 1048575, 1048576, 16000000};
  const std::vector<double> inv_freq = {1.0, 0.31622776601683794, 1e-3, 5e-7};
  std::vector<float> cos_sin(positions.size() * inv_freq.size() * 2);
  backend_->RopeTable({.positions = positions.data(),
                       .inv_freq = inv_freq.data(),
                       .cos_sin = View(cos_sin, {6, 4, 2})});
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < inv_freq.size(); ++i) {
      const long double angle = static_cast<long double>(positions[t]) * inv_freq[i];
      EXPECT_NEAR(cos_sin[(t * 4 + i) * 2], std::cos(angle), 1e-7);
      EXPECT_NEAR(cos_sin[(t * 4 + i) * 2 + 1], std::sin(angle), 1e-7);
    }
  }
}

TEST_P(TokenOpsTest, RopeTableScales) {
  const std::vector<int64_t> positions = {3};
  const std::vector<double> inv_freq = {0.5};
  for (Backend* backend : {backend_.get(), ref_.get()}) {
    std::vector<float> cos_sin(2);
    backend->RopeTable({.positions = positions.data(),
                        .inv_freq = inv_freq.data(),
                        .scale = 1.25,
                        .cos_sin = View(cos_sin, {1, 1, 2})});
    EXPECT_FLOAT_EQ(cos_sin[0], static_cast<float>(1.25 * std::cos(1.5)));
    EXPECT_FLOAT_EQ(cos_sin[1], static_cast<float>(1.25 * std::sin(1.5)));
  }
}

struct RopeCase {
  int64_t n_tokens, n_heads;
  int32_t n_kv_heads, head_dim;
  int64_t first_position;
  DType dtype;
  int64_t n_pairs = 0;  // 0: all of a head
};

// q, k and v are column ranges of one fused projection, as in the model.
TEST_P(TokenOpsTest, RopeKvWrite) {
  for (const RopeCase& c :
       {RopeCase{1, 1, 1, 2, 0, DType::kF32}, RopeCase{3, 4, 2, 64, 62, DType::kBF16},
        RopeCase{17, 8, 1, 80, 100, DType::kF32}, RopeCase{113, 4, 4, 96, 5, DType::kBF16},
        RopeCase{70, 6, 3, 128, 1, DType::kF32}, RopeCase{2, 1, 1, 34, 63, DType::kBF16},
        RopeCase{5, 4, 2, 128, 60, DType::kF32, 32}, RopeCase{3, 2, 1, 20, 4, DType::kF32, 3},
        RopeCase{70, 4, 2, 64, 1, DType::kF8E4M3}}) {
    const int64_t n_pairs = c.n_pairs == 0 ? c.head_dim / 2 : c.n_pairs;
    const int64_t n_columns = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
    const int64_t k_begin = c.n_heads * c.head_dim, v_begin = k_begin + c.n_kv_heads * c.head_dim;
    Random random(c.n_tokens);
    const std::vector<float> input = random.Normals(c.n_tokens * n_columns);
    std::vector<double> inv_freq(n_pairs);
    for (int64_t i = 0; i < n_pairs; ++i) inv_freq[i] = std::pow(10000.0, -1.0 * i / n_pairs);
    std::vector<int64_t> positions(c.n_tokens);
    std::iota(positions.begin(), positions.end(), c.first_position);
    std::vector<float> cos_sin(c.n_tokens * n_pairs * 2);
    const TensorView table = View(cos_sin, {c.n_tokens, n_pairs, 2});
    ref_->RopeTable({.positions = positions.data(), .inv_freq = inv_freq.data(), .cos_sin = table});

    const auto run = [&](Backend& backend, std::vector<float>& qkv, PagedKv& pages) {
      const TensorView fused = View(qkv, {c.n_tokens, n_columns});
      const KvView kv = pages.View();
      backend.RopeKvWrite(
          {.q = fused.Columns(0, k_begin).SplitColumns(c.n_heads, c.head_dim),
           .k = fused.Columns(k_begin, v_begin).SplitColumns(c.n_kv_heads, c.head_dim),
           .v = fused.Columns(v_begin, n_columns).SplitColumns(c.n_kv_heads, c.head_dim),
           .cos_sin = table,
           .positions = positions.data(),
           .kvs = &kv,
           .rows_per_kv = c.n_tokens});
    };
    const int64_t n_kv_tokens = c.first_position + c.n_tokens;
    PagedKv actual_pages(c.n_kv_heads, c.head_dim, n_kv_tokens, c.dtype);
    PagedKv expected_pages(c.n_kv_heads, c.head_dim, n_kv_tokens, c.dtype);
    std::vector<float> actual = input, expected = input;
    run(*backend_, actual, actual_pages);
    run(*ref_, expected, expected_pages);
    EXPECT_TRUE(IsClose(actual, expected, DType::kF32, 1e-6));
    // By definition, of the last element that is rotated and of the next one.
    const double angle = static_cast<double>(c.first_position) * inv_freq[n_pairs - 1];
    EXPECT_NEAR(expected[2 * n_pairs - 1],
                input[2 * n_pairs - 1] * std::cos(angle) + input[n_pairs - 1] * std::sin(angle),
                1e-5);
    if (2 * n_pairs < c.head_dim) {
      EXPECT_EQ(expected[2 * n_pairs], input[2 * n_pairs]);
    }
    for (int64_t t = 0; t < c.n_tokens; ++t) {
      for (int64_t h = 0; h < c.n_kv_heads; ++h) {
        const int64_t position = positions[t];
        const auto k = expected.begin() + t * n_columns + k_begin + h * c.head_dim;
        EXPECT_TRUE(IsClose(actual_pages.Key(1, position, h), {k, k + c.head_dim}, c.dtype, 1e-6));
        EXPECT_EQ(actual_pages.Value(1, position, h), expected_pages.Value(1, position, h));
      }
    }
    // Nothing outside the written rows changed: not the other layer, no earlier token.
    EXPECT_TRUE(PagedKv::IsUnwritten(actual_pages.Key(0, n_kv_tokens - 1, 0)[0]));
    if (c.first_position > 0) {
      EXPECT_TRUE(PagedKv::IsUnwritten(actual_pages.Key(1, c.first_position - 1, 0)[0]));
    }
  }
}

TEST_P(TokenOpsTest, RopeKvWriteOfDecodeRows) {
  constexpr int64_t kRows = 3;
  PagedKv a(2, 64, 65, DType::kF32, 1), b(2, 64, 10, DType::kF32, 2), c(2, 64, 128, DType::kF32, 3);
  const KvView kvs[kRows] = {a.View(), b.View(), c.View()};
  const int64_t positions[kRows] = {64, 9, 127};
  std::vector<float> cos_sin(kRows * 64);
  for (size_t i = 0; i < cos_sin.size(); i += 2) cos_sin[i] = 0, cos_sin[i + 1] = 1;  // 90 degrees
  Random random(9);
  std::vector<float> q = random.Normals(kRows * 4 * 64), k = random.Normals(kRows * 2 * 64);
  std::vector<float> v = random.Normals(kRows * 2 * 64);
  const std::vector<float> q_in = q, k_in = k;
  backend_->RopeKvWrite({.q = View(q, {kRows, 4, 64}),
                         .k = View(k, {kRows, 2, 64}),
                         .v = View(v, {kRows, 2, 64}),
                         .cos_sin = View(cos_sin, {kRows, 32, 2}),
                         .positions = positions,
                         .kvs = kvs,
                         .rows_per_kv = 1});
  EXPECT_FLOAT_EQ(q[0], -q_in[32]);  // (a, b) -> (-b, a)
  EXPECT_FLOAT_EQ(q[32], q_in[0]);
  const PagedKv* pages[kRows] = {&a, &b, &c};
  for (int64_t r = 0; r < kRows; ++r) {
    const std::vector<float> key = pages[r]->Key(1, positions[r], 1);
    EXPECT_FLOAT_EQ(key[0], -k_in[(r * 2 + 1) * 64 + 32]);
    EXPECT_EQ(pages[r]->Value(1, positions[r], 1)[5], v[(r * 2 + 1) * 64 + 5]);
  }
}

TEST_P(TokenOpsTest, CopyPages) {
  constexpr int64_t kPageBytes = 4096;
  std::vector<std::byte> pool(8 * kPageBytes);
  Random random(1);
  for (std::byte& x : pool) x = static_cast<std::byte>(random.Next());
  std::vector<std::byte> expected = pool;
  const int32_t src[] = {0, 7, 3}, dst[] = {5, 1, 3};
  std::memcpy(&expected[5 * kPageBytes], &pool[0], kPageBytes);
  std::memcpy(&expected[1 * kPageBytes], &pool[7 * kPageBytes], kPageBytes);
  backend_->CopyPages(
      {.pool = pool.data(), .page_bytes = kPageBytes, .src = src, .dst = dst, .n = 3});
  EXPECT_EQ(pool, expected);
  backend_->CopyPages({.pool = pool.data(), .page_bytes = kPageBytes, .src = src, .dst = dst});
  EXPECT_EQ(pool, expected);
}

}  // namespace
}  // namespace longhaul
