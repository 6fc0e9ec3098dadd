#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "engine/retry_after.h"
#include "fmt/format.h"
#include "kernels/base/check.h"

namespace longhaul {

namespace {

int64_t MaxPinnedPages(const EngineConfig& config, int32_t n_pages) {
  if (config.retry_keep_us == 0) return 0;
  return static_cast<int64_t>(config.retry_keep_share * n_pages);
}

double Seconds(int64_t us) { return static_cast<double>(us) * 1e-6; }

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, const ModelShape& shape, int32_t n_pages)
    : config_(config),
      shape_(shape),
      cost_(shape),
      cache_(n_pages, config.enable_prefix_caching, MaxPinnedPages(config, n_pages)),
      layer_store_is_free_(config.prefill_order == PrefillOrder::kLayer),
      short_credit_us_(kShortWeight * static_cast<double>(config.slice_us)) {
  for (int64_t slot = config.max_prefills - 1; slot >= 0; --slot) {
    free_slots_.push_back(static_cast<int32_t>(slot));
  }
}

// ---- arrival ----

void Scheduler::Add(Request request, std::shared_ptr<EventSink> sink, int64_t now_us,
                    int64_t waited_us) {
  auto sequence = std::make_unique<Sequence>(std::move(request), config_.sparse, std::move(sink),
                                             shape_, config_.epoch_tokens, now_us - waited_us);
  sequence->id = next_seq_id_++;
  GuessDensity(*sequence);
  const int64_t cached_tokens = cache_.Peek(PrefixRoot(*sequence), sequence->request.prompt,
                                            sequence->CacheRule(config_.epoch_tokens));
  sequence->expected_cached_tokens = cached_tokens;
  sequence->work_left = WorkFrom(*sequence, cached_tokens);
  const int64_t predicted_us = PredictTtftUs(*sequence, cached_tokens);
  if (absl::Status refusal = CheckDeadline(*sequence, predicted_us, now_us); !refusal.ok()) {
    ++counters_.n_refused_deadline;
    sequence->EmitDone(refusal, now_us);
    return;
  }
  sequence->sink->Emit(
      AcceptedEvent{.cached_tokens = cached_tokens, .predicted_ttft_us = predicted_us});
  if (sequence->request.report_progress) {
    EmitProgress(*sequence, Phase::kQueued, now_us, predicted_us);
  }
  const auto place = std::upper_bound(
      waiting_.begin(), waiting_.end(), sequence->request.priority,
      [](int32_t priority, const SequencePtr& s) { return priority < s->request.priority; });
  waiting_.insert(place, std::move(sequence));
}

absl::Status Scheduler::CheckDeadline(const Sequence& sequence, int64_t predicted_us,
                                      int64_t now_us) const {
  if (!sequence.request.deadline.has_value()) return absl::OkStatus();
  const int64_t left_us = sequence.times.deadline_us - now_us;
  if (left_us <= 0) {
    return absl::DeadlineExceededError("the deadline passed before the request could be taken");
  }
  if (predicted_us <= left_us) return absl::OkStatus();  // not known yet, too
  const int64_t alone_us = PrefillAloneUs(sequence, sequence.expected_cached_tokens);
  if (alone_us > left_us) {
    return absl::DeadlineExceededError(
        fmt::format("the prompt of {} tokens ({} cached) needs about {:.1f} s on an idle server, "
                    "its deadline is "
                    "in {:.1f} s; allow a longer timeout, shorten the prompt{}",
                    sequence.prompt_tokens(), sequence.expected_cached_tokens, Seconds(alone_us),
                    Seconds(left_us), sequence.dense ? ", or choose sparse prefill" : ""));
  }
  const int64_t retry_after_us = predicted_us - left_us;
  return WithRetryAfter(
      absl::ResourceExhaustedError(fmt::format(
          "the first token is expected in {:.1f} s because of the requests before it, the deadline "
          "is in {:.1f} s; try again in {:.1f} s or allow a longer timeout",
          Seconds(predicted_us), Seconds(left_us), Seconds(retry_after_us))),
      retry_after_us);
}

int64_t Scheduler::n_waiting_tokens() const {
  int64_t n_tokens = 0;
  for (const SequencePtr& sequence : waiting_) n_tokens += sequence->prompt_tokens();
  return n_tokens;
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
  if (!status.ok()) PinForRetry(sequence, now_us);
  // Pages first: whoever reads the last event may rely on them being free.
  FreeSlot(sequence);
  sequence.lease.reset();
  for (Choice& choice : sequence.choices) choice.lease.reset();
  sequence.EmitDone(status, now_us);
}

// The client may come back with the same prompt. One lease is enough: every choice holds it.
void Scheduler::PinForRetry(const Sequence& sequence, int64_t now_us) {
  CacheLease* lease = sequence.lease.get();
  for (const Choice& choice : sequence.choices) {
    if (lease == nullptr) lease = choice.lease.get();
  }
  if (lease != nullptr) cache_.Pin(*lease, now_us + config_.retry_keep_us);
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
  cache_.ExpirePins(now_us);
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
