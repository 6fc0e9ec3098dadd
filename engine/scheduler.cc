#include "engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
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

// ---- admission ----

void Scheduler::AdmitWaiting() {
  Sequence* first_blocked = nullptr;
  for (SequencePtr& sequence : waiting_) {
    if (first_blocked != nullptr && first_blocked->n_overtaken >= kMaxOvertakes) break;
    if (free_slots_.empty()) break;
    const Admission admission = TryAdmit(*sequence);
    if (admission == Admission::kAdmitted) {
      if (first_blocked != nullptr) ++first_blocked->n_overtaken;
      running_.push_back(std::move(sequence));
    } else if (admission == Admission::kNoRoom && first_blocked == nullptr) {
      first_blocked = sequence.get();
    }
  }
  std::erase(waiting_, nullptr);
}

Scheduler::Admission Scheduler::TryAdmit(Sequence& sequence) {
  const Request& request = sequence.request;
  if (n_running_choices_ + request.n > config_.max_num_seqs) return Admission::kNoRoom;
  // Matching a long prompt costs milliseconds: not again before something changed.
  if (sequence.refused_at == resource_version_) {
    return sequence.refused_for_slot ? Admission::kNoSlot : Admission::kNoRoom;
  }

  sequence.lease = cache_.Open(PrefixRoot(sequence));
  TakeMatch(sequence);
  sequence.later_work = LaterWork(sequence, sequence.begin);
  sequence.is_long = cost_.PrefillUs(sequence.later_work) > static_cast<double>(config_.slice_us);
  const int64_t max_long = std::max<int64_t>(1, config_.max_prefills - 1);
  const int64_t n_new_pages = PagesNeeded(sequence.prompt_tokens(), request.max_tokens, request.n) -
                              sequence.lease->n_pages();
  const bool no_slot = sequence.is_long && n_long_prefills_ >= max_long;
  if (no_slot || !cache_.Reserve(*sequence.lease, n_new_pages)) {
    sequence.ForgetMatch();
    sequence.refused_at = resource_version_;
    sequence.refused_for_slot = no_slot;
    return no_slot ? Admission::kNoSlot : Admission::kNoRoom;
  }

  counters_.prefix_queried_tokens += sequence.prompt_tokens();
  counters_.prefix_hit_tokens += sequence.cached_tokens;
  counters_.prompt_tokens += sequence.prompt_tokens();
  n_running_choices_ += request.n;
  sequence.hidden_slot = free_slots_.back();
  free_slots_.pop_back();
  if (sequence.is_long) {
    ++n_long_prefills_;
    // It has not earned the time that the others already had.
    double least = std::numeric_limits<double>::max();
    for (const SequencePtr& other : running_) {
      if (other != nullptr && other->prefilling() && other->is_long) {
        least = std::min(least, other->service_us);
      }
    }
    sequence.service_us = n_long_prefills_ > 1 ? least : 0;
  }
  return Admission::kAdmitted;
}

// Takes over cached pages, also those that another prompt published while this one was under way.
void Scheduler::TakeMatch(Sequence& sequence) {
  const int64_t known = cache_.Match(*sequence.lease, sequence.request.prompt,
                                     sequence.CacheRule(config_.epoch_tokens));
  if (known > sequence.begin) {
    if (sequence.lease->state() != nullptr) {
      sequence.sparse_state = *static_cast<const SparseState*>(sequence.lease->state().get());
    }
    sequence.cached_tokens += known - sequence.begin;
    sequence.begin = known;
  }
  sequence.end = sequence.begin;
}

std::string Scheduler::PrefixRoot(const Sequence& sequence) const {
  const std::string policy = sequence.dense ? "dense" : sequence.sparse.CacheKey();
  return fmt::format("{:016x}|{}|{}|{}|{}", config_.model_digest, DTypeName(config_.kv_dtype),
                     config_.epoch_tokens, policy, sequence.request.cache_salt);
}

// ---- planning ----

const StepPlan& Scheduler::Plan(int64_t now_us) {
  plan_ = StepPlan();
  rows_.clear();
  slices_.clear();
  Reap(now_us);
  AdmitWaiting();
  PlanDecode();
  PlanPrefill(now_us);
  for (const PendingCopy& copy : cache_.pending_copies()) {
    plan_.copies.push_back({.src = copy.src.page(), .dst = copy.dst.page()});
  }
  return plan_;
}

void Scheduler::PlanDecode() {
  for (const SequencePtr& sequence : running_) {
    for (Choice& choice : sequence->choices) {
      if (choice.finished()) continue;
      const int64_t position = sequence->DecodePosition(choice);
      cache_.Append(*choice.lease, position + 1);
      plan_.decode.push_back({.seq_id = choice.seq_id,
                              .token = choice.output.back(),
                              .position = position,
                              .pages = choice.lease->pages()});
      rows_.push_back({.sequence = sequence.get(), .choice = &choice});
    }
  }
}

