// The search of `longhaul calibrate`: which alpha, window and sampled rows make a prefill fastest
// while it stays within an accuracy that was asked for. Successive steps, no grid: alpha down a
// ladder until the target is missed, then the window, then the rows, then alpha once more. The
// winner must hold on text that took no part in the search. Knows no model: what a candidate gives
// is asked of a callback, on its caller's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/eval/options.h"

namespace longhaul::eval {

struct Candidate {
  double alpha = 1;  // 1 = dense
  int64_t window = 64;
  int64_t rows = 1;

  bool IsDense() const { return alpha >= 1; }
  bool operator==(const Candidate&) const = default;
};

// Which part of the text prompts come from.
enum class TextPart : uint8_t { kSearch, kHeldOut };

// What a candidate gave at one length, over all prompts of a part.
struct LengthMeasure {
  int64_t length_tokens = 0;
  int64_t n = 0;       // prompts
  double density = 1;  // attended (query, key) pairs / all of the causal triangle
  double recall_mean = 1;
  double recall_p1 = 1;        // first percentile of the audit rows
  double agreement = 1;        // share of places where dense finds the same token likeliest
  double kl = 0;               // nats, of dense to the candidate
  double perplexity_rise = 0;  // perplexity / dense's - 1
  double prefill_s = 0;        // mean
};

// The share of what the target allows to lose that is lost, by the criterion that comes out worst:
// at most 1 meets the target.
double Strain(const AccuracyTarget& target, const LengthMeasure& measure);
// The criteria that are missed: "agreement, perplexity"; "" = none.
std::string MissedBy(const AccuracyTarget& target, const LengthMeasure& measure);

// One candidate on one part of the text.
struct Trial {
  Candidate candidate;
  TextPart part = TextPart::kSearch;
  std::vector<LengthMeasure> lengths;
  double strain = 0;  // of the worst length

  bool Meets() const;
  double PrefillSeconds() const;  // sum over lengths
  double Density() const;         // mean over lengths
};

enum class CalibrationVerdict : uint8_t {
  kFound,
  kNotFaster,  // what meets the target takes as long as dense
  kMissed,     // nothing meets the target
};

struct Calibration {
  std::vector<Trial> trials;  // in the order in which they were made
  CalibrationVerdict verdict = CalibrationVerdict::kMissed;
  // Of `trials`: the winner on held-out text; what met the target and was not faster; what came
  // closest.
  size_t best = 0;
};

struct SearchSpace {
  Candidate start;  // windows are multiples of 64
  int64_t max_window = 64;
};

// May fail; then the search ends with its error.
using MeasureCandidate =
    std::function<absl::StatusOr<std::vector<LengthMeasure>>(const Candidate&, TextPart)>;

// A search tries about this many candidates; for forecasts.
inline constexpr int kTypicalTrials = 12;

absl::StatusOr<Calibration> SearchCalibration(const SearchSpace& space,
                                              const AccuracyTarget& target,
                                              const MeasureCandidate& measure);

}  // namespace longhaul::eval
