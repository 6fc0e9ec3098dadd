// Scheduler: what the next step does for those who were admitted.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/scheduler.h"

namespace longhaul {

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

  const PrefillWork layer_work = CostModel::EpochWork(
      sequence.sparse, sequence.density, sequence.begin, sequence.end, sequence.prompt_tokens());
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
    work += CostModel::EpochWork(sequence.sparse, sequence.density, begin, end,
                                 sequence.prompt_tokens());
    begin = end;
  }
  return work * shape_.n_layers;
}

}  // namespace longhaul
