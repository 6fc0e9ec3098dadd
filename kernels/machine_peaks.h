// What this machine's processors do at best, measured: the yardstick that every other figure of a
// benchmark is a share of. Takes some two seconds and 512 MiB.
#pragma once

#include "kernels/base/status.h"
#include "kernels/weight_format.h"

namespace longhaul {

struct MachinePeaks {
  double f32_gflops = 0;     // matrix products that stay in cache, all threads
  double bf16_gflops = 0;    // 0 where the processor does not multiply the type
  double int8_gops = 0;      // the same
  double read_gb_per_s = 0;  // of memory, all threads
  double copy_gb_per_s = 0;  // the same, bytes read and written together

  // Takes what is better in another measurement: others may have used the machine during one.
  void Merge(const MachinePeaks& other);

  // Of the type that the format multiplies in; of f32 where the processor has no other.
  double OfFormat(WeightFormat format) const;
};

// n_threads: 0 = all processors.
absl::StatusOr<MachinePeaks> MeasureMachinePeaks(int n_threads);

}  // namespace longhaul
