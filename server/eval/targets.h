// What each sparse policy lost against dense, beside what it may lose. A pure function of the
// report.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/eval/report.h"

namespace longhaul::eval {

// What counts as keeping dense's accuracy, at each length. Losses are differences of scores.
inline constexpr double kMaxSuiteLoss = 0.01;  // of the mean score of any suite
inline constexpr double kMaxTaskLoss = 0.04;   // of the mean score of any task
inline constexpr double kMaxPerplexityRise = 0.005;
inline constexpr double kMinAgreement = 0.98;
inline constexpr double kMinRecallMean = 0.95;
inline constexpr double kMinRecallP1 = 0.85;

struct Measure {
  double value = 0;
  std::string of;  // the suite or task that it is the worst of
};

struct Check {
  const char* name;  // "worst_suite_loss", as JSON has it
  double bound = 0;
  bool at_least = false;  // `bound` is the least that is allowed, not the most
  std::optional<Measure> measured = {};

  bool Missed() const {
    constexpr double kSlack = 1e-9;  // 1 - 0.96 is not more than 0.04
    if (!measured) return false;
    return at_least ? measured->value < bound - kSlack : measured->value > bound + kSlack;
  }
};

struct PolicyChecks {
  std::string policy;
  int64_t length_tokens = 0;
  // Always the same six: worst suite, worst task, perplexity, agreement, mean and first percentile
  // of recall.
  std::vector<Check> checks;
};

// Of all policies but dense, length by length; empty where dense itself was not measured.
std::vector<PolicyChecks> CheckAgainstDense(const EvalReport& report);

}  // namespace longhaul::eval
