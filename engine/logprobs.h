// Logprobs of one row of logits: of the model's own distribution, before penalties and temperature,
// as OpenAI and vLLM report them. Pure functions, any thread. What they cost beside the logits: two
// passes over the vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace longhaul {

// Likeliest first; ties by the lower id, so that the order is total.
bool Likelier(const TokenLogprob& a, const TokenLogprob& b);

// What makes logprobs of a row's logits. A NaN in the row counts as -inf; every logprob is NaN when
// no logit is finite or one is +inf.
class LogSoftmax {
 public:
  explicit LogSoftmax(std::span<const float> logits);
  float Logprob(float logit) const {
    return static_cast<float>(double{logit} - double{best_} - log_sum_);
  }

 private:
  float best_;      // the largest logit
  double log_sum_;  // of exp(logit - best_)
};

// Appends the k likeliest tokens, or all where there are fewer, likeliest first.
void AppendLikeliest(std::span<const float> logits, const LogSoftmax& softmax, int32_t k,
                     std::vector<TokenLogprob>& out);

// Appends what the row says of prompt token `token`, and its event.n_top likeliest ones.
void AppendPromptToken(std::span<const float> logits, int32_t token, PromptLogprobsEvent& event);

}  // namespace longhaul
