#include "server/planted_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/checked_math.h"
#include "kernels/base/fp8.h"

namespace longhaul {
namespace {

// Dimensions of a head: pairs that encode the position, one for the sink, one per query head of the
// group for its stripes; the rest is noise.
constexpr int kPositionPairs = 6;
constexpr int kSinkDim = 2 * kPositionPairs;
constexpr int kStripeDim = kSinkDim + 1;

// Logits (after the 1 / sqrt(D)). Background keys are near 0.
constexpr float kNoiseLogit = 0.4f;    // standard deviation
constexpr float kStripeMassOdds = 30;  // stripes hold this many times the background's mass
constexpr float kLocalLogit = 4.0f;
constexpr float kSinkLogit = 9.0f;
constexpr float kStreamingSinkOdds =
    100;  // the sink's mass in a streaming head, over the background's
constexpr int64_t kSinkKeys = 4;

// xorshift64*: much faster than std::mt19937, and good enough for noise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  float Uniform() { return static_cast<float>(Next() >> 40) * 0x1p-24f; }
  // Mean 0, standard deviation 1: a sum of four uniforms.
  float Normal() {
    const uint64_t bits = Next();
    const auto part = [bits](int i) { return static_cast<float>((bits >> (16 * i)) & 0xffff); };
    return (part(0) + part(1) + part(2) + part(3) - 2 * 65535.0f) * (1.7320508f / 65536.0f);
  }

 private:
  uint64_t state_;
};

// cos and sin of the position at falling frequencies: the product of two such codes is largest at
// distance 0 and falls over some hundred tokens.
void PositionCode(int64_t position, float gain, float* out) {
  double frequency = 0.02;
  for (int i = 0; i < kPositionPairs; ++i, frequency *= 0.55) {
    out[2 * i] = gain * static_cast<float>(std::cos(static_cast<double>(position) * frequency));
    out[2 * i + 1] = gain * static_cast<float>(std::sin(static_cast<double>(position) * frequency));
  }
}

}  // namespace

absl::StatusOr<PlantedAttention> PlantedAttention::Make(const PlantedShape& shape,
                                                        Backend& backend) {
  LH_CHECK(shape.head_dim >= 32 && shape.n_rows <= shape.n_keys);
  LH_CHECK(shape.n_heads / shape.n_kv_heads + kStripeDim <= shape.head_dim);
  PlantedAttention problem(shape);
  problem.layout_ = {.n_layers = 1,
                     .n_kv_heads = shape.n_kv_heads,
                     .head_dim = shape.head_dim,
                     .dtype = shape.kv_dtype};
  // As a busy server's page table: no page follows its predecessor.
  problem.pages_.resize(CeilDiv(shape.n_keys, kPageTokens));
  std::iota(problem.pages_.begin(), problem.pages_.end(), 0);
  Random random(7);
  for (size_t i = problem.pages_.size(); i > 1; --i) {
    std::swap(problem.pages_[i - 1], problem.pages_[random.Next() % i]);
  }
  const auto n_pages = static_cast<int64_t>(problem.pages_.size());
  LH_ASSIGN_OR_RETURN(problem.pool_, backend.Allocate(n_pages * problem.layout_.PageBytes()));
  LH_ASSIGN_OR_RETURN(problem.queries_, backend.Allocate(shape.n_rows * shape.n_heads *
                                                         shape.head_dim * int64_t{sizeof(float)}));
  problem.FillKeys();
  problem.FillQueries();
  return problem;
}

TensorView PlantedAttention::Queries(int64_t begin, int64_t end) const {
  const int64_t first = shape_.n_keys - shape_.n_rows;
  return TensorView(queries_.data(), DType::kF32, {shape_.n_rows, shape_.n_heads, shape_.head_dim})
      .Slice(begin - first, end - first);
}

KvView PlantedAttention::Kv(int64_t n_tokens) const {
  return layout_.View(pool_.data(), pages_.data(), n_tokens, /*layer=*/0);
}

void PlantedAttention::FillKeys() {
  const int64_t group = shape_.n_heads / shape_.n_kv_heads;
  const KvView kv = Kv(shape_.n_keys);
  const auto store = [&](std::byte* block, int64_t slot, const std::vector<float>& x) {
    std::byte* row = block + slot * kv.RowBytes();
    if (kv.dtype == DType::kF32) {
      std::copy(x.begin(), x.end(), reinterpret_cast<float*>(row));
    } else if (kv.dtype == DType::kBF16) {
      std::transform(x.begin(), x.end(), reinterpret_cast<BF16*>(row), ToBF16);
    } else {
      kv.RowScales(block)[slot] = RoundRowF8(x.data(), kv.head_dim, reinterpret_cast<F8E4M3*>(row));
    }
  };
  Random random(11);
  std::vector<float> key(shape_.head_dim), value(shape_.head_dim);
  for (int64_t j = 0; j < shape_.n_keys; ++j) {
    for (int64_t h = 0; h < shape_.n_kv_heads; ++h) {
      for (float& x : key) x = random.Normal();
      PositionCode(j, 1.0f, key.data());
      key[kSinkDim] = j < kSinkKeys ? 1.0f : 0.0f;
      for (int64_t g = 0; g < group; ++g) {
        key[kStripeDim + g] = random.Uniform() < shape_.density ? 1.0f : 0.0f;
      }
      for (float& x : value) x = random.Normal();
      store(kv.Keys(j / kPageTokens, h), j % kPageTokens, key);
      store(kv.Values(j / kPageTokens, h), j % kPageTokens, value);
    }
  }
}

void PlantedAttention::FillQueries() {
  const int64_t group = shape_.n_heads / shape_.n_kv_heads;
  const float unit = std::sqrt(static_cast<float>(shape_.head_dim));  // undoes the scale
  const int64_t n_noise = shape_.head_dim - kStripeDim - group;
  const float noise = kNoiseLogit / std::sqrt(static_cast<float>(std::max<int64_t>(n_noise, 1)));
  // density * exp(logit) = odds * (1 - density)
  const float stripe = std::log(
      kStripeMassOdds * static_cast<float>((1 - shape_.density) / std::max(shape_.density, 1e-6)));
  const float streaming_sink =
      std::log(kStreamingSinkOdds * static_cast<float>(shape_.n_keys) / kSinkKeys);
  Random random(13);
  float* q = static_cast<float*>(queries_.data());
  for (int64_t row = 0; row < shape_.n_rows; ++row) {
    const int64_t position = shape_.n_keys - shape_.n_rows + row;
    for (int64_t head = 0; head < shape_.n_heads; ++head, q += shape_.head_dim) {
      const bool streaming = head % group < shape_.n_streaming;
      for (int64_t d = 0; d < shape_.head_dim; ++d) q[d] = unit * noise * random.Normal();
      PositionCode(position, unit * kLocalLogit / kPositionPairs, q);
      q[kSinkDim] = unit * (streaming ? streaming_sink : kSinkLogit);
      for (int64_t g = 0; g < group; ++g) {
        q[kStripeDim + g] = g == head % group && !streaming ? unit * stripe : 0.0f;
      }
    }
  }
}

}  // namespace longhaul
