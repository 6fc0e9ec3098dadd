#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "fmt/format.h"
#include "kernels/base/check.h"

namespace longhaul {

Scheduler::Scheduler(const EngineConfig& config, const ModelShape& shape, int32_t n_pages)
    : config_(config), shape_(shape), cost_(shape), cache_(n_pages, config.enable_prefix_caching) {
  for (int64_t slot = config.max_prefills - 1; slot >= 0; --slot) {
    free_slots_.push_back(static_cast<int32_t>(slot));
  }
}

void Scheduler::Add(Request request, std::shared_ptr<EventSink> sink, int64_t now_us) {
  auto sequence = std::make_unique<Sequence>(std::move(request), config_.sparse, std::move(sink),
                                             shape_, now_us);
  sequence->id = next_seq_id_++;
  sequence->later_work = LaterWork(*sequence, 0);
  sequence->sink->Emit(AcceptedEvent{});
  if (sequence->request.report_progress) {
    sequence->times.last_progress_us = now_us;
    sequence->sink->Emit(sequence->Progress(Phase::kQueued, now_us, QueuedEtaUs(*sequence)));
  }
  const auto place = std::upper_bound(
      waiting_.begin(), waiting_.end(), sequence->request.priority,
      [](int32_t priority, const SequencePtr& s) { return priority < s->request.priority; });
  waiting_.insert(place, std::move(sequence));
}

// ---- ending ----

void Scheduler::EndMatching(std::vector<SequencePtr>& list, int64_t now_us) {
  for (const SequencePtr& sequence : list) {
    if (sequence->sink->cancelled()) {
      End(*sequence, absl::CancelledError("the request was cancelled"), now_us);
    } else if (now_us >= sequence->times.deadline_us) {
      End(*sequence,
          absl::DeadlineExceededError(
              fmt::format("the deadline passed after {} of {} prompt tokens",
                          sequence->Progress(Phase::kPrefill, now_us, -1).processed_tokens,
                          sequence->prompt_tokens())),
          now_us);
    }
  }
}

void Scheduler::End(Sequence& sequence, const absl::Status& status, int64_t now_us) {
  if (sequence.ended) return;
  sequence.ended = true;
  if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
    ++counters_.n_cancelled;
  } else if (!status.ok()) {
    ++counters_.n_failed;
  }
  // Pages first: whoever reads the last event may rely on them being free.
  FreeSlot(sequence);
  sequence.lease.reset();
  for (Choice& choice : sequence.choices) choice.lease.reset();
  sequence.EmitDone(status, now_us);
}

void Scheduler::RemoveEnded() {
  const size_t n_waiting = waiting_.size();
  std::erase_if(waiting_, [](const SequencePtr& sequence) { return sequence->ended; });
  const size_t n_removed = std::erase_if(running_, [this](const SequencePtr& sequence) {
    if (sequence->ended) n_running_choices_ -= sequence->request.n;
    return sequence->ended;
  });
  if (n_removed > 0 || waiting_.size() != n_waiting) ++resource_version_;
}

void Scheduler::Reap(int64_t now_us) {
  EndMatching(waiting_, now_us);
  EndMatching(running_, now_us);
  RemoveEnded();
}

void Scheduler::EndAll(const absl::Status& status, int64_t now_us) {
  for (const SequencePtr& sequence : waiting_) End(*sequence, status, now_us);
  for (const SequencePtr& sequence : running_) End(*sequence, status, now_us);
  cache_.ClearCopies();
  RemoveEnded();
}

void Scheduler::Fail(const absl::Status& status, int64_t now_us) {
  for (const PlannedRow& row : rows_) End(*row.sequence, status, now_us);
  for (const PlannedSlice& slice : slices_) End(*slice.sequence, status, now_us);
  cache_.ClearCopies();
  RemoveEnded();
}

absl::Status Scheduler::CheckIntegrity() const { return cache_.CheckIntegrity(); }

}  // namespace longhaul
