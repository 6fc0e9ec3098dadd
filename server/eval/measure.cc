#include "server/eval/measure.h"

#include <algorithm>
#include <cmath>

namespace longhaul::eval {
namespace {

constexpr size_t kMaxAnswerBytes = 1024;  // that are kept

}  // namespace

absl::StatusOr<Continuation> ContinueDense(ModelTarget& model, std::vector<int32_t> prompt) {
  Continuation result;
  LH_ASSIGN_OR_RETURN(result.reply, model.AskTokens(prompt, DensePolicy(), kContinuedTokens));
  result.tokens = result.reply.tokens;
  prompt.insert(prompt.end(), result.tokens.begin(), result.tokens.end());
  const auto n_last = static_cast<int64_t>(result.tokens.size());
  LH_ASSIGN_OR_RETURN(result.scores,
                      model.Score(std::move(prompt), DensePolicy(), kTopTokens, n_last));
  for (const std::vector<TokenLogprob>& place : result.scores.top) {
    result.top.emplace_back();
    for (const TokenLogprob& top : place) result.top.back().emplace_back(top.token, top.logprob);
  }
  return result;
}

Agreement Compare(const TopLists& top, const PromptScores& scores) {
  double n_same = 0, kl = 0;
  for (size_t i = 0; i < scores.top.size(); ++i) {
    n_same += scores.top[i][0].token == top[i][0].first;
    kl += TopKl(top[i], scores.top[i]);
  }
  const auto n = static_cast<double>(scores.top.size());
  return {.share = n_same / n, .kl = kl / n};
}

double TopKl(const std::vector<std::pair<int32_t, float>>& dense,
             const std::vector<TokenLogprob>& policy) {
  constexpr double kLeast = 1e-9;  // of the rest: what rounding leaves of nothing
  double kl = 0, dense_rest = 1, policy_rest = 1;
  for (const auto& [token, logprob] : dense) {
    const auto same = std::find_if(policy.begin(), policy.end(),
                                   [t = token](const TokenLogprob& p) { return p.token == t; });
    const double q = same != policy.end() ? same->logprob : policy.back().logprob;
    const double p = std::exp(double{logprob});
    kl += p * (logprob - q);
    dense_rest -= p;
    policy_rest -= std::exp(q);
  }
  dense_rest = std::max(dense_rest, kLeast);
  policy_rest = std::max(policy_rest, kLeast);
  return std::max(0.0, kl + dense_rest * std::log(dense_rest / policy_rest));
}

Result ResultOf(Reply reply) {
  Result result;
  result.answer = reply.text.substr(0, kMaxAnswerBytes);
  result.prompt_tokens = reply.prompt_tokens;
  result.ttft_s = reply.ttft_s;
  result.density = reply.density;
  result.recall_mean = reply.recall_mean;
  const std::vector<int64_t>& histogram = reply.sparse.recall_histogram;
  for (size_t cell = 0; cell < histogram.size(); ++cell) {
    if (histogram[cell] > 0) result.recalls.emplace_back(cell, histogram[cell]);
  }
  result.recall_sum = reply.sparse.recall_sum;
  // Nothing to keep where every head attended to everything.
  if (reply.sparse.n_head_epochs > 0) result.heads = std::move(reply.sparse.heads);
  return result;
}

}  // namespace longhaul::eval
