#include "tools/gpu/planted_problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tools/gpu/bench_memory.h"

namespace longhaul {
namespace {

constexpr float kPlantedScore = 12;
constexpr int64_t kSink = 64;
constexpr uint64_t kStripesOfHundred = 2;
constexpr int64_t kNoise = int64_t{1} << 22;  // numbers, used again and again

uint64_t Hash(uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  return x ^ x >> 32;
}

bool IsLookedAt(int64_t key, int64_t kv_head) {
  return key < kSink || Hash(static_cast<uint64_t>(key * 64 + kv_head)) % 100 < kStripesOfHundred;
}

// Adds a direction: `length` in that of the signs that `seed` gives.
void AddDirection(uint64_t seed, float length, int64_t head_dim, float* x) {
  const float step = length / std::sqrt(static_cast<float>(head_dim));
  for (int64_t d = 0; d < head_dim; ++d) {
    const uint64_t bits = Hash(seed + static_cast<uint64_t>(d / 64));
    x[d] += (bits >> (d % 64) & 1) != 0 ? step : -step;
  }
}

// The direction of what all rows look at, and that of a block of 64 rows.
constexpr uint64_t kShared = 1;
uint64_t OfBlock(int64_t token) { return static_cast<uint64_t>(1000 + token / kPageTokens * 10); }

// Of queries and keys alike, so that q k / sqrt(D) of a planted pair is kPlantedScore.
float PlantedLength(int64_t head_dim) {
  return std::sqrt(kPlantedScore * std::sqrt(static_cast<float>(head_dim)));
}

}  // namespace

PlantedProblem::PlantedProblem(Backend& backend, const ModelShape& shape, DType kv_dtype,
                               int64_t max_tokens, int64_t chunk_tokens)
    : backend_(backend),
      shape_(shape),
      layout_{.n_layers = 1,
              .n_kv_heads = shape.n_kv_heads,
              .head_dim = shape.head_dim,
              .dtype = kv_dtype},
      chunk_tokens_(chunk_tokens),
      noise_(kNoise + shape.head_dim) {
  MustBeOk(backend.CheckKvLayout(layout_));
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (float& x : noise_) x = normal(rng);
  const int64_t n_pages = max_tokens / kPageTokens;
  std::vector<int32_t> pages(n_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
  pages_ = UploadCopy(backend, pages);
  pool_ = Must(backend.Allocate(n_pages * layout_.PageBytes()));
  queries_ = Must(backend.Allocate(chunk_tokens * shape.n_heads * shape.head_dim *
                                   static_cast<int64_t>(sizeof(BF16))));
  for (int64_t begin = 0; begin < max_tokens; begin += chunk_tokens) WriteChunk(begin);
}

const float* PlantedProblem::Noise(int64_t at) const {
  return noise_.data() + Hash(static_cast<uint64_t>(at)) % kNoise;
}

KvView PlantedProblem::Kv(int64_t n) const {
  return layout_.View(pool_.data(), static_cast<const int32_t*>(pages_.data()), n, 0);
}

void PlantedProblem::WriteChunk(int64_t begin) {
  const int64_t n = chunk_tokens_;
  const int64_t head_dim = shape_.head_dim;
  const int64_t row = 2 * shape_.n_kv_heads * head_dim;  // keys, then values
  const float length = PlantedLength(head_dim);
  staged_.resize(n * row);
  std::vector<float> head(head_dim);
  for (int64_t i = 0; i < n * 2 * shape_.n_kv_heads; ++i) {
    const int64_t token = begin + i / (2 * shape_.n_kv_heads);
    const int64_t kv_head = i % (2 * shape_.n_kv_heads);  // from n_kv_heads on: of the values
    std::copy_n(Noise(2 * token * row + kv_head), head_dim, head.data());
    if (kv_head < shape_.n_kv_heads) {
      if (IsLookedAt(token, kv_head)) AddDirection(kShared, length, head_dim, head.data());
      AddDirection(OfBlock(token), length, head_dim, head.data());
    }
    std::transform(head.begin(), head.end(), staged_.begin() + i * head_dim, ToBF16);
  }
  const Buffer kv_rows = UploadCopy(backend_, staged_);
  std::vector<int64_t> positions(n);
  std::iota(positions.begin(), positions.end(), begin);
  const Buffer device_positions = UploadCopy(backend_, positions);
  std::vector<float> no_rotation(2 * n, 0.0f);  // cos 1, sin 0
  for (int64_t i = 0; i < n; ++i) no_rotation[2 * i] = 1.0f;
  const Buffer cos_sin = UploadCopy(backend_, no_rotation);
  const KvView kv = Kv(begin + n);
  const Buffer kvs_copy = UploadCopy(backend_, std::vector<KvView>{kv});
  const TensorView rows(kv_rows.data(), DType::kBF16, {n, row});
  backend_.RopeKvWrite(
      {.q = TensorView(queries_.data(), DType::kBF16, {n, shape_.n_heads, head_dim}),
       .k = rows.Columns(0, row / 2).SplitColumns(shape_.n_kv_heads, head_dim),
       .v = rows.Columns(row / 2, row).SplitColumns(shape_.n_kv_heads, head_dim),
       .cos_sin = TensorView(cos_sin.data(), DType::kF32, {n, 1, 2}),
       .positions = static_cast<const int64_t*>(device_positions.data()),
       .kvs = &kv,
       .kvs_copy = static_cast<const KvView*>(kvs_copy.data()),
       .rows_per_kv = n});
  backend_.Synchronize();  // the buffers go
}

TensorView PlantedProblem::Queries(int64_t end, int64_t n_rows) {
  const int64_t head_dim = shape_.head_dim;
  const float length = PlantedLength(head_dim);
  staged_.resize(n_rows * shape_.n_heads * head_dim);
  std::vector<float> head(head_dim);
  for (int64_t i = 0; i < n_rows * shape_.n_heads; ++i) {
    const int64_t token = end - n_rows + i / shape_.n_heads;
    std::copy_n(Noise(-1 - token * shape_.n_heads - i % shape_.n_heads), head_dim, head.data());
    AddDirection(kShared, length, head_dim, head.data());
    AddDirection(OfBlock(token), length, head_dim, head.data());
    std::transform(head.begin(), head.end(), staged_.begin() + i * head_dim, ToBF16);
  }
  backend_.Upload(staged_.data(), queries_.data(),
                  static_cast<int64_t>(staged_.size() * sizeof(BF16)));
  return TensorView(queries_.data(), DType::kBF16, {n_rows, shape_.n_heads, head_dim});
}

}  // namespace longhaul