void Scheduler::PlanPrefill(int64_t now_us) {
  int32_t best_priority = std::numeric_limits<int32_t>::max();
  bool any = false;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilling()) continue;
    best_priority = std::min(best_priority, sequence->request.priority);
    any = true;
  }
  if (!any) return;
  std::vector<Sequence*> shorts;
  Sequence* next_long = nullptr;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilling() || sequence->request.priority != best_priority) continue;
    if (!sequence->is_long) {
      shorts.push_back(sequence.get());
    } else if (next_long == nullptr || sequence->service_us < next_long->service_us) {
      next_long = sequence.get();
    }
  }
  const auto budget_us = static_cast<double>(config_.slice_us);
  if (shorts.empty() || (next_long != nullptr && last_slice_was_short_)) {
    PlanSlice(*next_long, budget_us, now_us);
    last_slice_was_short_ = false;
    return;
  }
  double left_us = budget_us;
  for (Sequence* sequence : shorts) {
    // The first one gets its layer whatever it costs; the others only if they fit.
    if (!slices_.empty() && RemainingUs(*sequence) > left_us) continue;
    left_us -= PlanSlice(*sequence, left_us, now_us);
  }
  last_slice_was_short_ = true;
}

double Scheduler::PlanSlice(Sequence& sequence, double budget_us, int64_t now_us) {
  if (sequence.next_layer == 0) {
    TakeMatch(sequence);
    sequence.end = sequence.EpochEnd(sequence.begin, config_.epoch_tokens);
    sequence.later_work = LaterWork(sequence, sequence.end);
    cache_.Append(*sequence.lease, sequence.end);
  }
  if (sequence.times.first_slice_us < 0) sequence.times.first_slice_us = now_us;

  const PrefillWork layer_work =
      CostModel::EpochWork(sequence.sparse, sequence.density, sequence.begin, sequence.end);
  const double layer_us = std::max(1e-3, cost_.PrefillUs(layer_work));
  const int32_t n_left = shape_.n_layers - sequence.next_layer;
  const auto n_layers =
      static_cast<int32_t>(std::clamp<double>(std::floor(budget_us / layer_us), 1, n_left));

  const std::span<const int32_t> prompt = sequence.request.prompt;
  plan_.prefill.push_back({.seq_id = sequence.id,
                           .begin = sequence.begin,
                           .end = sequence.end,
                           .layer_begin = sequence.next_layer,
                           .layer_end = sequence.next_layer + n_layers,
                           .prompt_tokens = sequence.prompt_tokens(),
                           .tokens = prompt.subspan(sequence.begin, sequence.end - sequence.begin),
                           .pages = sequence.lease->pages(),
                           .hidden_slot = sequence.hidden_slot,
                           .sparse = &sequence.sparse,
                           .sparse_state = &sequence.sparse_state});
  slices_.push_back({.sequence = &sequence, .work = layer_work * n_layers});
  return layer_us * n_layers;
}

PrefillWork Scheduler::LaterWork(const Sequence& sequence, int64_t from) const {
  PrefillWork work;
  for (int64_t begin = from; begin < sequence.prompt_tokens();) {
    const int64_t end = sequence.EpochEnd(begin, config_.epoch_tokens);
    work += CostModel::EpochWork(sequence.sparse, sequence.density, begin, end);
    begin = end;
  }
  return work * shape_.n_layers;
}

// ---- progress ----

double Scheduler::RemainingUs(const Sequence& sequence) const {
  double remaining_us = cost_.PrefillUs(sequence.later_work);
  if (sequence.end > sequence.begin) {
    const PrefillWork layer_work =
        CostModel::EpochWork(sequence.sparse, sequence.density, sequence.begin, sequence.end);
    remaining_us += cost_.PrefillUs(layer_work * (shape_.n_layers - sequence.next_layer));
  }
  return remaining_us;
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

// In the queue: everything ahead, then its own prefill. How long running answers hold pages that it
// may wait for is not known.
int64_t Scheduler::QueuedEtaUs(const Sequence& sequence) const {
  if (!cost_.learned()) return -1;
  double total_us = cost_.PrefillUs(sequence.later_work);
  for (const SequencePtr& other : running_) {
    if (other->prefilling()) total_us += RemainingUs(*other);
  }
  for (const SequencePtr& other : waiting_) {
    if (other.get() == &sequence || other->request.priority > sequence.request.priority) break;
    total_us += cost_.PrefillUs(other->later_work);
  }
  return static_cast<int64_t>(total_us);
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

absl::Status Scheduler::CheckIntegrity() const { return cache_.CheckIntegrity(); }

}  // namespace longhaul
