#include "server/load/samples.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

namespace longhaul::load {

void Samples::Add(double value) {
  values_.push_back(value);
  sorted_ = false;
}

void Samples::Add(const std::vector<double>& values) {
  values_.insert(values_.end(), values.begin(), values.end());
  sorted_ = false;
}

double Samples::Mean() const {
  if (values_.empty()) return 0;
  return std::accumulate(values_.begin(), values_.end(), 0.0) / static_cast<double>(values_.size());
}

double Samples::Quantile(double q) const {
  if (values_.empty()) return 0;
  if (!sorted_) std::sort(values_.begin(), values_.end());
  sorted_ = true;
  // 0.99 * 100 is 99.00000000000001 or not: a rank that is whole but for rounding stays what it is.
  const double rank = std::ceil(q * static_cast<double>(values_.size()) - 1e-9);
  const auto index = static_cast<int64_t>(std::max(rank, 1.0)) - 1;
  return values_[static_cast<size_t>(std::min(index, n() - 1))];
}

nlohmann::json Samples::Json() const {
  return {{"n", n()},
          {"mean", Mean()},
          {"p50", Quantile(0.5)},
          {"p90", Quantile(0.9)},
          {"p99", Quantile(0.99)},
          {"max", Max()}};
}

}  // namespace longhaul::load
