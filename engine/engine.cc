#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/request_check.h"
#include "engine/scheduler.h"
#include "engine/self_measure.h"
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
  int64_t n_waiting = 0;  // in the scheduler, not yet admitted
  int64_t n_in_scheduler = 0;
  EngineStats stats;

  void Wake() {
    std::lock_guard lock(mutex);
    wake = true;
    for_engine.notify_one();
  }
  bool HasWork() const {
    return wake || cancel_all || stopping || !arrivals.empty() || !integrity_checks.empty();
  }
  int64_t n_unfinished() const { return n_in_scheduler + static_cast<int64_t>(arrivals.size()); }
};

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
                .vocab_size = executor_->shape().vocab_size},
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
    LH_RETURN_IF_ERROR(CheckQueue());
    LH_RETURN_IF_ERROR(CheckRequest(request, limits_));
    auto stream = std::make_shared<StreamState>([weak = std::weak_ptr<Inbox>(inbox_)] {
      if (const std::shared_ptr<Inbox> inbox = weak.lock()) inbox->Wake();
    });
    {
      std::lock_guard lock(inbox_->mutex);
      LH_RETURN_IF_ERROR(CheckQueueLocked());
      inbox_->arrivals.push_back(
          {.request = std::move(request), .stream = stream, .submitted_us = NowUs()});
      inbox_->for_engine.notify_one();
    }
    return TokenStream(std::move(stream));
  }

  absl::Status CheckQueue() const override {
    std::lock_guard lock(inbox_->mutex);
    return CheckQueueLocked();
  }

  EngineStats Stats() const override {
    std::lock_guard lock(inbox_->mutex);
    EngineStats stats = inbox_->stats;
    stats.n_waiting = inbox_->n_waiting + static_cast<int64_t>(inbox_->arrivals.size());
    return stats;
  }

  absl::Status Health() const override { return absl::OkStatus(); }
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
  absl::Status CheckQueueLocked() const {
    if (inbox_->draining) {
      return absl::UnavailableError("the server is shutting down and takes no new requests");
    }
    const int64_t n_queued = inbox_->n_waiting + static_cast<int64_t>(inbox_->arrivals.size());
    if (n_queued >= config_.max_num_queued_reqs) {
      return absl::ResourceExhaustedError(fmt::format(
          "{} requests are waiting, the most this server queues; try again later", n_queued));
    }
    return absl::OkStatus();
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
    absl::StatusOr<StepResult> result = executor_->Execute(plan);
    if (result.ok()) {
      scheduler_.Complete(*result, NowUs());
      return;
    }
    spdlog::error("a step of {} decode rows and {} prefill slices failed: {}", plan.decode.size(),
                  plan.prefill.size(), result.status().ToString());
    scheduler_.Fail(result.status(), NowUs());
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
    std::lock_guard lock(inbox_->mutex);
    inbox_->stats = stats;
    inbox_->n_waiting = scheduler_.n_waiting();
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
