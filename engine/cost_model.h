// CostModel: how long prefill slices and decode steps will take, learned from how long they took.
//
// A time is a sum of a few work counts (tokens, attended pairs, ...), each times a coefficient. The
// coefficients start from arithmetic on the model's shape at a guessed speed and follow every
// measurement: those of the start-up (engine/self_measure.h) and those of each step.
// Owned by the scheduler; engine thread only; no clock inside.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "engine/step_plan.h"

namespace longhaul {

// Learns z of y = sum of z[i] * x[i], z > 0, where x[i] is already scaled so that z[i] is about 1.
//
// Fits log y over the last samples of each kind, the kind being the term with the largest share: so
// a hundred short prompts do not push out what is known of long ones. (Least squares with
// forgetting lost it; a Kalman filter on log z was too sure of a first sample whose shares it had
// guessed wrong.) A single wild sample weighs little. What the samples do not determine stays near
// the common scale of the rest, the speed of the machine.
class OnlineFit {
 public:
  static constexpr int kMaxTerms = 6;

  explicit OnlineFit(int n_terms);
  void Observe(std::span<const double> x, double y);
  double Predict(std::span<const double> x) const;
  bool observed() const { return n_samples_ > 0; }

 private:
  static constexpr int kSamplesOfKind = 12;
  using Vector = std::array<double, kMaxTerms>;
  using Matrix = std::array<Vector, kMaxTerms>;
  struct Sample {
    Vector x{};
    double log_y = 0;
  };

  void Improve();
  void AddSample(const Sample& sample, Matrix& curvature, Vector& descent) const;
  Vector Solve(Matrix matrix, Vector right) const;

  int n_terms_;
  Vector log_z_{};
  Vector z_{};
  std::array<std::array<Sample, kSamplesOfKind>, kMaxTerms> samples_{};
  std::array<int64_t, kMaxTerms> n_of_kind_{};  // ever seen; the oldest is replaced
  int64_t n_samples_ = 0;
};

// Work of a prefill, summed over its (epoch, layer) cells. Adds up: the work of a whole prompt is
// the sum of the work of its slices. Pairs are (row, key) pairs of one layer and one head, averaged
// over the heads.
struct PrefillWork {
  double cells = 0;        // (epoch, layer) pairs
  double tokens = 0;       // per layer
  double dense_pairs = 0;  // of rows that attend exactly
  double dense_keys = 0;   // that such rows pass over: reading and arranging them, however few rows
  double kept_pairs = 0;   // that sparse rows attend to
  double sampled_pairs = 0;  // of the rows that choose the pattern, with all keys

  PrefillWork& operator+=(const PrefillWork& other);
  PrefillWork operator*(double factor) const;
};

// What a sparse epoch keeps, per head: the local keys, and of the remote ones a number per row and
// a share. Per request, because it depends on the text and the policy.
class DensityModel {
 public:
  explicit DensityModel(const SparseOptions& options);
  // Begins with what another prompt kept, to be corrected as easily as the guess.
  void StartFrom(const DensityModel& other);
  // Pairs that rows [begin, end) keep.
  double KeptPairs(int64_t begin, int64_t end) const;
  // What they kept on average over n_layers layers.
  void Observe(int64_t begin, int64_t end, int32_t n_layers, double kept_pairs);

 private:
  struct Rows {
    double n = 0;       // rows that see remote keys
    double local = 0;   // pairs with local keys
    double remote = 0;  // pairs with remote keys
  };
  Rows CountRows(int64_t begin, int64_t end) const;

  double local_keys_;
  // Kept remote pairs = keys_per_row_ * n + share_ * remote.
  double keys_per_row_ = 0;
  double share_;
  double nn_, nr_ = 0, rr_;  // normal equations; the diagonal begins as the weight of the prior
  double ny_ = 0, ry_;
};

class CostModel {
 public:
  explicit CostModel(const ModelShape& shape);

  // Work of query tokens [begin, end), all in one epoch, at one layer that all of them pass.
  static PrefillWork EpochWork(const SparseOptions& options, const DensityModel& density,
                               int64_t begin, int64_t end, int64_t prompt_tokens);
  // At the last layer, where they leave keys and values, and only the prompt's last row goes on.
  static PrefillWork LastLayerWork(const ModelShape& shape, int64_t begin, int64_t end,
                                   int64_t prompt_tokens);

  // False until a slice was measured: predictions rest on the guess alone.
  bool learned() const { return prefill_.observed(); }
  double PrefillUs(const PrefillWork& work) const;
  void ObservePrefill(const PrefillWork& work, double elapsed_us);

  // One step of n_rows sequences that see n_keys keys altogether.
  double DecodeUs(int64_t n_rows, int64_t n_keys) const;
  void ObserveDecode(int64_t n_rows, int64_t n_keys, double elapsed_us);

 private:
  // x of the fits, in microseconds at the guessed speed.
  std::array<double, 6> PrefillTerms(const PrefillWork& work) const;
  std::array<double, 3> DecodeTerms(int64_t n_rows, int64_t n_keys) const;

  double cell_us_;    // one layer call: fixed costs, reading the weights
  double token_us_;   // one token through one layer's projections
  double pair_us_;    // one (row, key) pair, all heads of one layer
  double weight_us_;  // reading all weights once
  double key_us_;     // one key, all layers
  OnlineFit prefill_{6};
  OnlineFit decode_{3};
};

}  // namespace longhaul
