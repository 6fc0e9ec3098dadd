// Engine configuration. Filled by the server's flags; checked once by Validate(); const afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/sparse_policy.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status.h"
#include "kernels/weight_format.h"

namespace longhaul {

// In which order the (epoch, layer) cells of one prompt are computed; the bits are the same.
// kEpoch: all layers of an epoch, then the next epoch; pages are shared as soon as an epoch ends.
// kLayer: all epochs of a layer, then the next layer; keeps the hidden state of a whole prompt, for
// one long prompt at a time, the others go by epoch.
// kAuto: kEpoch; nothing in this version gains from kLayer.
enum class PrefillOrder : uint8_t { kAuto, kEpoch, kLayer };

struct EngineConfig {
  int64_t max_model_len = 0;      // tokens, prompt + output; 0 = what the model allows
  int64_t kv_cache_bytes = 0;     // page pool; 0 = a share of free memory, chosen by the server
  std::optional<DType> kv_dtype;  // kF32, kBF16 or kF8E4M3; a GPU takes bf16 for kF32; none = bf16
                                  // for a checkpoint in bf16, else f32
  bool enforce_eager = false;     // decode steps are not recorded (CUDA graphs)
  double gpu_memory_utilization = 0.9;  // share of a GPU's memory for weights, KV cache and work
  std::optional<WeightFormat> weight_format;  // of linear layers; none = that of the checkpoint
  std::string weight_cache_dir;               // packed weights are kept here; empty = nowhere
  int64_t epoch_tokens = 4096;  // prefill grid; a multiple of 64; part of the prefix cache key
  int64_t slice_us = 250'000;   // time budget of one slice
  int64_t max_num_seqs = 64;    // sequences decoding or prefilling at once
  int64_t max_prefills = 5;     // prompts prefilled in turn, one place kept for short
                                // ones; each holds one epoch of hidden state
  int64_t max_num_queued_reqs = 256;
  int64_t max_num_queued_tokens = int64_t{1} << 24;  // prompt tokens of waiting requests together
  int64_t retry_keep_us = 120'000'000;  // pages of a request that broke off are kept so long
  double retry_keep_share = 0.5;        // ... in at most this share of the page pool
  PrefillOrder prefill_order = PrefillOrder::kAuto;
  bool enable_prefix_caching = true;
  bool self_measure = true;  // time some steps at the start; else the first predictions are guesses
  SparseOptions sparse;      // default of requests that say nothing
  uint64_t model_digest = 0;  // of weights, config and KV type; root of every prefix key

  absl::Status Validate() const;
};

}  // namespace longhaul
