// Rotary position embeddings: the kinds of scaling that checkpoints name in config.json, and the
// frequencies and attention factor that each gives. Plain values and pure functions, all in double;
// the angles of a step are computed from them in double too (RopeTable), so that position two
// million is as exact as position two.
//
// Keys are rotated when they are written to the cache and never again. A kind whose frequencies
// depend on the length (dynamic, longrope) is therefore resolved once, for the longest context that
// this process serves (RopeConfig::context_tokens), and not for the current length of each prompt.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/config_fields.h"

namespace longhaul {

enum class RopeKind : uint8_t {
  kDefault,
  kLinear,    // every frequency divided by `factor`
  kDynamic,   // NTK: a larger base, so that the slowest pair just reaches the longer context
  kYarn,      // fast pairs kept, slow ones divided by `factor`, a ramp over the pairs between
  kLongRope,  // each frequency divided by a factor of its own; one list up to the original context,
              // another one beyond
  kLlama3,    // fast pairs kept, slow ones divided by `factor`, a ramp over frequency between
};

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  int64_t n_pairs = 0;  // rotated pairs of a head: head_dim / 2 times partial_rotary_factor
  double factor = 1.0;
  double attention_factor = 1.0;   // of cos and sin
  int64_t original_positions = 0;  // context before the scaling; all kinds but default and linear
  double low_freq_factor = 1.0;    // kLlama3
  double high_freq_factor = 4.0;   // kLlama3
  double beta_fast = 32.0;         // kYarn: turns within the original context from which a pair
  double beta_slow = 1.0;          // is kept, and below which it is divided
  bool truncate = true;            // kYarn: the ramp begins and ends at whole pairs
  std::vector<double> short_factors;  // kLongRope [n_pairs]
  std::vector<double> long_factors;   // kLongRope [n_pairs]
  int64_t context_tokens = 0;         // longest context served; set before the frequencies are used
};

// What a family fixes and config.json does not repeat.
struct RopeDefaults {
  int64_t head_dim = 0;
  int64_t max_positions = 0;  // max_position_embeddings
  double theta = 10000.0;
  double partial_factor = 1.0;    // share of each head that is rotated
  bool yarn_is_longrope = false;  // first releases of Phi-3 say "yarn" for what became longrope
};

// Reads rope_theta, partial_rotary_factor and rope_scaling {type | rope_type, ...}, or the newer
// single rope_parameters {rope_type, rope_theta, ...}. Errors stick to `top`; an unknown type is
// Unimplemented and named.
RopeConfig ParseRope(Fields& top, const RopeDefaults& defaults);

// [n_pairs] radians per token, scaling applied.
std::vector<double> InverseFrequencies(const RopeConfig& rope);

}  // namespace longhaul
