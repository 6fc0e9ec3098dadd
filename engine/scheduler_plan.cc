// Scheduler: what the next step does for those who were admitted.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/scheduler.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// Of the cells that the cursor has not passed.
PrefillWork WorkOf(const Sequence& sequence, const PrefillCursor& cursor) {
  const int32_t n_layers = sequence.shape.n_layers;
  PrefillWork work;
  for (int64_t begin = cursor.begin(); begin < sequence.prompt_tokens();) {
    const int64_t end = cursor.EpochEnd(begin);
    work += sequence.CellsWork({.begin = begin,
                                .end = end,
                                .layer_begin = n_layers - cursor.LayersLeft(begin),
                                .layer_end = n_layers});
    begin = end;
  }
  return work;
}

}  // namespace

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
                              .pages = choice.lease->pages(),
                              .draw = sequence->NextDraw(choice)});
      rows_.push_back({.sequence = sequence.get(), .choice = &choice});
    }
  }
}

// A hidden slot; the store of a whole prompt where that is the order and nobody has it.
void Scheduler::TakeSlot(Sequence& sequence) {
  if (sequence.is_long) ++n_long_prefills_;
  if (layer_store_is_free_ && sequence.is_long && sequence.relatives.empty()) {
    layer_store_is_free_ = false;
    sequence.hidden_slot = static_cast<int32_t>(config_.max_prefills);
    sequence.cursor.GoByLayer();
    return;
  }
  sequence.hidden_slot = free_slots_.back();
  free_slots_.pop_back();
}

// By all that is known now, so that a wrong guess at admission does not last.
void Scheduler::Reclassify(Sequence& sequence) {
  const double total_us = sequence.service_us + RemainingUs(sequence);
  const bool is_long = total_us > static_cast<double>(config_.slice_us);
  if (is_long == sequence.is_long) return;
  sequence.is_long = is_long;
  n_long_prefills_ += is_long ? 1 : -1;
  ++resource_version_;
}

void Scheduler::PlanPrefill(int64_t now_us) {
  FollowLeaders();
  int32_t best_priority = std::numeric_limits<int32_t>::max();
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilling()) continue;
    Reclassify(*sequence);
    best_priority = std::min(best_priority, sequence->turn_priority);
  }
  std::vector<Sequence*> shorts;
  std::vector<Sequence*> longs;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilling() || sequence->leader != nullptr) continue;
    if (sequence->turn_priority != best_priority) continue;
    (sequence->is_long ? longs : shorts).push_back(sequence.get());
  }
  if (!shorts.empty() && (longs.empty() || short_credit_us_ > 0)) {
    PlanShort(shorts, !longs.empty(), now_us);
  } else if (!longs.empty()) {
    PlanLong(longs, now_us);
  }
}

// In order of admission, as many as fit. The first one gets its layer whatever it costs.
void Scheduler::PlanShort(std::span<Sequence* const> sequences, bool contended, int64_t now_us) {
  auto left_us = static_cast<double>(config_.slice_us);
  for (Sequence* sequence : sequences) {
    if (!slices_.empty() && RemainingUs(*sequence) > left_us) continue;
    left_us -= PlanSlices(*sequence, left_us, contended, now_us);
  }
}

// The one who had the least time. Whoever always wanted its turn is at or ahead of the clock; who
// came later, waited for a leader, or gave way to a better priority starts at the clock: there is
// no credit for time that it could not use.
void Scheduler::PlanLong(std::span<Sequence* const> sequences, int64_t now_us) {
  Sequence* next = nullptr;
  for (Sequence* sequence : sequences) {
    sequence->turn_us = std::max(sequence->turn_us, long_clock_us_);
    if (next == nullptr || sequence->turn_us < next->turn_us) next = sequence;
  }
  long_clock_us_ = next->turn_us;
  PlanSlices(*next, static_cast<double>(config_.slice_us), /*contended=*/false, now_us);
}

