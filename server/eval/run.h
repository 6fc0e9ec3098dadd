// One evaluation: every prompt of every suite under every policy, those that are known already
// taken from the store. Prompts are the same for all policies, which take turns, so that a machine
// that slows down slows all of them.
#pragma once

#include <cstdio>

#include "server/eval/options.h"
#include "server/eval/report.h"
#include "server/eval/result.h"
#include "server/eval/target.h"

namespace longhaul::eval {

// Suite ppl: buckets of positions, of equal size.
inline constexpr int64_t kPerplexityBuckets = 8;

// `model` is `target`, or nullptr for a server. Progress goes to `progress`: one line on a
// terminal, else a line per suite and length. Errors name what cannot be run; what was measured
// before is in the store.
absl::StatusOr<EvalReport> RunEval(const EvalOptions& options, EvalTarget& target,
                                   ModelTarget* model, ResultStore& store, std::FILE* progress);

}  // namespace longhaul::eval
