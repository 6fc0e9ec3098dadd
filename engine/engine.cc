#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/request_check.h"
#include "engine/retry_after.h"
#include "engine/scheduler.h"
#include "engine/self_measure.h"
#include "engine/step_watch.h"
#include "engine/stream_state.h"
#include "fmt/format.h"
#include "kernels/base/check.h"
#include "spdlog/spdlog.h"

namespace longhaul {
namespace {

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch())
      .count();
}

// Everything that other threads and the engine thread share. Streams hold it weakly, so that a
// stream may outlive its engine.
struct Inbox {
  struct Entry {
    Request request;
    std::shared_ptr<StreamState> stream;
    int64_t submitted_us = 0;
  };

  std::mutex mutex;
  std::condition_variable for_engine;  // something to do
  std::condition_variable for_drain;   // n_unfinished changed
  // All guarded by mutex.
  std::vector<Entry> arrivals;
  std::vector<std::promise<absl::Status>> integrity_checks;
  bool wake = false;  // a stream was cancelled
  bool draining = false;
  bool cancel_all = false;
  bool stopping = false;
  int64_t n_waiting = 0;         // in the scheduler, not yet admitted
  int64_t n_waiting_tokens = 0;  // of their prompts and of the arrivals'
  int64_t n_in_scheduler = 0;
  int64_t n_refused = 0;       // because the queue was full
  int64_t place_free_us = -1;  // when a place in the queue is predicted to be free; -1 = not known
  StepWatch steps;
  EngineStats stats;

  void Wake() {
    std::lock_guard lock(mutex);
    wake = true;
    for_engine.notify_one();
  }
  bool HasWork() const {
    return wake || cancel_all || stopping || !arrivals.empty() || !integrity_checks.empty();
  }
  int64_t n_queued() const { return n_waiting + static_cast<int64_t>(arrivals.size()); }
  int64_t n_unfinished() const { return n_in_scheduler + static_cast<int64_t>(arrivals.size()); }
};

int64_t PromptTokens(const Request& request) { return static_cast<int64_t>(request.prompt.size()); }

class EngineImpl : public Engine {
 public:
  EngineImpl(const EngineConfig& config, std::unique_ptr<Executor> executor,
             const CostModel& cost_model, StepObserver on_step)
      : config_(config),
        on_step_(std::move(on_step)),
        executor_(std::move(executor)),
        limits_{.max_model_len = config.max_model_len,
                .n_pages = executor_->n_pages(),
                .max_choices = config.max_num_seqs,
                .vocab_size = executor_->shape().vocab_size,
                .n_layers = executor_->shape().n_layers,
                .n_heads = executor_->shape().n_heads},
        scheduler_(config_, executor_->shape(), executor_->n_pages()),
        inbox_(std::make_shared<Inbox>()) {
    scheduler_.SetCostModel(cost_model);
    PublishStats();
    thread_ = std::thread([this] { Run(); });
  }

  ~EngineImpl() override {
    {
      std::lock_guard lock(inbox_->mutex);
      inbox_->draining = inbox_->stopping = true;
      inbox_->for_engine.notify_one();
    }
    thread_.join();
  }

  absl::StatusOr<TokenStream> Submit(Request request) override {
    LH_RETURN_IF_ERROR(CheckRequest(request, limits_));
    const int64_t n_tokens = PromptTokens(request);
    auto stream = std::make_shared<StreamState>([weak = std::weak_ptr<Inbox>(inbox_)] {
      if (const std::shared_ptr<Inbox> inbox = weak.lock()) inbox->Wake();
    });
    {
      std::lock_guard lock(inbox_->mutex);
      LH_RETURN_IF_ERROR(CheckQueueLocked(n_tokens));
      inbox_->n_waiting_tokens += n_tokens;
      inbox_->arrivals.push_back(
          {.request = std::move(request), .stream = stream, .submitted_us = NowUs()});
      inbox_->for_engine.notify_one();
    }
    return TokenStream(std::move(stream));
  }

  absl::Status CheckQueue() const override {
    std::lock_guard lock(inbox_->mutex);
    return CheckQueueLocked(/*n_tokens=*/1);
  }

  EngineStats Stats() const override {
    std::lock_guard lock(inbox_->mutex);
    EngineStats stats = inbox_->stats;
    stats.n_waiting = inbox_->n_queued();
    stats.n_waiting_tokens = inbox_->n_waiting_tokens;
    stats.n_refused_queue_full = inbox_->n_refused;
    return stats;
  }

