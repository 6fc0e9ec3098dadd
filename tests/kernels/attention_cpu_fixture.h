// Random attention problems on scattered pages for the tests of kernels/cpu attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "kernels/args.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/fp8.h"

namespace longhaul::testing_attention {

struct ProblemShape {
  int64_t n_tokens = 1;  // T
  int64_t q_begin = 0;
  int n_heads = 2;
  int n_kv_heads = 1;
  int head_dim = 64;
  DType dtype = DType::kF32;
  float q_gain = 1.0f;     // larger: sharper softmax
  bool any_query = false;  // see Problem::Query
};

inline std::string Name(const ProblemShape& s) {
  return fmt::format("T{} at {} H{}/{} D{} {} gain {}", s.n_tokens, s.q_begin, s.n_heads,
                     s.n_kv_heads, s.head_dim, DTypeName(s.dtype), s.q_gain);
}

// Queries, keys and values of one sequence. Everything in the pool that is not a token of the
// sequence is NaN, or in fp8 its largest number, so that reading it shows.
class Problem {
 public:
  Problem(const ProblemShape& shape, uint32_t seed) : shape_(shape), random_(seed) {
    const int64_t n_keys = shape.q_begin + shape.n_tokens;
    const int64_t n_pages = CeilDiv(n_keys, kPageTokens);
    layout_ = {.n_layers = 2,
               .n_kv_heads = shape.n_kv_heads,
               .head_dim = shape.head_dim,
               .dtype = shape.dtype};
    pages_.resize(2 * n_pages);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), random_);
    pages_.resize(n_pages);
    const uint32_t unwritten = shape.dtype == DType::kF8E4M3 ? 0xfefefefeu : 0x7fc00000u;
    pool_.assign(2 * n_pages * layout_.PageBytes() / 4, unwritten);
    kv_ = layout_.View(pool_.data(), pages_.data(), n_keys, /*layer=*/1);
    std::normal_distribution<float> normal;
    std::vector<float> key(shape.head_dim), value(shape.head_dim);
    for (int64_t j = 0; j < n_keys; ++j) {
      for (int64_t h = 0; h < shape.n_kv_heads; ++h) {
        for (int d = 0; d < shape.head_dim; ++d) {
          key[d] = normal(random_);
          value[d] = normal(random_);
        }
        Store(kv_.Keys(j / kPageTokens, h), j % kPageTokens, key);
        Store(kv_.Values(j / kPageTokens, h), j % kPageTokens, value);
      }
    }
    // Rows of q are strided, as columns of a fused projection are.
    q_row_ = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    q_.resize(shape.n_tokens * q_row_);
    for (float& x : q_) x = Query(shape.q_gain * normal(random_));
  }

  TensorView q() {
    return TensorView(q_.data(), DType::kF32, {shape_.n_tokens, q_row_})
        .Columns(0, int64_t{shape_.n_heads} * shape_.head_dim)
        .SplitColumns(shape_.n_heads, shape_.head_dim);
  }
  // x, but where keys may be multiplied in pairs a neighbour that scaling makes a bf16 number:
  // packing then rounds no query, so that scores agree to the last bits of f32.
  float Query(float x) const {
    if (shape_.dtype == DType::kF32 || shape_.any_query) return x;
    const float factor = scale() * 1.44269504088896341f;
    return ToF32(ToBF16(x * factor)) / factor;
  }
  const KvView& kv() const { return kv_; }
  const ProblemShape& shape() const { return shape_; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  int64_t n_keys() const { return kv_.n_tokens; }
  std::mt19937& random() { return random_; }

 private:
  void Store(std::byte* block, int64_t slot, const std::vector<float>& x) const {
    std::byte* row = block + slot * kv_.RowBytes();
    if (shape_.dtype == DType::kF8E4M3) {
      kv_.RowScales(block)[slot] =
          RoundRowF8(x.data(), shape_.head_dim, reinterpret_cast<F8E4M3*>(row));
      return;
    }
    for (int d = 0; d < shape_.head_dim; ++d) {
      if (shape_.dtype == DType::kF32) {
        reinterpret_cast<float*>(row)[d] = x[d];
      } else {
        reinterpret_cast<BF16*>(row)[d] = ToBF16(x[d]);
      }
    }
  }

  ProblemShape shape_;
  std::mt19937 random_;
  KvLayout layout_;
  KvView kv_;
  std::vector<int32_t> pages_;
  std::vector<uint32_t> pool_;
  std::vector<float> q_;
  int64_t q_row_ = 0;
};

