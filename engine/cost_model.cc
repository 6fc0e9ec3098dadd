#include "engine/cost_model.h"

#include <algorithm>
#include <cmath>

#include "engine/sparse_policy.h"

namespace longhaul {
namespace {

// The guess before anything was measured: a slow machine, so that the first slice is too short
// rather than too long.
constexpr double kFlopsPerUs = 10e3;
constexpr double kBytesPerUs = 5e3;
constexpr double kCellUs = 50;  // fixed cost of one layer call

// Samples count with 0.97^age: about the last 30 slices.
constexpr double kDecay = 0.97;
// Weight of the ridge against one sample.
constexpr double kRidge = 0.02;

}  // namespace

OnlineFit::OnlineFit(int n_terms) : n_terms_(n_terms) { z_.fill(1.0); }

double OnlineFit::Predict(std::span<const double> x) const {
  double y = 0;
  for (int i = 0; i < n_terms_; ++i) y += z_[i] * x[i];
  return y;
}

void OnlineFit::Observe(std::span<const double> x, double y) {
  double prior = 0;
  for (int i = 0; i < n_terms_; ++i) prior += x[i];
  if (!(prior > 0) || !(y > 0) || !std::isfinite(y)) return;
  const double log_ratio = std::log(y / prior);
  log_scale_ = observed_ ? 0.9 * log_scale_ + 0.1 * log_ratio : log_ratio;
  observed_ = true;
  // Dividing by y makes the residual relative: a short slice counts as much as a long one.
  for (int i = 0; i < n_terms_; ++i) {
    for (int j = 0; j < n_terms_; ++j) {
      a_[i][j] = kDecay * a_[i][j] + (x[i] / y) * (x[j] / y);
    }
    b_[i] = kDecay * b_[i] + x[i] / y;
  }
  Solve();
}

// Coordinate descent: non-negative least squares of at most four unknowns, to far below noise.
// The unknowns are divided by the common scale, so that the ridge acts alike on every machine.
void OnlineFit::Solve() {
  const double scale = std::exp(log_scale_);
  std::array<double, kMaxTerms> u;
  for (int i = 0; i < n_terms_; ++i) u[i] = z_[i] / scale;
  for (int sweep = 0; sweep < 40; ++sweep) {
    for (int i = 0; i < n_terms_; ++i) {
      double gradient = b_[i] * scale + kRidge;
      for (int j = 0; j < n_terms_; ++j) {
        if (j != i) gradient -= a_[i][j] * scale * scale * u[j];
      }
      u[i] = std::max(0.0, gradient / (a_[i][i] * scale * scale + kRidge));
    }
  }
  for (int i = 0; i < n_terms_; ++i) z_[i] = u[i] * scale;
}

PrefillWork& PrefillWork::operator+=(const PrefillWork& other) {
  cells += other.cells;
  tokens += other.tokens;
  dense_pairs += other.dense_pairs;
  sparse_pairs += other.sparse_pairs;
  return *this;
}

PrefillWork PrefillWork::operator*(double factor) const {
  return {.cells = cells * factor,
          .tokens = tokens * factor,
          .dense_pairs = dense_pairs * factor,
          .sparse_pairs = sparse_pairs * factor};
}

DensityModel::DensityModel(const SparseOptions& options)
    : local_keys_(static_cast<double>(options.sink + options.window)), fit_(2) {}

// Prior: the local keys and 5 % of all.
double DensityModel::KeptKeys(double n_keys) const {
  const std::array<double, 2> x = {local_keys_, 0.05 * n_keys};
  return std::min(n_keys, fit_.Predict(x));
}

void DensityModel::Observe(double n_keys, double kept_keys) {
  const std::array<double, 2> x = {local_keys_, 0.05 * n_keys};
  fit_.Observe(x, kept_keys);
}

CostModel::CostModel(const ModelShape& shape) {
  const double n_layers = std::max(1, shape.n_layers);
  const double layer_parameters = static_cast<double>(shape.n_parameters) / n_layers;
  const double head_width = static_cast<double>(shape.n_heads) * shape.head_dim;
  const double kv_width = 2.0 * shape.n_kv_heads * shape.head_dim;
  token_us_ = std::max(1.0, 2.0 * layer_parameters) / kFlopsPerUs;
  pair_us_ = std::max(1.0, 4.0 * head_width) / kFlopsPerUs;
  weight_us_ = std::max(1.0, 4.0 * static_cast<double>(shape.n_parameters)) / kBytesPerUs;
  key_us_ = std::max(1.0, 4.0 * kv_width * n_layers) / kBytesPerUs;
}

PrefillWork CostModel::EpochWork(const SparseOptions& options, const DensityModel& density,
                                 int64_t begin, int64_t end) {
  const double n_rows = static_cast<double>(end - begin);
  const double mean_keys = 0.5 * static_cast<double>(begin + end + 1);
  PrefillWork work{.cells = 1, .tokens = n_rows};
  const EpochPolicy policy = ResolveEpoch(options, begin, end - begin);
  if (policy.dense) {
    work.dense_pairs = n_rows * mean_keys;
    return work;
  }
  // Sampled rows pass over the keys twice: log-sum-exp, then mass.
  const double sampled_pairs = 2.0 * static_cast<double>(policy.rows.size() * end);
  work.sparse_pairs = n_rows * density.KeptKeys(mean_keys) + sampled_pairs;
  return work;
}

std::array<double, 4> CostModel::PrefillTerms(const PrefillWork& work) const {
  return {kCellUs * work.cells, token_us_ * work.tokens, pair_us_ * work.dense_pairs,
          pair_us_ * work.sparse_pairs};
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
