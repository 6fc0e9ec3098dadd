// Scheduler: how long a request still takes, and the progress events that say so.
#include <algorithm>
#include <utility>

#include "engine/scheduler.h"

namespace longhaul {

void Scheduler::LearnFrom(const PlannedSlice& planned, const PrefillSlice& slice,
                          const SliceResult& result) {
  // What it kept was predicted when it was planned; now it is known.
  PrefillWork work = planned.work;
  if (work.kept_pairs > 0 && result.report.causal_pairs > 0) {
    Sequence& sequence = *planned.sequence;
    const double exact_pairs = work.dense_pairs;  // of the rows that are exact at the prompt's end
    const auto all_pairs = static_cast<double>(result.report.kept_pairs);
    work.kept_pairs = std::max(0.0, all_pairs / shape_.n_heads - exact_pairs);
    const int32_t n_layers = slice.layer_end - slice.layer_begin;
    const int64_t sparse_end =
        std::min(slice.end, slice.prompt_tokens - sequence.sparse.dense_tail_tokens);
    sequence.density.Observe(slice.begin, sparse_end, n_layers, work.kept_pairs / n_layers);
  }
  cost_.ObservePrefill(work, static_cast<double>(result.elapsed_us));
}

double Scheduler::RemainingUs(const Sequence& sequence) const {
  return cost_.PrefillUs(sequence.work_left);
}

// Prompts share the time evenly, so each other one costs as much as this one still needs, at most
// what it needs itself. Decode rows ride along with every slice.
int64_t Scheduler::EtaUs(const Sequence& sequence) const {
  const double own_us = RemainingUs(sequence);
  double total_us = own_us;
  int64_t n_rows = 0;
  int64_t n_keys = 0;
  for (const SequencePtr& other : running_) {
    if (other->prefilling() && other.get() != &sequence) {
      total_us += std::min(own_us, RemainingUs(*other));
    }
    for (const Choice& choice : other->choices) {
      if (choice.finished()) continue;
      ++n_rows;
      n_keys += other->DecodePosition(choice) + 1;
    }
  }
  const double decode_share =
      cost_.DecodeUs(n_rows, n_keys) / static_cast<double>(config_.slice_us);
  return static_cast<int64_t>(total_us * (1.0 + decode_share));
}

int64_t Scheduler::PrefillAloneUs(const Sequence& sequence, int64_t cached_tokens) const {
  if (!cost_.learned()) return -1;
  return static_cast<int64_t>(cost_.PrefillUs(WorkFrom(sequence, cached_tokens)));
}

// In the queue: everything ahead, then its own prefill. How long running answers hold pages that it
// may wait for is not known.
int64_t Scheduler::PredictTtftUs(const Sequence& sequence, int64_t cached_tokens) const {
  if (!cost_.learned()) return -1;
  double total_us = cost_.PrefillUs(WorkFrom(sequence, cached_tokens));
  for (const SequencePtr& other : running_) {
    if (other->prefilling()) total_us += RemainingUs(*other);
  }
  for (const SequencePtr& other : waiting_) {
    if (other.get() == &sequence || other->request.priority > sequence.request.priority) break;
    total_us += cost_.PrefillUs(other->work_left);
  }
  return static_cast<int64_t>(total_us);
}

int64_t Scheduler::QueuedEtaUs(const Sequence& sequence) const {
  return PredictTtftUs(sequence, sequence.expected_cached_tokens);
}

void Scheduler::EmitQueuedProgress(int64_t now_us) {
  constexpr int64_t kIntervalUs = 500'000;
  for (const SequencePtr& sequence : waiting_) {
    if (!sequence->request.report_progress) continue;
    if (now_us - sequence->times.last_progress_us < kIntervalUs) continue;
    sequence->times.last_progress_us = now_us;
    sequence->sink->Emit(sequence->Progress(Phase::kQueued, now_us, QueuedEtaUs(*sequence)));
  }
}

}  // namespace longhaul
