#include "engine/cost_model.h"

#include <algorithm>
#include <cmath>

#include "engine/model/sparse_attention.h"

namespace longhaul {
namespace {

// The guess before anything was measured: a slow machine, so that the first slice is too short
// rather than too long.
constexpr double kFlopsPerUs = 10e3;
constexpr double kBytesPerUs = 5e3;
constexpr double kCallUs = 50;  // fixed cost of one layer call

// Rows whose pairs cost as much as the keys of an exact pass, at a guess.
constexpr double kRowsPerPass = 64;

// Of the logarithms: how uncertain the speed of the machine is, each coefficient besides that, and
// a sample; one that is further off than kFar counts less, however far it is.
constexpr double kCommonVariance = 9.0;
constexpr double kOwnVariance = 2.0;
constexpr double kNoiseVariance = 0.0064;
constexpr double kFar = 0.25;

// Prior of the kept remote keys, and how uncertain it is; the noise is that of one layer's sample.
constexpr double kRemoteShare = 0.02;
constexpr double kPaperShare = 0.10;
constexpr double kShareDeviation = 0.03;
constexpr double kKeysPerRowDeviation = 0.5;  // of the local keys
constexpr double kDensityNoise = 0.3;

double CausalPairs(double begin, double end) { return 0.5 * (end - begin) * (begin + end + 1); }

// Weights of the fused projection of q, k and v.
double ProjectionParameters(const ModelShape& shape) {
  return static_cast<double>(shape.hidden_size) * (shape.n_heads + 2.0 * shape.n_kv_heads) *
         shape.head_dim;
}

// All weights of a layer; those of attention at least.
double LayerParameters(const ModelShape& shape) {
  const double width = shape.hidden_size;
  const double embeddings = 2.0 * shape.vocab_size * width;  // in and out, where they are not one
  const double output = width * shape.n_heads * shape.head_dim;
  return std::max(
      (static_cast<double>(shape.n_parameters) - embeddings) / std::max(1, shape.n_layers),
      ProjectionParameters(shape) + output);
}

}  // namespace

OnlineFit::OnlineFit(int n_terms) : n_terms_(n_terms) { z_.fill(1.0); }

double OnlineFit::Predict(std::span<const double> x) const {
  double y = 0;
  for (int i = 0; i < n_terms_; ++i) y += z_[i] * x[i];
  return y;
}

void OnlineFit::Observe(std::span<const double> x, double y) {
  if (!(Predict(x) > 0) || !(y > 0) || !std::isfinite(y)) return;
  int kind = 0;
  for (int i = 1; i < n_terms_; ++i) {
    if (z_[i] * x[i] > z_[kind] * x[kind]) kind = i;
  }
  Sample& sample = samples_[kind][n_of_kind_[kind]++ % kSamplesOfKind];
  std::copy_n(x.begin(), n_terms_, sample.x.begin());
  sample.log_y = std::log(y);
  ++n_samples_;
  // Later ones begin next to the solution.
  const int n_rounds = n_samples_ < 2 * kSamplesOfKind ? 20 : 2;
  for (int round = 0; round < n_rounds; ++round) Improve();
}

// A Gauss-Newton step towards the likeliest log z: of the prior and of all samples.
void OnlineFit::Improve() {
  Matrix curvature{};
  Vector descent{};
  const double common =
      kCommonVariance / (kOwnVariance * (kOwnVariance + n_terms_ * kCommonVariance));
  for (int i = 0; i < n_terms_; ++i) {
    for (int j = 0; j < n_terms_; ++j) {
      curvature[i][j] = (i == j ? 1 / kOwnVariance : 0) - common;
      descent[i] -= curvature[i][j] * log_z_[j];
    }
  }
  for (int kind = 0; kind < n_terms_; ++kind) {
    const int64_t n = std::min<int64_t>(n_of_kind_[kind], kSamplesOfKind);
    for (int64_t i = 0; i < n; ++i) AddSample(samples_[kind][i], curvature, descent);
  }
  const Vector step = Solve(curvature, descent);
  for (int i = 0; i < n_terms_; ++i) {
    log_z_[i] += std::clamp(step[i], -2.0, 2.0);  // further off the curvature is another one
    z_[i] = std::exp(log_z_[i]);
  }
}

void OnlineFit::AddSample(const Sample& sample, Matrix& curvature, Vector& descent) const {
  const double y = Predict(sample.x);
  const double error = sample.log_y - std::log(y);
  const double weight = std::min(1.0, kFar / std::abs(error)) / kNoiseVariance;
  Vector slope{};  // of log y in log z: the share of each term
  for (int i = 0; i < n_terms_; ++i) slope[i] = z_[i] * sample.x[i] / y;
  for (int i = 0; i < n_terms_; ++i) {
    descent[i] += weight * slope[i] * error;
    for (int j = 0; j < n_terms_; ++j) curvature[i][j] += weight * slope[i] * slope[j];
  }
}

// Elimination; the matrix is positive definite.
OnlineFit::Vector OnlineFit::Solve(Matrix matrix, Vector right) const {
  for (int i = 0; i < n_terms_; ++i) {
    for (int row = i + 1; row < n_terms_; ++row) {
      const double factor = matrix[row][i] / matrix[i][i];
      for (int j = i; j < n_terms_; ++j) matrix[row][j] -= factor * matrix[i][j];
      right[row] -= factor * right[i];
    }
  }
  Vector solution{};
  for (int i = n_terms_ - 1; i >= 0; --i) {
    double sum = right[i];
    for (int j = i + 1; j < n_terms_; ++j) sum -= matrix[i][j] * solution[j];
    solution[i] = sum / matrix[i][i];
  }
  return solution;
}

PrefillWork& PrefillWork::operator+=(const PrefillWork& other) {
  cells += other.cells;
  tokens += other.tokens;
  dense_pairs += other.dense_pairs;
  dense_keys += other.dense_keys;
  kept_pairs += other.kept_pairs;
  sampled_pairs += other.sampled_pairs;
  return *this;
}

PrefillWork PrefillWork::operator*(double factor) const {
  return {.cells = cells * factor,
          .tokens = tokens * factor,
          .dense_pairs = dense_pairs * factor,
          .dense_keys = dense_keys * factor,
          .kept_pairs = kept_pairs * factor,
          .sampled_pairs = sampled_pairs * factor};
}

DensityModel::DensityModel(const SparseOptions& options) {
  const bool paper = options.mode == SparseMode::kPaper;  // its window is a share, too
  local_keys_ = paper ? 1.0 : std::max(1.0, static_cast<double>(options.sink + options.window));
  if (options.mode == SparseMode::kVerticalSlash) {
    local_keys_ = std::max(1.0, static_cast<double>(options.columns + options.diagonals));
  }
  share_ = paper ? kPaperShare : options.mode == SparseMode::kStreaming ? 0.0 : kRemoteShare;
  nn_ = 1.0 / std::pow(kKeysPerRowDeviation * local_keys_, 2);
  rr_ = 1.0 / std::pow(kShareDeviation, 2);
  ry_ = rr_ * share_;
}

void DensityModel::StartFrom(const DensityModel& other) {
  keys_per_row_ = other.keys_per_row_;
  share_ = other.share_;
  ny_ = nn_ * keys_per_row_;
  ry_ = rr_ * share_;
}

DensityModel::Rows DensityModel::CountRows(int64_t begin, int64_t end) const {
  const auto first = static_cast<double>(begin);
  const auto last = static_cast<double>(end);
  // Row i sees i + 1 keys.
  const double all_local = std::clamp(local_keys_, first, last);
  Rows rows;
  rows.n = last - all_local;
  rows.local = CausalPairs(first, all_local) + rows.n * local_keys_;
  rows.remote = CausalPairs(first, last) - rows.local;
  return rows;
}

double DensityModel::KeptPairs(int64_t begin, int64_t end) const {
  const Rows rows = CountRows(begin, end);
  return rows.local + std::min(rows.remote, keys_per_row_ * rows.n + share_ * rows.remote);
}

void DensityModel::Observe(int64_t begin, int64_t end, int32_t n_layers, double kept_pairs) {
  const Rows rows = CountRows(begin, end);
  if (!(rows.n > 0) || !(rows.remote > 0) || !std::isfinite(kept_pairs)) return;
  const double kept_remote = std::clamp(kept_pairs - rows.local, 0.0, rows.remote);
  // Layers differ by far more than a measurement errs. Weights that depend on the place alone, not
  // on what was kept, leave their mean right.
  const double noise = kDensityNoise * (rows.n * local_keys_ + kRemoteShare * rows.remote);
  const double weight = n_layers / (noise * noise);
  nn_ += weight * rows.n * rows.n;
  nr_ += weight * rows.n * rows.remote;
  rr_ += weight * rows.remote * rows.remote;
  ny_ += weight * rows.n * kept_remote;
  ry_ += weight * rows.remote * kept_remote;
  // Both at least zero.
  const double determinant = nn_ * rr_ - nr_ * nr_;
  keys_per_row_ = (ny_ * rr_ - ry_ * nr_) / determinant;
  share_ = (ry_ * nn_ - ny_ * nr_) / determinant;
  if (keys_per_row_ < 0) {
    keys_per_row_ = 0;
    share_ = ry_ / rr_;
  } else if (share_ < 0) {
    keys_per_row_ = ny_ / nn_;
    share_ = 0;
  }
}

CostModel::CostModel(const ModelShape& shape) {
  const double n_layers = std::max(1, shape.n_layers);
  const double head_width = static_cast<double>(shape.n_heads) * shape.head_dim;
  const double kv_width = 2.0 * shape.n_kv_heads * shape.head_dim;
  const double layer_parameters = LayerParameters(shape);
  cell_us_ = kCallUs + 4.0 * layer_parameters / kBytesPerUs;
  token_us_ = std::max(1.0, 2.0 * layer_parameters) / kFlopsPerUs;
  pair_us_ = std::max(1.0, 4.0 * head_width) / kFlopsPerUs;
  weight_us_ = kCallUs + 4.0 * static_cast<double>(shape.n_parameters) / kBytesPerUs;
  key_us_ = std::max(1.0, 4.0 * kv_width * n_layers) / kBytesPerUs;
}

PrefillWork CostModel::EpochWork(const SparseOptions& options, const DensityModel& density,
                                 int64_t begin, int64_t end, int64_t prompt_tokens) {
  PrefillWork work{.cells = 1, .tokens = static_cast<double>(end - begin)};
  const EpochAttention epoch = PlanEpochAttention(options, begin, end, prompt_tokens);
  const int64_t exact_begin = begin + epoch.n_policy_rows;
  if (exact_begin > begin) {
    work.kept_pairs = density.KeptPairs(begin, exact_begin);
    work.sampled_pairs = static_cast<double>(epoch.policy.rows.size()) * exact_begin;
  }
  if (end > exact_begin) {
    work.dense_pairs = CausalPairs(static_cast<double>(exact_begin), static_cast<double>(end));
    work.dense_keys = static_cast<double>(end);
  }
  return work;
}

PrefillWork CostModel::LastLayerWork(const ModelShape& shape, int64_t begin, int64_t end,
                                     int64_t prompt_tokens) {
  const double share = ProjectionParameters(shape) / std::max(1.0, LayerParameters(shape));
  PrefillWork work{.cells = share, .tokens = share * static_cast<double>(end - begin)};
  if (end < prompt_tokens) return work;
  work.cells = 1;
  work.dense_pairs = work.dense_keys = static_cast<double>(end);
  return work;
}

std::array<double, 6> CostModel::PrefillTerms(const PrefillWork& work) const {
  return {cell_us_ * work.cells,          token_us_ * work.tokens,
          pair_us_ * work.dense_pairs,    kRowsPerPass * pair_us_ * work.dense_keys,
          2 * pair_us_ * work.kept_pairs, pair_us_ * work.sampled_pairs};
}

double CostModel::PrefillUs(const PrefillWork& work) const {
  return prefill_.Predict(PrefillTerms(work));
}

void CostModel::ObservePrefill(const PrefillWork& work, double elapsed_us) {
  prefill_.Observe(PrefillTerms(work), elapsed_us);
}

std::array<double, 3> CostModel::DecodeTerms(int64_t n_rows, int64_t n_keys) const {
  return {weight_us_, 0.1 * weight_us_ * static_cast<double>(n_rows),
          key_us_ * static_cast<double>(n_keys)};
}

double CostModel::DecodeUs(int64_t n_rows, int64_t n_keys) const {
  return n_rows == 0 ? 0 : decode_.Predict(DecodeTerms(n_rows, n_keys));
}

void CostModel::ObserveDecode(int64_t n_rows, int64_t n_keys, double elapsed_us) {
  if (n_rows > 0) decode_.Observe(DecodeTerms(n_rows, n_keys), elapsed_us);
}

}  // namespace longhaul
