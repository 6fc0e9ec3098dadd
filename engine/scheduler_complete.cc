// Scheduler: what a finished step means for its sequences.
#include <algorithm>
#include <array>
#include <utility>

#include "engine/scheduler.h"
#include "fmt/format.h"
#include "kernels/base/check.h"

namespace longhaul {

void Scheduler::Complete(const StepResult& result, int64_t now_us) {
  if (result.decode.size() != rows_.size() || result.slices.size() != slices_.size()) {
    Fail(absl::InternalError(
             fmt::format("the executor answered {} decode rows and {} slices of {} and {}",
                         result.decode.size(), result.slices.size(), rows_.size(), slices_.size())),
         now_us);
    return;
  }
  cache_.ClearCopies();
  int64_t n_keys = 0;
  for (const DecodeRow& row : plan_.decode) n_keys += row.position + 1;
  cost_.ObserveDecode(static_cast<int64_t>(rows_.size()), n_keys,
                      static_cast<double>(result.decode_us));
  for (size_t i = 0; i < rows_.size(); ++i) {
    CompleteRow(rows_[i], result.decode[i], now_us);
  }
  for (size_t i = 0; i < slices_.size(); ++i) {
    CompleteSlice(slices_[i], plan_.prefill[i], result.slices[i], now_us);
  }
  EmitProgress(now_us);
  RemoveEnded();
}

void Scheduler::CompleteRow(const PlannedRow& row, const RowResult& result, int64_t now_us) {
  Sequence& sequence = *row.sequence;
  Choice& choice = *row.choice;
  if (sequence.ended) return;  // another choice of it failed in this step
  const bool drawn = result.logits.empty() && sequence.NextDraw(choice).has_value();
  const absl::Status status = drawn ? CheckToken(result.token, shape_.vocab_size)
                                    : CheckLogits(result.logits, shape_.vocab_size);
  if (!status.ok()) {
    End(sequence, status, now_us);
    return;
  }
  const int64_t n_tokens = sequence.DecodePosition(choice) + 1;
  cache_.SetComplete(*choice.lease, n_tokens);
  if (sequence.dense && n_tokens % kPageTokens == 0) PublishAnswer(sequence, choice);

  if (drawn) {
    sequence.AcceptDrawn(choice, result.token);
  } else {
    sequence.AcceptLogits(choice, result.logits);
  }
  CountChoice(choice, sequence);
  if (!choice.finished()) return;
  choice.lease.reset();
  ++resource_version_;
  if (sequence.AllFinished()) End(sequence, absl::OkStatus(), now_us);
}

// The page that was just filled; part of it may still be prompt.
void Scheduler::PublishAnswer(Sequence& sequence, Choice& choice) {
  const int64_t n_tokens = choice.lease->n_tokens();
  const int64_t first = n_tokens - kPageTokens;
  if (choice.lease->published_tokens() != first) return;
  const int64_t n_prompt = sequence.prompt_tokens();
  std::array<int32_t, kPageTokens> tokens;
  for (int64_t i = first; i < n_tokens; ++i) {
    tokens[i - first] = i < n_prompt ? sequence.request.prompt[i] : choice.output[i - n_prompt];
  }
  cache_.Publish(*choice.lease, tokens, nullptr);
}

void Scheduler::CompleteSlice(const PlannedSlice& planned, const PrefillSlice& slice,
                              const SliceResult& result, int64_t now_us) {
  Sequence& sequence = *planned.sequence;
  LearnFrom(planned, slice, result);
  ChargeTurn(planned, static_cast<double>(result.elapsed_us));
  sequence.report.Merge(result.report);

  sequence.cursor.Complete({.begin = slice.begin,
                            .end = slice.end,
                            .layer_begin = slice.layer_begin,
                            .layer_end = slice.layer_end});
  if (sequence.cursor.done()) {
    if (absl::Status status = CheckLogits(result.logits, shape_.vocab_size); !status.ok()) {
      End(sequence, status, now_us);
      return;
    }
  }
  if (!result.prompt_logprobs.tokens.empty()) {
    absl::Status status = CheckPromptLogprobs(result.prompt_logprobs);
    if (!status.ok()) {
      End(sequence, status, now_us);
      return;
    }
    sequence.sink->Emit(result.prompt_logprobs);
  }
  if (slice.layer_end == shape_.n_layers) CompleteEpoch(sequence, slice.begin, slice.end);
  sequence.work_left = WorkLeft(sequence);
  if (sequence.cursor.done()) StartDecode(sequence, result.logits, now_us);
}

// Time counts where somebody else wanted it.
void Scheduler::ChargeTurn(const PlannedSlice& planned, double elapsed_us) {
  Sequence& sequence = *planned.sequence;
  sequence.service_us += elapsed_us;
  if (sequence.is_long) {
    sequence.turn_us += elapsed_us;
    short_credit_us_ = std::min(kShortWeight * static_cast<double>(config_.slice_us),
                                short_credit_us_ + kShortWeight * elapsed_us);
  } else if (planned.contended) {
    short_credit_us_ -= elapsed_us;
  }
}

void Scheduler::CompleteEpoch(Sequence& sequence, int64_t begin, int64_t end) {
  CacheLease& lease = *sequence.lease;
  cache_.SetComplete(lease, end);
  const int64_t from = lease.published_tokens();
  const int64_t to = sequence.PublishableTokens(end, config_.epoch_tokens);
  if (to > from) {
    const std::span<const int32_t> prompt = sequence.request.prompt;
    PrefixState state;
    if (!sequence.border_states.empty()) {
      SparseState& border = sequence.border_states[begin / config_.epoch_tokens];
      state = std::make_shared<const SparseState>(std::move(border));
    } else if (!sequence.dense) {
      state = std::make_shared<const SparseState>(sequence.sparse_state);
    }
    cache_.Publish(lease, prompt.subspan(from, to - from), std::move(state));
  }
  ++resource_version_;  // others may match what was published
}

void Scheduler::StartDecode(Sequence& sequence, std::span<const float> logits, int64_t now_us) {
  FreeSlot(sequence);
  KeepDensity(sequence);
  if (sequence.request.report_progress) {
    EmitProgress(sequence, Phase::kDecode, now_us, 0);
  }
  sequence.StartChoices(logits, &next_seq_id_, now_us);
  std::vector<Choice*> going_on;
  for (Choice& choice : sequence.choices) {
    CountChoice(choice, sequence);
    if (!choice.finished()) going_on.push_back(&choice);
  }
  if (going_on.empty()) {
    End(sequence, absl::OkStatus(), now_us);
    return;
  }
  // The first of them inherits the lease, with the partial page that the others copy.
  const int64_t n_pages = PagesPerChoice(sequence.prompt_tokens(), sequence.request.max_tokens);
  for (size_t i = 1; i < going_on.size(); ++i) {
    going_on[i]->lease = cache_.Fork(*sequence.lease, n_pages);
  }
  const int64_t n_own = sequence.prompt_tokens() % kPageTokens != 0 ? 1 : 0;
  cache_.TrimReserve(*sequence.lease, n_pages - n_own);
  going_on[0]->lease = std::move(sequence.lease);
}

void Scheduler::FreeSlot(Sequence& sequence) {
  if (sequence.hidden_slot < 0) return;
  UnlinkRelatives(sequence);
  if (sequence.cursor.by_layer()) {
    layer_store_is_free_ = true;
  } else {
    free_slots_.push_back(sequence.hidden_slot);
  }
  sequence.hidden_slot = -1;
  sequence.border_states = {};
  if (sequence.is_long) --n_long_prefills_;
  ++resource_version_;
}

void Scheduler::CountChoice(const Choice& choice, const Sequence& sequence) {
  if (sequence.request.max_tokens > 0) ++counters_.generation_tokens;
  if (choice.finish == FinishReason::kStop) ++counters_.n_finished_stop;
  if (choice.finish == FinishReason::kLength) ++counters_.n_finished_length;
}

}  // namespace longhaul
