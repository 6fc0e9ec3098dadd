// What is measured with the model in this process, by `longhaul eval` and `longhaul calibrate`: how
// well a text is predicted after a sparse prefill, beside the dense one. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "server/eval/result.h"
#include "server/eval/target.h"

namespace longhaul::eval {

// A dense run generates this many tokens; under each policy the prompt is computed with these
// tokens behind it, and at each of their places compared with what dense found likely:
//
//   agreement  the share of places where the same token is likeliest after a dense prefill;
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

// What was likely at each of some places: [n][k] tokens and logprobs, likeliest first.
using TopLists = std::vector<std::vector<std::pair<int32_t, float>>>;

struct Continuation {
  std::vector<int32_t> tokens;  // that dense generated
  TopLists top;                 // at their places
  Reply reply;                  // of the run that generated them
  PromptScores scores;          // of the run that scored them, with the prompt before them
};
absl::StatusOr<Continuation> ContinueDense(ModelTarget& model, std::vector<int32_t> prompt);

struct Agreement {
  double share = 0;
  double kl = 0;  // nats
};
// `scores` of the same prompt and tokens, kTopTokens at their places. With what dense found when it
// scored them, not with the tokens: where two are all but equally likely, one decode step at a time
// rounds otherwise than a prefill, and that is no policy's loss.
Agreement Compare(const TopLists& top, const PromptScores& scores);

// See above, at one place; both likeliest first.
double TopKl(const std::vector<std::pair<int32_t, float>>& dense,
             const std::vector<TokenLogprob>& policy);

// Everything but `values`, `tokens` and `top`.
Result ResultOf(Reply reply);

}  // namespace longhaul::eval
