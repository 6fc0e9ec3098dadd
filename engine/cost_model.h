// CostModel: how long prefill slices and decode steps will take, learned from how long they took.
//
// A time is a sum of a few work counts (tokens, attended pairs, ...), each times a coefficient. The
// coefficients start from arithmetic on the model's shape at a guessed speed and are then fitted
// online: least squares of the relative error over the recent past, no coefficient below zero.
// Owned by the scheduler; engine thread only; no clock inside.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "engine/step_plan.h"

namespace longhaul {

// Fits y = sum of z[i] * x[i], z >= 0, where x[i] is already scaled so that z[i] is about 1.
// A ridge keeps what the samples do not determine at the common scale of everything seen.
class OnlineFit {
 public:
  static constexpr int kMaxTerms = 4;

  explicit OnlineFit(int n_terms);
  void Observe(std::span<const double> x, double y);
  double Predict(std::span<const double> x) const;
  bool observed() const { return observed_; }

 private:
  void Solve();

  int n_terms_;
  std::array<double, kMaxTerms> z_;
  std::array<std::array<double, kMaxTerms>, kMaxTerms> a_{};  // normal equations, decayed
  std::array<double, kMaxTerms> b_{};
  double log_scale_ = 0;  // of y over the prior's prediction
  bool observed_ = false;
};

// Work of a prefill, summed over its (epoch, layer) cells. Adds up: the work of a whole prompt is
// the sum of the work of its slices.
struct PrefillWork {
  double cells = 0;         // (epoch, layer) pairs
  double tokens = 0;        // per layer
  double dense_pairs = 0;   // (row, key) pairs of dense epochs, per layer
  double sparse_pairs = 0;  // kept pairs and sampled rows' pairs of sparse epochs, per layer

  PrefillWork& operator+=(const PrefillWork& other);
  PrefillWork operator*(double factor) const;
};

// What a sparse epoch keeps: keys per row as a line over the keys it could see. Per request,
// because it depends on the text and the policy.
class DensityModel {
 public:
  explicit DensityModel(const SparseOptions& options);
  double KeptKeys(double n_keys) const;
  void Observe(double n_keys, double kept_keys);

 private:
  double local_keys_;
  OnlineFit fit_;
};

class CostModel {
 public:
  explicit CostModel(const ModelShape& shape);

  // Work of query tokens [begin, end), all in one epoch, at one layer.
  static PrefillWork EpochWork(const SparseOptions& options, const DensityModel& density,
                               int64_t begin, int64_t end);

  // False until a slice was measured: predictions rest on the guess alone.
  bool learned() const { return prefill_.observed(); }
  double PrefillUs(const PrefillWork& work) const;
  void ObservePrefill(const PrefillWork& work, double elapsed_us);

  // One step of n_rows sequences that see n_keys keys altogether.
  double DecodeUs(int64_t n_rows, int64_t n_keys) const;
  void ObserveDecode(int64_t n_rows, int64_t n_keys, double elapsed_us);

 private:
  // x of the fits, in microseconds at the guessed speed.
  std::array<double, 4> PrefillTerms(const PrefillWork& work) const;
  std::array<double, 3> DecodeTerms(int64_t n_rows, int64_t n_keys) const;

  double token_us_;   // one token through one layer's projections
  double pair_us_;    // one (row, key) pair, all heads of one layer
  double weight_us_;  // reading all weights once
  double key_us_;     // one key, all layers
  OnlineFit prefill_{4};
  OnlineFit decode_{3};
};

}  // namespace longhaul
