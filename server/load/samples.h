// Samples: measured values with exact quantiles. One thread.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace longhaul::load {

class Samples {
 public:
  void Add(double value);
  void Add(const std::vector<double>& values);

  int64_t n() const { return static_cast<int64_t>(values_.size()); }
  double Mean() const;
  double Max() const { return Quantile(1); }
  // Nearest rank: the smallest value that at least the share `q` of all values does not exceed, so
  // always a value that was measured. Of n values the p99 is the maximum while n < 100. 0 if empty.
  double Quantile(double q) const;

  // {"n", "mean", "p50", "p90", "p99", "max"}; values in the unit they were added in.
  nlohmann::json Json() const;

 private:
  mutable std::vector<double> values_;
  mutable bool sorted_ = true;
};

}  // namespace longhaul::load
