// Scheduler: how long a request still takes, and the progress events that say so.
#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/scheduler.h"
#include "kernels/base/check.h"

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
    const bool last_is_short = slice.layer_end == shape_.n_layers && !sequence.ReadsAllRows();
    const int32_t n_layers = slice.layer_end - slice.layer_begin - (last_is_short ? 1 : 0);
    const int64_t sparse_end =
        std::min(slice.end, slice.prompt_tokens - sequence.sparse.dense_tail_tokens);
    sequence.density.Observe(slice.begin, sparse_end, n_layers, work.kept_pairs / n_layers);
  }
  cost_.ObservePrefill(work, static_cast<double>(result.elapsed_us));
}

// What short prompts keep says little of long ones: of fewer keys a larger share matters.
void Scheduler::GuessDensity(Sequence& sequence) const {
  const auto last = last_density_.find(sequence.sparse.mode);
  if (last == last_density_.end() || sequence.prompt_tokens() > 2 * last->second.n_tokens) return;
  sequence.density.StartFrom(last->second.density);
}

void Scheduler::KeepDensity(const Sequence& sequence) {
  if (sequence.dense) return;
  last_density_.insert_or_assign(
      sequence.sparse.mode,
      LastDensity{.n_tokens = sequence.prompt_tokens(), .density = sequence.density});
}

double Scheduler::RemainingUs(const Sequence& sequence) const {
  return cost_.PrefillUs(sequence.work_left);
}

double Scheduler::DecodeStepUs() const {
  int64_t n_rows = 0;
  int64_t n_keys = 0;
  for (const SequencePtr& sequence : running_) {
    for (const Choice& choice : sequence->choices) {
      if (choice.finished()) continue;
      ++n_rows;
      n_keys += sequence->DecodePosition(choice) + 1;
    }
  }
  return cost_.DecodeUs(n_rows, n_keys);
}

double Scheduler::PredictedStepUs() const {
  int64_t n_keys = 0;
  for (const DecodeRow& row : plan_.decode) n_keys += row.position + 1;
  double us = cost_.DecodeUs(static_cast<int64_t>(plan_.decode.size()), n_keys);
  for (const PlannedSlice& slice : slices_) us += cost_.PrefillUs(slice.work);
  return us;
}

// Every running answer decodes a token between two slices.
int64_t Scheduler::WithDecodeUs(double prefill_us) const {
  const double n_steps = std::ceil(prefill_us / static_cast<double>(config_.slice_us));
  return static_cast<int64_t>(prefill_us + n_steps * DecodeStepUs());
}

int64_t Scheduler::PrefillAloneUs(const Sequence& sequence, int64_t cached_tokens) const {
  if (!cost_.learned()) return -1;
  return static_cast<int64_t>(cost_.PrefillUs(WorkFrom(sequence, cached_tokens)));
}

// Those that prefill, then those that wait, and `newcomer` at the place it would get.
Scheduler::Outlook Scheduler::Forecast(const Sequence* newcomer, double newcomer_us) const {
  const auto slice_us = static_cast<double>(config_.slice_us);
  Outlook outlook;
  std::vector<ForecastJob> jobs;
  const auto add = [&](const Sequence& sequence, double left_us) {
    outlook.sequences.push_back(&sequence);
    jobs.push_back(
        {.left_us = left_us, .priority = sequence.request.priority, .is_long = left_us > slice_us});
  };
  for (const SequencePtr& sequence : running_) {
    if (!sequence->prefilling()) continue;
    add(*sequence, RemainingUs(*sequence));
    jobs.back().priority = sequence->turn_priority;
    jobs.back().is_long = sequence->is_long;
  }
  const auto n_admitted = static_cast<int64_t>(jobs.size());
  for (int64_t i = 0; i < n_admitted; ++i) Follow(outlook.sequences, i, jobs[i]);
  for (const SequencePtr& sequence : waiting_) {
    if (newcomer != nullptr && newcomer->request.priority < sequence->request.priority) {
      add(*newcomer, newcomer_us);
      newcomer = nullptr;
    }
    add(*sequence, RemainingUs(*sequence));
  }
  if (newcomer != nullptr) add(*newcomer, newcomer_us);
  outlook.times = ForecastPrefills(
      jobs, n_admitted,
      {.max_prefills = config_.max_prefills, .short_share = kShortWeight / (1 + kShortWeight)});
  return outlook;
}

// A follower waits until its leader has computed what they have in common, then does the rest. That
// the leader may be longer is neglected.
void Scheduler::Follow(std::span<const Sequence* const> sequences, int64_t job,
                       ForecastJob& forecast) const {
  const Sequence& sequence = *sequences[job];
  if (sequence.leader == nullptr) return;
  const auto leader = std::find(sequences.begin(), sequences.end(), sequence.leader);
  if (leader == sequences.end()) return;
  forecast.leader = leader - sequences.begin();
  for (const Relative& relative : sequence.relatives) {
    if (relative.sequence != sequence.leader) continue;
    const int64_t common_tokens =
        relative.common_tokens / config_.epoch_tokens * config_.epoch_tokens;
    forecast.left_us = std::min(
        forecast.left_us,
        cost_.PrefillUs(WorkFrom(sequence, std::min(common_tokens, sequence.prompt_tokens() - 1))));
  }
}

int64_t Scheduler::Outlook::DoneUs(const Sequence& sequence) const {
  const auto place = std::find(sequences.begin(), sequences.end(), &sequence);
  LH_CHECK(place != sequences.end());
  return static_cast<int64_t>(times[place - sequences.begin()].done_us);
}

int64_t Scheduler::PredictTtftUs(const Sequence& sequence, int64_t cached_tokens) const {
  if (!cost_.learned()) return -1;
  const double own_us = cost_.PrefillUs(WorkFrom(sequence, cached_tokens));
  return WithDecodeUs(Forecast(&sequence, own_us).DoneUs(sequence));
}

int64_t Scheduler::PredictAdmissionUs() const {
  if (!cost_.learned() || waiting_.empty()) return -1;
  const Outlook outlook = Forecast(nullptr, 0);
  return WithDecodeUs(outlook.times[outlook.times.size() - waiting_.size()].admitted_us);
}

void Scheduler::EmitProgress(int64_t now_us) {
  constexpr int64_t kIntervalUs = 500'000;
  std::vector<Sequence*> due;
  const auto collect = [&](const std::vector<SequencePtr>& list) {
    for (const SequencePtr& sequence : list) {
      if (!sequence->request.report_progress || sequence->ended || !sequence->prefilling())
        continue;
      const bool served = std::any_of(slices_.begin(), slices_.end(), [&](const PlannedSlice& s) {
        return s.sequence == sequence.get();
      });
      if (served || now_us - sequence->times.last_progress_us >= kIntervalUs) {
        due.push_back(sequence.get());
      }
    }
  };
  collect(running_);
  const size_t n_prefilling = due.size();
  collect(waiting_);
  if (due.empty()) return;
  const bool known = cost_.learned();
  const Outlook outlook = known ? Forecast(nullptr, 0) : Outlook();
  for (size_t i = 0; i < due.size(); ++i) {
    const Phase phase = i < n_prefilling ? Phase::kPrefill : Phase::kQueued;
    EmitProgress(*due[i], phase, now_us, known ? WithDecodeUs(outlook.DoneUs(*due[i])) : -1);
  }
}

void Scheduler::EmitProgress(Sequence& sequence, Phase phase, int64_t now_us, int64_t eta_us) {
  sequence.times.last_progress_us = now_us;
  sequence.sink->Emit(sequence.Progress(phase, now_us, eta_us));
}

}  // namespace longhaul