// A dense f32 tensor that owns its memory, filled with a value that no op writes.
class Tensor {
 public:
  static constexpr float kUnwritten = -12345.0f;

  explicit Tensor(std::initializer_list<int64_t> shape) {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    data_.assign(n, kUnwritten);
    view_ = TensorView(data_.data(), DType::kF32, shape);
  }
  TensorView view() const { return view_; }
  const std::vector<float>& data() const { return data_; }

 private:
  std::vector<float> data_;
  TensorView view_;
};

// |a - b| <= tolerance * (1 + |b|); infinities must agree.
inline void ExpectClose(const Tensor& actual, const Tensor& expected, float tolerance) {
  ASSERT_EQ(actual.data().size(), expected.data().size());
  for (size_t i = 0; i < actual.data().size(); ++i) {
    const float a = actual.data()[i];
    const float b = expected.data()[i];
    if (a == b) continue;
    ASSERT_LE(std::fabs(a - b), tolerance * (1 + std::fabs(b)))
        << "element " << i << ": " << a << " instead of " << b;
  }
}

// |a - b| over |b|, both as root mean square over all elements.
inline double RelativeRms(const Tensor& a, const Tensor& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.data().size(); ++i) {
    const double difference = a.data()[i] - b.data()[i];
    error += difference * difference;
    size += double{b.data()[i]} * b.data()[i];
  }
  return std::sqrt(error / size);
}

// Plan arrays of n_heads heads; starts with every head streaming.
struct PlanStorage {
  PlanStorage(int64_t n_heads, int64_t max_stripes, int64_t max_bands)
      : kind(n_heads, static_cast<int32_t>(HeadKind::kStreaming)),
        n_stripes(n_heads, 0),
        stripes(n_heads * max_stripes, 0),
        n_bands(n_heads, 0),
        bands(n_heads * max_bands, 0),
        kept_pairs(n_heads, 0) {
    plan.max_stripes = max_stripes;
    plan.max_bands = max_bands;
    plan.kind = kind.data();
    plan.n_stripes = n_stripes.data();
    plan.stripes = stripes.data();
    plan.n_bands = n_bands.data();
    plan.bands = bands.data();
    plan.kept_pairs = kept_pairs.data();
  }
  PlanStorage(const PlanStorage&) = delete;

  std::vector<int32_t> kind, n_stripes, stripes, n_bands, bands;
  std::vector<int64_t> kept_pairs;
  SparsePlan plan;
};

// Sparse heads with random stripes and bands; head 0 streams and the last head is dense when there
// are at least three.
inline void FillRandomPlan(PlanStorage& storage, const Problem& problem, double stripe_share,
                           double band_share, std::mt19937& random) {
  SparsePlan& plan = storage.plan;
  std::uniform_real_distribution<double> uniform;
  const int n_heads = problem.shape().n_heads;
  for (int h = 0; h < n_heads; ++h) {
    storage.kind[h] = static_cast<int32_t>(HeadKind::kSparse);
    if (n_heads >= 3 && h == 0) storage.kind[h] = static_cast<int32_t>(HeadKind::kStreaming);
    if (n_heads >= 3 && h == n_heads - 1) storage.kind[h] = static_cast<int32_t>(HeadKind::kDense);
    int32_t n = 0;
    for (int64_t s = 0; s < problem.n_keys() && n < plan.max_stripes; s += plan.stripe_width) {
      if (uniform(random) < stripe_share) {
        plan.stripes[h * plan.max_stripes + n++] = static_cast<int32_t>(s);
      }
    }
    plan.n_stripes[h] = n;
    n = 0;
    for (int64_t b = plan.local.window / kBandWidth; b <= (problem.n_keys() - 1) / kBandWidth;
         ++b) {
      if (n < plan.max_bands && uniform(random) < band_share) {
        plan.bands[h * plan.max_bands + n++] = static_cast<int32_t>(b);
      }
    }
    plan.n_bands[h] = n;
  }
}

}  // namespace longhaul::testing_attention
