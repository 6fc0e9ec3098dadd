// The policies that an evaluation compares, as text: "dense", "sample:alpha=0.9:window=512". The
// one place that reads them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "engine/sparse_policy.h"

namespace longhaul::eval {

struct Policy {
  std::string name;  // as given; what reports call it
  std::string mode;  // of ParseSparseMode; "default": whatever the server does by itself
  std::vector<std::pair<std::string, double>> values;  // by the names in PolicyKeys
};

inline Policy DensePolicy() { return {.name = "dense", .mode = "dense", .values = {}}; }

// "alpha", "window", ...: the fields of SparseOptions that a policy can set.
std::vector<std::string> PolicyKeys();

// InvalidArgument names the policy, what is wrong with it and what is allowed.
absl::StatusOr<Policy> ParsePolicy(const std::string& text);

// The policy's own values over those of `base`, validated. "default" is `base`.
absl::StatusOr<SparseOptions> ResolvePolicy(const Policy& policy, const SparseOptions& base);

}  // namespace longhaul::eval
