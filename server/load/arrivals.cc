#include "server/load/arrivals.h"

#include <cmath>

namespace longhaul::load {

double PoissonArrivals::NextGap() {
  // std::exponential_distribution may differ between libraries. 53 bits: every double in [0, 1).
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
  return -std::log1p(-uniform) / rate_per_s_;
}

}  // namespace longhaul::load
