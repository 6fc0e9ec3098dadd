#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace longhaul {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// A NaN never wins a comparison from here on.
float NanToNever(float logit) { return std::isnan(logit) ? kNever : logit; }

}  // namespace

bool Likelier(const TokenLogprob& a, const TokenLogprob& b) {
  return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
}

LogSoftmax::LogSoftmax(std::span<const float> logits) : best_(kNever) {
  for (float logit : logits) best_ = std::max(best_, NanToNever(logit));
  // exp in f32 and the sum in f64: the error of a logprob stays at 1e-7.
  double sum = 0;
  for (float logit : logits) sum += double{std::exp(NanToNever(logit) - best_)};
  log_sum_ = std::log(sum);
}

void AppendLikeliest(std::span<const float> logits, const LogSoftmax& softmax, int32_t k,
                     std::vector<TokenLogprob>& out) {
  const auto first = static_cast<int64_t>(out.size());
  const int64_t n = std::min(int64_t{k}, static_cast<int64_t>(logits.size()));
  if (n <= 0) return;
  // The n likeliest so far as a heap with the least likely of them on top: most tokens cost one
  // comparison.
  for (size_t i = 0; i < logits.size(); ++i) {
    const TokenLogprob candidate{.token = static_cast<int32_t>(i),
                                 .logprob = NanToNever(logits[i])};
    if (static_cast<int64_t>(out.size()) - first == n) {
      if (!Likelier(candidate, out[first])) continue;
      std::pop_heap(out.begin() + first, out.end(), Likelier);
      out.pop_back();
    }
    out.push_back(candidate);
    std::push_heap(out.begin() + first, out.end(), Likelier);
  }
  std::sort_heap(out.begin() + first, out.end(), Likelier);
  for (auto top = out.begin() + first; top != out.end(); ++top) {
    top->logprob = softmax.Logprob(top->logprob);
  }
}

void AppendPromptToken(std::span<const float> logits, int32_t token, PromptLogprobsEvent& event) {
  const LogSoftmax softmax(logits);
  const TokenLogprob chosen{.token = token, .logprob = logits[token]};
  int32_t rank = 1;
  for (size_t i = 0; i < logits.size(); ++i) {
    rank += Likelier({.token = static_cast<int32_t>(i), .logprob = logits[i]}, chosen) ? 1 : 0;
  }
  event.ranks.push_back(rank);
  event.tokens.push_back({.token = token, .logprob = softmax.Logprob(chosen.logprob)});
  AppendLikeliest(logits, softmax, event.n_top, event.top);
}

}  // namespace longhaul
