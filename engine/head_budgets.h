// Budgets of vertical-slash for each head of a model, read from the JSON files that MInference
// (arXiv 2407.02490) publishes: a list of layers, each an object {"head": [pattern, columns,
// diagonals, score]}. Patterns are vertical_and_slash, and stream_llm: the first keys and the
// nearest diagonals, whatever they hold.
//
// Immutable after it was read; shared by the options of every request. Does not know the model: see
// SparseOptions::CheckModel.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/args.h"
#include "kernels/base/status.h"

namespace longhaul {

struct HeadBudgets {
  int32_t n_layers = 0;
  int32_t n_heads = 0;              // query heads of each layer
  std::vector<HeadBudget> budgets;  // [n_layers, n_heads]
  uint64_t digest = 0;              // of all of the above
};

// Most columns and most diagonals of a head that a file or an option may ask for.
inline constexpr int64_t kMaxBudget = int64_t{1} << 24;

// A budget in the published units: `n_diagonals` single diagonals become bands of 64, rounded up.
HeadBudget MakeHeadBudget(int64_t n_columns, int64_t n_diagonals);

// InvalidArgument with the layer, the head and what is wrong. ParseHeadBudgets is exposed for
// tests.
absl::StatusOr<HeadBudgets> ParseHeadBudgets(std::string_view text);
absl::StatusOr<std::shared_ptr<const HeadBudgets>> ReadHeadBudgets(const std::string& path);

}  // namespace longhaul