  absl::Status Health() const override {
    std::lock_guard lock(inbox_->mutex);
    return inbox_->steps.Check(NowUs());
  }

  const ModelShape& shape() const override { return executor_->shape(); }
  int64_t max_model_len() const override { return limits_.max_model_len; }

  bool Drain(std::chrono::milliseconds timeout) override {
    std::unique_lock lock(inbox_->mutex);
    inbox_->draining = true;
    const auto finished = [this] { return inbox_->n_unfinished() == 0; };
    if (inbox_->for_drain.wait_for(lock, timeout, finished)) return true;
    inbox_->cancel_all = true;
    inbox_->for_engine.notify_one();
    inbox_->for_drain.wait(lock, finished);
    return false;
  }

  absl::Status CheckIntegrity() override {
    std::future<absl::Status> answer;
    {
      std::lock_guard lock(inbox_->mutex);
      answer = inbox_->integrity_checks.emplace_back().get_future();
      inbox_->for_engine.notify_one();
    }
    return answer.get();
  }

 private:
  // An empty queue takes any prompt.
  absl::Status CheckQueueLocked(int64_t n_tokens) const {
    if (inbox_->draining) {
      return absl::UnavailableError("the server is shutting down and takes no new requests");
    }
    const int64_t n_queued = inbox_->n_queued();
    const bool too_many = n_queued >= config_.max_num_queued_reqs;
    const bool too_long =
        n_queued > 0 && inbox_->n_waiting_tokens + n_tokens > config_.max_num_queued_tokens;
    if (!too_many && !too_long) return absl::OkStatus();
    ++inbox_->n_refused;
    constexpr int64_t kLeastUs = 1'000'000;
    const int64_t retry_after_us = std::max(kLeastUs, inbox_->place_free_us - NowUs());
    return WithRetryAfter(
        absl::ResourceExhaustedError(fmt::format(
            "{} requests with {} prompt tokens are waiting; this server queues {} requests and {} "
            "tokens at most; try again in {:.0f} s",
            n_queued, inbox_->n_waiting_tokens, config_.max_num_queued_reqs,
            config_.max_num_queued_tokens, static_cast<double>(retry_after_us) * 1e-6)),
        retry_after_us);
  }

  // ---- engine thread from here on ----

  void Run() {
    while (TakeInbox()) {
      const StepPlan& plan = scheduler_.Plan(NowUs());
      PublishStats();
      if (plan.empty()) {
        LH_CHECK(scheduler_.idle());  // whoever was admitted has work, and the first always fits
        continue;
      }
      Step(plan);
      PublishStats();
    }
    scheduler_.EndAll(absl::CancelledError("the server stopped"), NowUs());
    PublishStats();
  }

  void Step(const StepPlan& plan) {
    ++n_steps_;
    const int64_t begin_us = NowUs();
    StepRecord record;
    record.predicted_us = static_cast<int64_t>(scheduler_.PredictedStepUs());
    record.n_decode_rows = static_cast<int32_t>(plan.decode.size());
    record.n_slices = static_cast<int32_t>(plan.prefill.size());
    {
      std::lock_guard lock(inbox_->mutex);
      inbox_->steps.Begin(begin_us, record.predicted_us);
    }
    absl::StatusOr<StepResult> result = executor_->Execute(plan);
    record.elapsed_us = NowUs() - begin_us;
    record.failed = !result.ok();
    {
      std::lock_guard lock(inbox_->mutex);
      inbox_->steps.End(result.status());
    }
    if (result.ok()) {
      AddTimes(plan, *result, record);
      scheduler_.Complete(*result, NowUs());
    } else {
      spdlog::error("a step of {} decode rows and {} prefill slices failed: {}", plan.decode.size(),
                    plan.prefill.size(), result.status().ToString());
      scheduler_.Fail(result.status(), NowUs());
    }
    if (on_step_) on_step_(record);
  }

  void AddTimes(const StepPlan& plan, const StepResult& result, StepRecord& record) const {
    record.decode_us = result.decode_us;
    for (const SliceResult& slice : result.slices) record.slices_us += slice.elapsed_us;
    int64_t layer_tokens = 0;
    for (const PrefillSlice& slice : plan.prefill) {
      layer_tokens += (slice.end - slice.begin) * (slice.layer_end - slice.layer_begin);
    }
    record.prefill_tokens = layer_tokens / executor_->shape().n_layers;
  }

