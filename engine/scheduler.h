// Scheduler: decides what the next step does. Continuous batching: every step decodes one token of
// every running choice in one batch, and gives one time slice to prompts that are being prefilled.
//
// Prompts. The work item is (epoch, layer range): the epoch grid is absolute, the layer range is
// sized by predicted time to the budget `slice_us`, one layer at least. Among those of the best
// priority, prompts that fit into one slice (short) and the others (long) take turns, slice by
// slice; several short ones share a slice; among long ones the next is who had least time so far.
// So a short prompt waits for the slice in flight and at most one more, and a long one gets every
// other slice whatever the load. One hidden slot is kept for short prompts.
//
// Admission reserves the pages for prompt and answers, so whoever runs finishes. A request that
// waits for pages may be overtaken by smaller ones, kMaxOvertakes times.
//
// No thread, no clock: `now_us` is an argument. Owned by the engine, engine thread only. Events go
// straight to each request's sink.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/cost_model.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "engine/step_plan.h"
#include "kvcache/cache_manager.h"

namespace longhaul {

struct SchedulerCounters {
  int64_t prefix_queried_tokens = 0;
  int64_t prefix_hit_tokens = 0;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int64_t n_finished_stop = 0;     // choices
  int64_t n_finished_length = 0;   // choices
  int64_t n_cancelled = 0;         // requests; deadlines included
  int64_t n_failed = 0;            // requests
  int64_t n_refused_deadline = 0;  // requests
};

class Scheduler {
 public:
  static constexpr int64_t kMaxOvertakes = 32;

  // `shape` must outlive the scheduler.
  Scheduler(const EngineConfig& config, const ModelShape& shape, int32_t n_pages);

  // The request was checked (engine/request_check.h): it fits the pool when it is alone. It came
  // `waited_us` ago. Emits AcceptedEvent, or refuses with DoneEvent alone: DeadlineExceeded where
  // the prompt cannot meet its deadline even on an idle server, ResourceExhausted with RetryAfterUs
  // where only the others are in its way. Nobody is refused on a guess, before a slice was
  // measured.
  void Add(Request request, std::shared_ptr<EventSink> sink, int64_t now_us, int64_t waited_us = 0);

  // Ends what was cancelled or is past its deadline, admits, and plans a step. Spans in the plan
  // are valid until Complete or Fail, one of which must follow unless the plan is empty.
  const StepPlan& Plan(int64_t now_us);
  void Complete(const StepResult& result, int64_t now_us);
  // The step failed: its requests end with `status`, the others go on.
  void Fail(const absl::Status& status, int64_t now_us);
  // Ends every request.
  void EndAll(const absl::Status& status, int64_t now_us);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  int64_t n_requests() const { return static_cast<int64_t>(waiting_.size() + running_.size()); }
  int64_t n_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  // Prompt tokens of those that wait.
  int64_t n_waiting_tokens() const;
  int64_t n_running() const { return n_running_choices_; }
  const SchedulerCounters& counters() const { return counters_; }
  const CostModel& cost_model() const { return cost_; }
  CacheStats cache_stats() const { return cache_.Stats(); }
  absl::Status CheckIntegrity() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  struct PlannedSlice {
    Sequence* sequence;
    PrefillWork work;
  };
  struct PlannedRow {
    Sequence* sequence;
    Choice* choice;
  };
  enum class Admission { kAdmitted, kNoSlot, kNoRoom };

  // Arrival
  absl::Status CheckDeadline(const Sequence& sequence, int64_t predicted_us, int64_t now_us) const;

  // Ending
  void Reap(int64_t now_us);
  void EndMatching(std::vector<SequencePtr>& list, int64_t now_us);
  void End(Sequence& sequence, const absl::Status& status, int64_t now_us);
  void PinForRetry(const Sequence& sequence, int64_t now_us);
  void RemoveEnded();

  // Admission
  void AdmitWaiting();
  Admission TryAdmit(Sequence& sequence);
  void TakeMatch(Sequence& sequence);
  std::string PrefixRoot(const Sequence& sequence) const;

  // Planning
  void PlanDecode();
  void PlanPrefill(int64_t now_us);
  // Returns the predicted time.
  double PlanSlice(Sequence& sequence, double budget_us, int64_t now_us);
  PrefillWork LaterWork(const Sequence& sequence, int64_t from) const;

  // Completion
  void CompleteRow(const PlannedRow& row, std::span<const float> logits, int64_t now_us);
  void CompleteSlice(const PlannedSlice& planned, const PrefillSlice& slice,
                     const SliceResult& result, int64_t now_us);
  void CompleteEpoch(Sequence& sequence);
  void StartDecode(Sequence& sequence, std::span<const float> logits, int64_t now_us);
  void PublishAnswer(Sequence& sequence, Choice& choice);
  void FreeSlot(Sequence& sequence);
  void CountChoice(const Choice& choice, const Sequence& sequence);

  // Predictions and progress
  void LearnFrom(const PlannedSlice& planned, const PrefillSlice& slice, const SliceResult& result);
  double RemainingUs(const Sequence& sequence) const;
  int64_t EtaUs(const Sequence& sequence) const;
  int64_t QueuedEtaUs(const Sequence& sequence) const;
  // Time from now until the first token of a request that waits (or is about to), when
  // `cached_tokens` of its prompt need no work; -1 = not known. PrefillAloneUs: on an idle server.
  int64_t PredictTtftUs(const Sequence& sequence, int64_t cached_tokens) const;
  int64_t PrefillAloneUs(const Sequence& sequence, int64_t cached_tokens) const;
  void EmitQueuedProgress(int64_t now_us);

  const EngineConfig config_;
  const ModelShape& shape_;
  CostModel cost_;
  CacheManager cache_;
  SchedulerCounters counters_;

  std::vector<SequencePtr> waiting_;  // by priority, then arrival
  std::vector<SequencePtr> running_;  // admitted, in that order: prefilling or decoding
  std::vector<int32_t> free_slots_;
  int64_t n_running_choices_ = 0;  // n of each running request
  int64_t n_long_prefills_ = 0;
  bool last_slice_was_short_ = false;
  uint64_t resource_version_ = 1;  // bumped when an admission may newly succeed
  int64_t next_seq_id_ = 1;

  StepPlan plan_;
  std::vector<PlannedRow> rows_;      // parallel to plan_.decode
  std::vector<PlannedSlice> slices_;  // parallel to plan_.prefill
};

}  // namespace longhaul
