// StepWatch: whether the steps of an engine go as predicted. The engine thread notes when a step
// begins and how it ended; any thread may ask, without waiting for that thread. A value with the
// time as an argument; guarded by the engine's mutex.
#pragma once

#include <cstdint>

#include "kernels/base/status.h"

namespace longhaul {

class StepWatch {
 public:
  // A step is stuck when it takes longer than both: so long, and so many times the prediction.
  static constexpr int64_t kUnhealthyUs = 10'000'000;
  static constexpr int64_t kUnhealthyFactor = 8;
  // So many failures in a row are not the fault of single requests.
  static constexpr int64_t kUnhealthyFailures = 3;

  void Begin(int64_t now_us, int64_t predicted_us);
  void End(const absl::Status& status);
  // OK, or Unavailable: the step under way is stuck, or the last steps all failed.
  absl::Status Check(int64_t now_us) const;

 private:
  int64_t began_us_ = -1;  // -1: no step under way
  int64_t predicted_us_ = 0;
  int64_t n_failures_ = 0;  // in a row
  absl::Status last_failure_;
};

}  // namespace longhaul