  // Waits while there is nothing to do. False: stop.
  bool TakeInbox() {
    std::vector<Inbox::Entry> arrivals;
    std::vector<std::promise<absl::Status>> integrity_checks;
    bool cancel_all;
    bool stopping;
    {
      std::unique_lock lock(inbox_->mutex);
      if (scheduler_.idle()) {
        inbox_->for_engine.wait(lock, [this] { return inbox_->HasWork(); });
      }
      inbox_->wake = false;
      arrivals.swap(inbox_->arrivals);
      integrity_checks.swap(inbox_->integrity_checks);
      cancel_all = std::exchange(inbox_->cancel_all, false);
      stopping = inbox_->stopping;
      // Until the next PublishStats they count as waiting.
      inbox_->n_waiting += static_cast<int64_t>(arrivals.size());
      inbox_->n_in_scheduler += static_cast<int64_t>(arrivals.size());
    }
    const int64_t now_us = NowUs();
    for (Inbox::Entry& entry : arrivals) {
      scheduler_.Add(std::move(entry.request), std::move(entry.stream), now_us,
                     now_us - entry.submitted_us);
    }
    for (std::promise<absl::Status>& check : integrity_checks) {
      check.set_value(scheduler_.CheckIntegrity());
    }
    if (cancel_all) {
      scheduler_.EndAll(absl::CancelledError("the server is shutting down"), NowUs());
    }
    return !stopping;
  }

  void PublishStats() {
    const SchedulerCounters& counters = scheduler_.counters();
    const CacheStats cache = scheduler_.cache_stats();
    EngineStats stats;
    stats.n_running = scheduler_.n_running();
    stats.n_pages_total = cache.n_pages_total;
    stats.n_pages_used = cache.n_pages_used;
    stats.n_pages_cached = cache.n_pages_idle;
    stats.prefix_queried_tokens = counters.prefix_queried_tokens;
    stats.prefix_hit_tokens = counters.prefix_hit_tokens;
    stats.prompt_tokens = counters.prompt_tokens;
    stats.generation_tokens = counters.generation_tokens;
    stats.n_steps = n_steps_;
    stats.n_finished_stop = counters.n_finished_stop;
    stats.n_finished_length = counters.n_finished_length;
    stats.n_cancelled = counters.n_cancelled;
    stats.n_failed = counters.n_failed;
    stats.n_pages_reserved = cache.n_pages_reserved;
    stats.n_pages_pinned = cache.n_pages_pinned;
    stats.n_evictions = cache.n_evictions;
    stats.n_refused_deadline = counters.n_refused_deadline;
    stats.joined_tokens = counters.joined_tokens;
    const int64_t admission_us = scheduler_.PredictAdmissionUs();
    const int64_t place_free_us = admission_us < 0 ? -1 : NowUs() + admission_us;
    std::lock_guard lock(inbox_->mutex);
    inbox_->stats = stats;
    inbox_->n_waiting = scheduler_.n_waiting();
    inbox_->n_waiting_tokens = scheduler_.n_waiting_tokens();
    for (const Inbox::Entry& entry : inbox_->arrivals) {
      inbox_->n_waiting_tokens += PromptTokens(entry.request);
    }
    inbox_->place_free_us = place_free_us;
    inbox_->n_in_scheduler = scheduler_.n_requests();
    inbox_->for_drain.notify_all();
  }

  const EngineConfig config_;
  const StepObserver on_step_;
  const std::unique_ptr<Executor> executor_;
  const RequestLimits limits_;
  Scheduler scheduler_;
  int64_t n_steps_ = 0;
  const std::shared_ptr<Inbox> inbox_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config,
                                                       std::unique_ptr<Executor> executor,
                                                       StepObserver on_step) {
  LH_RETURN_IF_ERROR(config.Validate());
  LH_CHECK(executor != nullptr);
  const ModelShape& shape = executor->shape();
  EngineConfig completed = config;
  if (completed.max_model_len == 0) completed.max_model_len = shape.max_positions;
  if (completed.max_model_len > shape.max_positions) {
    return absl::InvalidArgumentError(
        fmt::format("max_model_len is {}; the model supports {} positions", completed.max_model_len,
                    shape.max_positions));
  }
  if (executor->n_pages() < 1) {
    return absl::InvalidArgumentError(
        "the KV cache has no page; start the server with a larger --kv-cache-memory");
  }
  CostModel cost_model(shape);
  if (completed.self_measure) {
    LH_RETURN_IF_ERROR(SelfMeasure(completed, *executor, cost_model));
  }
  return std::make_unique<EngineImpl>(completed, std::move(executor), cost_model,
                                      std::move(on_step));
}

}  // namespace longhaul
