// Sequence: one request inside the engine, from the queue to its last token, with its n choices.
// Created and owned by the scheduler; engine thread only. It knows how to turn logits into events;
// when it runs and which pages it gets is the scheduler's business.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/cost_model.h"
#include "engine/prefill_cursor.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/step_plan.h"
#include "kvcache/cache_manager.h"

namespace longhaul {

// Where a request's events go. Emit is called on the engine thread.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void Emit(StreamEvent event) = 0;
  virtual bool cancelled() const = 0;
};

// Pages a request holds at most, nothing shared with others: all choices share the prompt's full
// pages. The last token of an answer is never fed back, so it needs no place.
int64_t PagesNeeded(int64_t prompt_tokens, int64_t max_tokens, int64_t n_choices);
// ... of one choice beyond the prompt's full pages.
int64_t PagesPerChoice(int64_t prompt_tokens, int64_t max_tokens);

// Attention is exact in every row, so keys and values depend on the tokens before them alone.
bool IsDensePolicy(const SparseOptions& options);

// InternalError when the logits hold NaN or +inf or nothing finite.
absl::Status CheckLogits(std::span<const float> logits, int32_t vocab_size);
// The same of a token that was drawn from them elsewhere.
absl::Status CheckToken(int32_t token, int32_t vocab_size);

// InternalError when a token's logprob is NaN.
absl::Status CheckPromptLogprobs(const PromptLogprobsEvent& logprobs);

// One of the n answers.
struct Choice {
  Choice(int64_t id, int32_t choice_index, Sampler choice_sampler)
      : seq_id(id), index(choice_index), sampler(std::move(choice_sampler)) {}
  bool finished() const { return finish.has_value(); }

  int64_t seq_id;
  int32_t index;
  Sampler sampler;
  std::vector<int32_t> output;
  std::unique_ptr<CacheLease> lease;  // null before the second token and when finished
  std::optional<FinishReason> finish;
};

struct SequenceTimes {
  int64_t accepted_us = 0;   // by the front end
  int64_t submitted_us = 0;  // by the engine
  int64_t deadline_us = std::numeric_limits<int64_t>::max();
  int64_t first_slice_us = -1;
  int64_t first_token_us = -1;
  int64_t last_progress_us = -1;
};

struct Sequence;

// Two prompts that are prefilled at the same time and begin alike, under the same prefix root.
struct Relative {
  Sequence* sequence = nullptr;
  int64_t common_tokens = 0;
};

struct Sequence {
  Sequence(Request request, const SparseOptions& default_sparse, std::shared_ptr<EventSink> sink,
           const ModelShape& shape, int64_t epoch_tokens, int64_t now_us);

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt.size()); }
  bool prefilling() const { return !cursor.done(); }
  // Position at which the choice's last token is fed.
  int64_t DecodePosition(const Choice& choice) const {
    return prompt_tokens() + static_cast<int64_t>(choice.output.size()) - 1;
  }

  // Predicted.
  PrefillWork CellsWork(const PrefillCells& cells) const;
  // Whether all rows pass the last layer, or only the prompt's last one.
  bool ReadsAllRows() const { return request.n_prompt_logprobs >= 0; }

  // How far cached pages may be taken over. At least one token is always left to compute: its
  // logits are the answer's beginning. The rows that attend densely whatever the policy (the last
  // ones of the prompt) are left out under a sparse policy, as are epochs that are not whole.
  // Nothing may be taken over where the logits of every prompt token are wanted.
  MatchRule CacheRule(int64_t epoch_tokens) const;
  // Tokens [0, result) may be published once tokens [0, end) are computed.
  int64_t PublishableTokens(int64_t end, int64_t epoch_tokens) const;
  // Back to the queue: gives back the pages of the prefix cache.
  void ForgetMatch();

  // The prompt is computed: makes the choices and gives each its first token (none if max_tokens is
  // 0). Logits were checked.
  void StartChoices(std::span<const float> logits, int64_t* next_seq_id, int64_t now_us);
  // How the choice's next token is drawn, where its logits are wanted for nothing else.
  std::optional<TokenDraw> NextDraw(const Choice& choice) const;
  // Samples the choice's next token, emits it, and marks the choice when it ends.
  void AcceptLogits(Choice& choice, std::span<const float> logits);
  // The same with the token that NextDraw gave.
  void AcceptDrawn(Choice& choice, int32_t token);
  bool AllFinished() const;

  // Tokens that must not come next (min_tokens).
  std::span<const int32_t> Forbidden(const Choice& choice) const;
  void EmitToken(Choice& choice, Sampled sampled);

  ProgressEvent Progress(Phase phase, int64_t now_us, int64_t eta_us) const;
  void EmitDone(const absl::Status& status, int64_t now_us);

  const Request request;
  const SparseOptions sparse;
  const bool dense;  // IsDensePolicy(sparse)
  const std::shared_ptr<EventSink> sink;
  const ModelShape& shape;
  int64_t id = 0;
  SequenceTimes times;
  bool ended = false;  // DoneEvent emitted, holds nothing any more

  // Prefill
  std::unique_ptr<CacheLease> lease;  // moves to the choices when the prompt is done
  int64_t cached_tokens = 0;
  PrefillCursor cursor;
  int32_t hidden_slot = -1;
  SparseState sparse_state;
  // Layer by layer under a sparse policy: the state behind each epoch of the grid, as far as known.
  std::vector<SparseState> border_states;
  SparseReport report;
  DensityModel density;
  PrefillWork work_left;               // of the cells that the cursor has not passed
  bool is_long = false;                // all its prefill does not fit into one slice
  double service_us = 0;               // time spent on it
  double turn_us = 0;                  // ... on the clock of the long prompts' turns
  int32_t turn_priority = 0;           // its own, or better: that of one who waits for it
  std::vector<Relative> relatives;     // prompts in flight with a common beginning
  Sequence* leader = nullptr;          // computes now what this one would have to compute next
  int64_t expected_cached_tokens = 0;  // of the prompt while it waits: what the cache had last
  int64_t n_overtaken = 0;             // admissions of others while it waited for pages
  uint64_t refused_at = 0;             // resource version of the last refusal
  bool refused_for_slot = false;

  std::vector<Choice> choices;
};

}  // namespace longhaul
