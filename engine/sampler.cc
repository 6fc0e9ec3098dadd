#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine/logprobs.h"
#include "kernels/draw_token.h"

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

// A NaN never wins a comparison from here on.
float NanToNever(float logit) { return std::isnan(logit) ? kNever : logit; }

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

bool Sampler::is_plain() const {
  return params_.repetition_penalty == 1.0f && params_.presence_penalty == 0.0f &&
         params_.frequency_penalty == 0.0f && bias_.empty() && params_.n_logprobs < 0;
}

TokenDraw Sampler::NextDraw() const {
  uint64_t state = rng_state_;
  return {.temperature = params_.temperature,
          .top_k = params_.top_k,
          .top_p = params_.top_p,
          .min_p = params_.min_p,
          .random = NextRandom(state)};
}

void Sampler::Accept(int32_t token) {
  NextRandom(rng_state_);
  ++n_output_[token];
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
    sampled.token = DrawToken(adjusted_, NextDraw(), scratch_);
  }
  if (params_.n_logprobs >= 0) FillLogprobs(logits, sampled);
  Accept(sampled.token);
  return sampled;
}

}  // namespace longhaul
