#include "engine/recorded_steps.h"

#include <algorithm>

#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// Ops of Transformer::Forward, and kernels: decode attention is three, a product two where its sums
// are split.
constexpr int64_t kKernelsPerLayer = 16;
constexpr int64_t kOtherKernels = 8;

// What the driver keeps of a recorded kernel. NVIDIA's CUDA C++ libraries reckon with 10 KiB; not
// measured here (gpu_bench_model prints what the recordings of a model have taken).
constexpr int64_t kKernelBytes = 10 << 10;

}  // namespace

int64_t RecordedPlaces(int64_t n_rows, int64_t max_rows) {
  const int64_t places = n_rows <= 2 ? n_rows : n_rows <= 4 ? 4 : RoundUp(n_rows, 8);
  return std::min(places, max_rows);
}

RecordedSteps CountRecordedSteps(const EngineConfig& config, const ModelConfig& model) {
  if (config.enforce_eager || model.experts.max_experts > 0) return {};
  RecordedSteps steps;
  for (int64_t rows = 1; rows <= config.max_num_seqs; ++rows) {
    rows = RecordedPlaces(rows, config.max_num_seqs);
    ++steps.n_recordings;
  }
  steps.n_bytes =
      steps.n_recordings * (kKernelsPerLayer * model.shape.n_layers + kOtherKernels) * kKernelBytes;
  return steps;
}

}  // namespace longhaul
