#include "engine/step_watch.h"

#include <algorithm>
#include <string>

#include "fmt/format.h"

namespace longhaul {

void StepWatch::Begin(int64_t now_us, int64_t predicted_us) {
  began_us_ = now_us;
  predicted_us_ = predicted_us;
}

void StepWatch::End(const absl::Status& status) {
  began_us_ = -1;
  n_failures_ = status.ok() ? 0 : n_failures_ + 1;
  last_failure_ = status;
}

absl::Status StepWatch::Check(int64_t now_us) const {
  if (n_failures_ >= kUnhealthyFailures) {
    return absl::UnavailableError(fmt::format("the last {} steps failed: {}", n_failures_,
                                              std::string(last_failure_.message())));
  }
  const int64_t limit_us = std::max(kUnhealthyUs, kUnhealthyFactor * predicted_us_);
  if (began_us_ >= 0 && now_us - began_us_ > limit_us) {
    return absl::UnavailableError(fmt::format(
        "a step is running for {:.1f} s, {:.1f} s were predicted; the device may be stuck",
        static_cast<double>(now_us - began_us_) * 1e-6, static_cast<double>(predicted_us_) * 1e-6));
  }
  return absl::OkStatus();
}

}  // namespace longhaul
