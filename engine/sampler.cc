#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine/logprobs.h"

namespace longhaul {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// splitmix64: a counter through a bit mixer, so the state is one integer.
uint64_t NextRandom(uint64_t& state) {
  state += 0x9e3779b97f4a7c15u;
  uint64_t x = state;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t InitialState(const SamplingParams& params, int32_t choice) {
  uint64_t seed = 0;
  if (params.seed) {
    seed = *params.seed;
  } else {
    std::random_device device;
    seed = uint64_t{device()} << 32 | device();
  }
  uint64_t state = seed;
  for (uint64_t stream : {uint64_t{0x6c6f6e67}, static_cast<uint64_t>(choice)}) {
    state ^= stream;
    state = NextRandom(state);
  }
  return state;
}

// In [0, 1), 53 random bits.
double UniformDouble(uint64_t& state) {
  return static_cast<double>(NextRandom(state) >> 11) * 0x1p-53;
}

// A NaN never wins a comparison from here on.
float NanToNever(float logit) { return std::isnan(logit) ? kNever : logit; }

// Moves the `k` likeliest to the front, in order.
void SelectTop(std::vector<TokenLogprob>& candidates, size_t k) {
  k = std::min(k, candidates.size());
  if (k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), Likelier);
  }
  std::sort(candidates.begin(), candidates.begin() + k, Likelier);
}

// How many of the likeliest candidates hold `share` of `total`; they are at the front afterwards,
// in order. Looks at 64, then 256, ... of them: a nucleus is small and the vocabulary is not.
// `weight` is relative probability.
template <typename Weight>
size_t SelectNucleus(std::vector<TokenLogprob>& candidates, double need, Weight&& weight) {
  double sum = 0;
  size_t n_ordered = 0;
  for (size_t n_try = 64; n_ordered < candidates.size(); n_try *= 4) {
    const size_t end = std::min(n_try, candidates.size());
    const auto begin = candidates.begin() + n_ordered;
    if (end < candidates.size()) {
      std::nth_element(begin, candidates.begin() + end, candidates.end(), Likelier);
    }
    std::sort(begin, candidates.begin() + end, Likelier);
    for (; n_ordered < end; ++n_ordered) {
      sum += weight(candidates[n_ordered]);
      if (sum >= need) return n_ordered + 1;
    }
  }
  return candidates.size();
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, std::span<const int32_t> prompt, int32_t choice,
                 int32_t vocab_size)
    : params_(params), rng_state_(InitialState(params, choice)) {
  if (params.repetition_penalty != 1.0f) {
    in_prompt_.resize(vocab_size);
    for (int32_t token : prompt) in_prompt_[token] = true;
  }
  for (const auto& [token, bias] : params.logit_bias) bias_[token] += bias;
}

float Sampler::Adjusted(int32_t token, float logit) const {
  const auto output = n_output_.find(token);
  const int32_t n_seen = output == n_output_.end() ? 0 : output->second;
  if (n_seen > 0 || (!in_prompt_.empty() && in_prompt_[token])) {
    logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
  }
  logit -= params_.frequency_penalty * static_cast<float>(n_seen);
  if (n_seen > 0) logit -= params_.presence_penalty;
  if (const auto bias = bias_.find(token); bias != bias_.end()) logit += bias->second;
  return logit;
}

void Sampler::Adjust(std::span<const float> logits, std::span<const int32_t> forbidden) {
  const int32_t n_vocab = static_cast<int32_t>(logits.size());
  adjusted_.resize(n_vocab);
  std::transform(logits.begin(), logits.end(), adjusted_.begin(), NanToNever);
  const auto adjust = [&](int32_t token) {
    if (token >= 0 && token < n_vocab) {
      adjusted_[token] = NanToNever(Adjusted(token, NanToNever(logits[token])));
    }
  };
  for (const auto& [token, count] : n_output_) adjust(token);
  for (const auto& [token, bias] : bias_) adjust(token);
  for (size_t token = 0; token < in_prompt_.size(); ++token) {
    if (in_prompt_[token]) adjust(static_cast<int32_t>(token));
  }
  for (int32_t token : forbidden) {
    if (token >= 0 && token < n_vocab) adjusted_[token] = kNever;
  }
}

int32_t Sampler::Draw(float best) {
  // Relative probability: 1 for the likeliest. In f64, so that a tiny temperature is still greedy.
  const double scale = 1.0 / params_.temperature;
  const auto weight = [&](const TokenLogprob& c) {
    return std::exp((double{c.logprob} - double{best}) * scale);
  };
  std::vector<TokenLogprob>& candidates = scratch_;
  candidates.clear();
  for (size_t token = 0; token < adjusted_.size(); ++token) {
    if (adjusted_[token] != kNever) {
      candidates.push_back({.token = static_cast<int32_t>(token), .logprob = adjusted_[token]});
    }
  }
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < candidates.size()) {
    SelectTop(candidates, params_.top_k);
    candidates.resize(params_.top_k);
  }
  if (params_.top_p < 1.0f) {
    double total = 0;
    for (const TokenLogprob& c : candidates) total += weight(c);
    candidates.resize(SelectNucleus(candidates, total * params_.top_p, weight));
  }
  if (params_.min_p > 0) {
    std::erase_if(candidates, [&](const TokenLogprob& c) { return weight(c) < params_.min_p; });
  }

  double total = 0;
  for (const TokenLogprob& c : candidates) total += weight(c);
  double left = UniformDouble(rng_state_) * total;
  int32_t last_possible = candidates.front().token;
  for (const TokenLogprob& c : candidates) {
    const double w = weight(c);
    if (w <= 0) continue;
    last_possible = c.token;
    left -= w;
    if (left < 0) break;
  }
  return last_possible;
}

void Sampler::FillLogprobs(std::span<const float> logits, Sampled& sampled) const {
  const LogSoftmax softmax(logits);
  sampled.logprob = softmax.Logprob(NanToNever(logits[sampled.token]));
  AppendLikeliest(logits, softmax, params_.n_logprobs, sampled.top_logprobs);
}

Sampled Sampler::Sample(std::span<const float> logits, std::span<const int32_t> forbidden) {
  Adjust(logits, forbidden);
  const auto best = std::max_element(adjusted_.begin(), adjusted_.end());  // the first of equals
  Sampled sampled;
  sampled.token = static_cast<int32_t>(best - adjusted_.begin());
  if (*best == kNever) {
    // Nothing is possible (all NaN, or all forbidden): the lowest token that is not forbidden.
    const auto is_forbidden = [&](int32_t token) {
      return std::find(forbidden.begin(), forbidden.end(), token) != forbidden.end();
    };
    while (is_forbidden(sampled.token) && sampled.token + 1 < static_cast<int32_t>(logits.size())) {
      ++sampled.token;
    }
  } else if (params_.temperature > 0 && std::isfinite(*best)) {
    sampled.token = Draw(*best);
  }
  if (params_.n_logprobs >= 0) FillLogprobs(logits, sampled);
  Count(sampled.token);
  return sampled;
}

void Sampler::Count(int32_t token) { ++n_output_[token]; }

}  // namespace longhaul