int32_t Scheduler::FittingLayers(const Sequence& sequence, PrefillCells cells, double budget_us,
                                 int32_t least) const {
  // The last layer may cost far less than one before it.
  if (cost_.PrefillUs(sequence.CellsWork(cells)) <= budget_us) return cells.n_layers();
  const int32_t most = cells.n_layers();
  cells.layer_end = cells.layer_begin + 1;
  const double layer_us = std::max(1e-3, cost_.PrefillUs(sequence.CellsWork(cells)));
  return static_cast<int32_t>(std::clamp<double>(std::floor(budget_us / layer_us), least, most));
}

double Scheduler::PlanSlices(Sequence& sequence, double budget_us, bool contended, int64_t now_us) {
  if (sequence.cursor.at_border()) {
    TakeOver(sequence);
    // Layer by layer the first step may already write to the last page.
    cache_.Append(*sequence.lease, sequence.cursor.by_layer() ? sequence.prompt_tokens()
                                                              : sequence.cursor.Next().end);
  }
  if (sequence.times.first_slice_us < 0) sequence.times.first_slice_us = now_us;

  PrefillCursor cursor = sequence.cursor;
  double planned_us = 0;
  while (!cursor.done() && slices_.size() < kMaxSlices) {
    PrefillCells cells = cursor.Next();
    const int32_t n_layers =
        FittingLayers(sequence, cells, budget_us - planned_us, planned_us == 0 ? 1 : 0);
    if (n_layers == 0) break;
    cells.layer_end = cells.layer_begin + n_layers;
    AddSlice(sequence, cells);
    const PrefillWork work = sequence.CellsWork(cells);
    slices_.push_back({.sequence = &sequence, .work = work, .contended = contended});
    planned_us += std::max(1e-3, cost_.PrefillUs(work));
    cursor.Complete(cells);
    // By epoch, the next one may find that another prompt published it.
    if (!cursor.by_layer()) break;
  }
  return planned_us;
}

void Scheduler::AddSlice(Sequence& sequence, const PrefillCells& cells) {
  SparseState* border_state = nullptr;
  if (sequence.cursor.by_layer() && !sequence.dense) {
    std::vector<SparseState>& borders = sequence.border_states;
    borders.resize(CeilDiv(sequence.prompt_tokens(), config_.epoch_tokens));
    border_state = &borders[cells.begin / config_.epoch_tokens];
    border_state->alpha.resize(sequence.sparse_state.alpha.size());
  }
  const std::span<const int32_t> prompt = sequence.request.prompt;
  std::span<const int32_t> logprob_tokens;
  if (sequence.request.n_prompt_logprobs >= 0 && cells.layer_end == shape_.n_layers) {
    const int64_t end = std::min(cells.end + 1, sequence.prompt_tokens());
    logprob_tokens = prompt.subspan(cells.begin + 1, end - cells.begin - 1);
  }
  plan_.prefill.push_back({.seq_id = sequence.id,
                           .begin = cells.begin,
                           .end = cells.end,
                           .layer_begin = cells.layer_begin,
                           .layer_end = cells.layer_end,
                           .prompt_tokens = sequence.prompt_tokens(),
                           .tokens = prompt.subspan(cells.begin, cells.end - cells.begin),
                           .pages = sequence.lease->pages().first(CeilDiv(cells.end, kPageTokens)),
                           .hidden_slot = sequence.hidden_slot,
                           .sparse = &sequence.sparse,
                           .sparse_state = &sequence.sparse_state,
                           .logprob_tokens = logprob_tokens,
                           .n_top_logprobs = std::max(0, sequence.request.n_prompt_logprobs),
                           .report_heads = sequence.request.report_heads,
                           .border_state = border_state});
}

PrefillWork Scheduler::WorkFrom(const Sequence& sequence, int64_t from) const {
  PrefillCursor cursor(sequence.prompt_tokens(), config_.epoch_tokens, shape_.n_layers);
  cursor.SkipTo(from);
  return WorkOf(sequence, cursor);
}

PrefillWork Scheduler::WorkLeft(const Sequence& sequence) const {
  return WorkOf(sequence, sequence.cursor);
}

}  // namespace longhaul
