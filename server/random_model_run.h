// RandomModelRun: prefill and decode of one random-weight model, timed phase by phase, without a
// server around it: one prompt alone, epoch after epoch, as a request would compute it. Owned by a
// benchmark, one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/config.h"
#include "engine/memory_plan.h"
#include "engine/step_plan.h"
#include "server/forced_density.h"
#include "server/profiling_backend.h"
#include "server/random_model.h"

namespace longhaul {

struct PrefillTiming {
  int64_t n_tokens = 0;
  SparseMode mode = SparseMode::kDense;
  double seconds = 0;
  double attention_flop = 0;  // 4 head_dim per kept (row, key) pair
  double selection_flop = 0;  // 2 head_dim per sampled score
  double density = 1;
  OpProfile ops = {};
};

struct DecodeTiming {
  int64_t depth = 0;  // tokens before the first one
  int64_t n_steps = 0;
  double step_seconds = 0;  // median of the steps
  double seconds = 0;       // of all steps
  OpProfile ops = {};       // of all steps
};

class RandomModelRun {
 public:
  // Of config: weight_format, kv_dtype, epoch_tokens, sparse. density: forced, see
  // ForcedDensityBackend. ResourceExhausted, before anything is allocated, with what does not fit;
  // InvalidArgument for a shape that the engine does not take.
  static absl::StatusOr<std::unique_ptr<RandomModelRun>> Create(const RandomModelShape& shape,
                                                                const EngineConfig& config,
                                                                int64_t max_tokens,
                                                                std::optional<double> density,
                                                                std::unique_ptr<Backend> backend);

  // Called behind every epoch: tokens done so far, and the seconds that each epoch took.
  using OnEpoch = std::function<void(int64_t n_done, std::span<const double> epoch_seconds)>;
  // n_tokens in [1, max_tokens].
  PrefillTiming Prefill(int64_t n_tokens, SparseMode mode, const OnEpoch& on_epoch = {});
  // Steps of one sequence with `depth` tokens before it; depth + kDecodeSteps <= max_tokens. What
  // no prefill has filled yet is filled first.
  static constexpr int64_t kDecodeSteps = 34;
  DecodeTiming Decode(int64_t depth);

  const Backend& backend() const { return *backend_; }
  int64_t n_parameters() const { return executor_->shape().n_parameters; }
  int64_t weight_bytes() const { return plan_.weight_bytes; }
  WeightFormat weight_format() const { return config_.weight_format.value_or(WeightFormat::kBF16); }
  DType kv_dtype() const { return *config_.kv_dtype; }

 private:
  RandomModelRun(std::unique_ptr<Backend> backend, const EngineConfig& config,
                 std::optional<double> density);
  absl::Status Load(const RandomModel& model);

  // Executor, forced density, profile, backend: each borrows the next.
  const std::unique_ptr<Backend> backend_;
  ProfilingBackend profiling_;
  std::optional<ForcedDensityBackend> forced_;
  EngineConfig config_;
  MemoryPlan plan_;
  std::unique_ptr<Executor> executor_;
  std::vector<int32_t> tokens_;  // [max_tokens]
  std::vector<int32_t> pages_;   // [ceil(max_tokens / 64)]
  int64_t n_filled_ = 0;         // tokens whose keys and values were computed
};

}  // namespace longhaul
