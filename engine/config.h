// Engine configuration. Filled by the server's flags; checked once by Validate(); const afterwards.
#pragma once

#include <cstdint>
#include <string>

#include "engine/sparse_policy.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status.h"

namespace longhaul {

struct EngineConfig {
  int64_t max_model_len = 0;       // tokens, prompt + output; 0 = what the model allows
  int64_t kv_cache_bytes = 0;      // page pool; 0 = a share of free memory, chosen by the server
  DType kv_dtype = DType::kF32;    // kF32 or kBF16
  int64_t epoch_tokens = 4096;     // prefill grid; a multiple of 64; part of the prefix cache key
  int64_t slice_us = 250'000;      // time budget of one slice
  int64_t max_num_seqs = 64;       // sequences decoding or prefilling at once
  int64_t max_prefills = 4;        // prompts prefilled in turn (each holds one epoch of hidden state)
  int64_t max_num_queued_reqs = 256;
  bool enable_prefix_caching = true;
  SparseOptions sparse;            // default of requests that say nothing
  uint64_t model_digest = 0;       // of weights and config; root of every prefix key

  absl::Status Validate() const;
};

}  // namespace longhaul
