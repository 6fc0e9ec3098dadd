// Scheduler: who may start. Admission reserves pages, a slot and room in the batch.
#include <algorithm>
#include <limits>
#include <utility>

#include "engine/scheduler.h"
#include "fmt/format.h"

namespace longhaul {

void Scheduler::AdmitWaiting() {
  constexpr int32_t kNobody = std::numeric_limits<int32_t>::max();
  slot_wanted_by_ = kNobody;
  int32_t best_priority = kNobody;  // of those that prefill
  for (const SequencePtr& sequence : running_) {
    if (sequence->prefilling()) best_priority = std::min(best_priority, sequence->request.priority);
  }
  Sequence* first_blocked = nullptr;
  for (SequencePtr& sequence : waiting_) {
    const int32_t priority = sequence->request.priority;
    // It would get no time before the better ones are done, so it takes no slot and no page yet
    // that another better one may want.
    if (priority > best_priority) break;
    if (first_blocked != nullptr && first_blocked->n_overtaken >= kMaxOvertakes) break;
    if (free_slots_.empty()) {
      slot_wanted_by_ = priority;
      break;
    }
    const Admission admission = TryAdmit(*sequence);
    if (admission == Admission::kAdmitted) {
      best_priority = priority;
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
  sequence.is_long = RemainingUs(sequence) > static_cast<double>(config_.slice_us);
  const int64_t max_long = std::max<int64_t>(1, config_.max_prefills - 1);
  const int64_t n_new_pages = PagesNeeded(sequence.prompt_tokens(), request.max_tokens, request.n) -
                              sequence.lease->n_pages();
  const bool no_slot = sequence.is_long && n_long_prefills_ >= max_long;
  if (no_slot || !cache_.Reserve(*sequence.lease, n_new_pages)) {
    sequence.expected_cached_tokens = sequence.cached_tokens;
    sequence.ForgetMatch();
    sequence.refused_at = resource_version_;
    sequence.refused_for_slot = no_slot;
    return no_slot ? Admission::kNoSlot : Admission::kNoRoom;
  }

  counters_.prefix_queried_tokens += sequence.prompt_tokens();
  counters_.prefix_hit_tokens += sequence.cached_tokens;
  counters_.prompt_tokens += sequence.prompt_tokens();
  n_running_choices_ += request.n;
  LinkRelatives(sequence);
  TakeSlot(sequence);
  return Admission::kAdmitted;
}

// Takes over cached pages, also those that another prompt published while this one was under way.
void Scheduler::TakeMatch(Sequence& sequence) {
  const int64_t known = cache_.Match(*sequence.lease, sequence.request.prompt,
                                     sequence.CacheRule(config_.epoch_tokens));
  if (known > sequence.cursor.begin()) {
    if (sequence.lease->state() != nullptr) {
      sequence.sparse_state = *static_cast<const SparseState*>(sequence.lease->state().get());
    }
    sequence.cached_tokens += known - sequence.cursor.begin();
    sequence.cursor.SkipTo(known);
  }
  sequence.work_left = WorkLeft(sequence);
}

std::string Scheduler::PrefixRoot(const Sequence& sequence) const {
  const std::string policy = sequence.dense ? "dense" : sequence.sparse.CacheKey();
  return fmt::format("{:016x}|{}|{}|{}", config_.model_digest, config_.epoch_tokens, policy,
                     sequence.request.cache_salt);
}

}  // namespace longhaul
