// Scheduler: decides what the next step does. Continuous batching: every step decodes one token of
// every running choice in one batch, and gives one time slice to prompts that are being prefilled.
//
// Prompts. The work item is (epoch, layer range): the epoch grid is absolute, the layer range is
// sized by predicted time to the budget `slice_us`, one layer at least. Strict priorities first. Of
// one priority, prompts that fit into one slice (short) go before the others (long), but a long one
// gets a quarter of the time however many short ones there are (kShortWeight). Several short ones
// share a slice; the long ones share their time evenly. One hidden slot is kept for short prompts.
//
// A prompt that would compute next what another one in flight computes already (same beginning,
// same prefix root) waits and takes the published pages over: scheduler_join.cc.
//
// Admission reserves the pages for prompt and answers, so whoever runs finishes. A request that
// waits for pages may be overtaken by smaller ones, kMaxOvertakes times.
//
// No thread, no clock: `now_us` is an argument. Owned by the engine, engine thread only. Events go
// straight to each request's sink.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/cost_model.h"
#include "engine/prefill_forecast.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "engine/step_plan.h"
#include "kvcache/cache_manager.h"

namespace longhaul {

struct SchedulerCounters {
  int64_t prefix_queried_tokens = 0;
  int64_t prefix_hit_tokens = 0;
  int64_t prompt_tokens = 0;
  int64_t joined_tokens = 0;  // of prompts, taken over while they were under way
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
  // Time of short prompts against time of long ones while both want it: shares 3/4 and 1/4. With
  // even shares, short prompts that want half of the time have a p99 12 times as long
  // (scheduler_turns_test.cc: 255 ms instead of 21 ms).
  static constexpr double kShortWeight = 3;
  // Of one step; matters only where predictions are far too low.
  static constexpr size_t kMaxSlices = 64;

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
  // What was learned before (engine/self_measure.h).
  void SetCostModel(const CostModel& model) { cost_ = model; }
  // Of the step that was planned last.
  double PredictedStepUs() const;
  // Time from now until the first of those that wait is admitted, as far as slots decide; -1 = not
  // known, or nobody waits.
  int64_t PredictAdmissionUs() const;
  CacheStats cache_stats() const { return cache_.Stats(); }
  absl::Status CheckIntegrity() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;

  struct PlannedSlice {
    Sequence* sequence;
    PrefillWork work;
    bool contended;  // a short prompt's, and a long one of the same priority had to wait for it
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
  void TakeSlot(Sequence& sequence);
  void Reclassify(Sequence& sequence);
  void PlanPrefill(int64_t now_us);
  void PlanShort(std::span<Sequence* const> sequences, bool contended, int64_t now_us);
  void PlanLong(std::span<Sequence* const> sequences, int64_t now_us);
  // How many layers of the cells fit into the budget, `least` in any case.
  int32_t FittingLayers(const Sequence& sequence, PrefillCells cells, double budget_us,
                        int32_t least) const;
  // The sequence's next slice, or slices (layer by layer); returns their predicted time.
  double PlanSlices(Sequence& sequence, double budget_us, bool contended, int64_t now_us);
  void AddSlice(Sequence& sequence, const PrefillCells& cells);
  // Of all cells of tokens [from, ...), and of those that the cursor has not passed.
  PrefillWork WorkFrom(const Sequence& sequence, int64_t from) const;
  PrefillWork WorkLeft(const Sequence& sequence) const;

  // Joining
  void LinkRelatives(Sequence& sequence);
  void UnlinkRelatives(Sequence& sequence);
  void TakeOver(Sequence& sequence);
  void FollowLeaders();
  Sequence* LeaderOf(const Sequence& sequence) const;

  // Completion
  void CompleteRow(const PlannedRow& row, const RowResult& result, int64_t now_us);
  void CompleteSlice(const PlannedSlice& planned, const PrefillSlice& slice,
                     const SliceResult& result, int64_t now_us);
  void ChargeTurn(const PlannedSlice& planned, double elapsed_us);
  void CompleteEpoch(Sequence& sequence, int64_t begin, int64_t end);
  void StartDecode(Sequence& sequence, std::span<const float> logits, int64_t now_us);
  void PublishAnswer(Sequence& sequence, Choice& choice);
  void FreeSlot(Sequence& sequence);
  void CountChoice(const Choice& choice, const Sequence& sequence);

  // Predictions and progress
  struct Outlook {
    std::vector<const Sequence*> sequences;
    std::vector<ForecastTime> times;  // parallel
    int64_t DoneUs(const Sequence& sequence) const;
  };

  struct LastDensity {  // what a prompt of so many tokens ended with
    int64_t n_tokens;
    DensityModel density;
  };

  void LearnFrom(const PlannedSlice& planned, const PrefillSlice& slice, const SliceResult& result);
  void GuessDensity(Sequence& sequence) const;
  void KeepDensity(const Sequence& sequence);
  double RemainingUs(const Sequence& sequence) const;
  double DecodeStepUs() const;
  int64_t WithDecodeUs(double prefill_us) const;
  Outlook Forecast(const Sequence* newcomer, double newcomer_us) const;
  void Follow(std::span<const Sequence* const> sequences, int64_t job, ForecastJob& forecast) const;
  // Time from now until the first token of a request that is about to wait, when `cached_tokens` of
  // its prompt need no work; -1 = not known. PrefillAloneUs: on an idle server.
  int64_t PredictTtftUs(const Sequence& sequence, int64_t cached_tokens) const;
  int64_t PrefillAloneUs(const Sequence& sequence, int64_t cached_tokens) const;
  // To those served in this step, and to the others that wait for their first token every half a
  // second.
  void EmitProgress(int64_t now_us);
  void EmitProgress(Sequence& sequence, Phase phase, int64_t now_us, int64_t eta_us);

  const EngineConfig config_;
  const ModelShape& shape_;
  CostModel cost_;
  std::map<SparseMode, LastDensity> last_density_;
  CacheManager cache_;
  SchedulerCounters counters_;

  std::vector<SequencePtr> waiting_;  // by priority, then arrival
  std::vector<SequencePtr> running_;  // admitted, in that order: prefilling or decoding
  std::vector<int32_t> free_slots_;
  int64_t n_running_choices_ = 0;  // n of each running request
  int64_t n_long_prefills_ = 0;
  int32_t slot_wanted_by_ = std::numeric_limits<int32_t>::max();  // best priority that has none
  bool layer_store_is_free_ = false;
  double short_credit_us_;         // time that short prompts may take before a long one's turn
  double long_clock_us_ = 0;       // turn_us of the long prompt that had the last turn
  uint64_t resource_version_ = 1;  // bumped when an admission may newly succeed
  int64_t next_seq_id_ = 1;

  StepPlan plan_;
  std::vector<PlannedRow> rows_;      // parallel to plan_.decode
  std::vector<PlannedSlice> slices_;  // parallel to plan_.prefill
};

}  // namespace longhaul
