// The decode steps that a runner has its backend record (Backend::Replay: CUDA graphs): how many
// there are and what they take of the device. Pure arithmetic.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/model/model_config.h"

namespace longhaul {

// Places of the recording that serves n_rows: 1, 2, 4, multiples of 8. Fewer recordings than batch
// sizes, as each takes memory and a slower step; a place that is nobody's costs its part of the
// products, which a small batch does not notice.
int64_t RecordedPlaces(int64_t n_rows, int64_t max_rows);

struct RecordedSteps {
  int64_t n_recordings = 0;  // different RecordedPlaces, at most
  int64_t n_bytes = 0;       // of device memory, an estimate
};

// Of a backend that has_replay(). None where steps are not recorded.
RecordedSteps CountRecordedSteps(const EngineConfig& config, const ModelConfig& model);

}  // namespace longhaul
