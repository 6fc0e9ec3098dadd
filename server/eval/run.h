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

// Suite agreement: a dense run generates this many tokens; under each policy the prompt is computed
// with these tokens behind it, and at each of their places compared with what dense found likely:
//
//   agreement  the share of places where the likeliest token is the one that dense chose;
//   kl         the mean of KL(dense || policy) in nats over the k tokens that dense found likeliest
//              and one event for all others. What the policy does not list among its own k
//              likeliest counts with the probability of the last of them, which is the most it can
//              have: an estimate, exact where both lists hold the same tokens.
//
// The tokens stand in the part of a prompt that attends to everything under any policy
// (SparseOptions::dense_tail_tokens), as decoding does: what differs is the prompt's keys and
// values.
inline constexpr int64_t kContinuedTokens = 32;
inline constexpr int32_t kTopTokens = 20;

// Suite ppl: buckets of positions, of equal size.
inline constexpr int64_t kPerplexityBuckets = 8;

// See above; both [n][k], likeliest first. Exposed for tests.
double TopKl(const std::vector<std::pair<int32_t, float>>& dense,
             const std::vector<TokenLogprob>& policy);

// `model` is `target`, or nullptr for a server. Progress goes to `progress`: one line on a
// terminal, else a line per suite and length. Errors name what cannot be run; what was measured
// before is in the store.
absl::StatusOr<EvalReport> RunEval(const EvalOptions& options, EvalTarget& target,
                                   ModelTarget* model, ResultStore& store, std::FILE* progress);

}  // namespace longhaul::eval
