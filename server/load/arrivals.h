// PoissonArrivals: the gaps of a Poisson process. The same seed gives the same gaps with every
// compiler and library, so runs against different servers see the same arrivals. One thread.
#pragma once

#include <cstdint>
#include <random>

namespace longhaul::load {

class PoissonArrivals {
 public:
  // rate_per_s > 0.
  PoissonArrivals(double rate_per_s, uint64_t seed) : rate_per_s_(rate_per_s), random_(seed) {}

  // Seconds until the next arrival: exponential with mean 1 / rate.
  double NextGap();

 private:
  const double rate_per_s_;
  std::mt19937_64 random_;
};

}  // namespace longhaul::load
