// Sampler: logits to one token, in the order vLLM and Hugging Face use: penalties, logit bias,
// (greedy ends here), temperature, top-k, top-p, min-p, draw. Logprobs are of the raw model
// distribution (log-softmax of the logits before any change), as OpenAI and vLLM report them. One
// per sequence; holds its random state and token counts. Not thread safe.
//
// The part behind the logit bias is kernels/draw_token.h. Where nothing comes before it and no
// logprobs are wanted, a backend may do it where the logits are: NextDraw says what, Accept what
// came out, and the tokens are those of Sample.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/request.h"
#include "kernels/args.h"

namespace longhaul {

struct Sampled {
  int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top_logprobs;
};

class Sampler {
 public:
  // `prompt` is counted for the repetition penalty. `choice` varies the seed between choices.
  Sampler(const SamplingParams& params, std::span<const int32_t> prompt, int32_t choice,
          int32_t vocab_size);

  // logits: [V] f32, not modified. Tokens in `forbidden` are never chosen (min_tokens).
  Sampled Sample(std::span<const float> logits, std::span<const int32_t> forbidden);

  // Whether Sample with nothing forbidden is NextDraw on the logits as they are.
  bool is_plain() const;
  // The next token's; the same until it is known.
  TokenDraw NextDraw() const;
  void Accept(int32_t token);

 private:
  float Adjusted(int32_t token, float logit) const;
  // Fills adjusted_; -inf = never.
  void Adjust(std::span<const float> logits, std::span<const int32_t> forbidden);
  void FillLogprobs(std::span<const float> logits, Sampled& sampled) const;
  SamplingParams params_;
  uint64_t rng_state_;
  std::vector<bool> in_prompt_;                    // [V], only when the repetition penalty is on
  std::unordered_map<int32_t, int32_t> n_output_;  // occurrences in the output
  std::unordered_map<int32_t, float> bias_;
  std::vector<float> adjusted_;  // [V]
  std::vector<uint32_t> scratch_;
};

}  // namespace longhaul
