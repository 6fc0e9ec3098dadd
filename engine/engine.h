// Engine: tokens in, tokens out. Owns the engine thread, scheduler, cache manager and executor.
// Submit, Stats and Drain may be called from any thread; everything else happens on the engine
// thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "engine/config.h"
#include "engine/request.h"
#include "engine/step_plan.h"
#include "engine/token_stream.h"
#include "kernels/base/status.h"

namespace longhaul {

struct EngineStats {
  int64_t n_running = 0;  // sequences prefilling or decoding
  int64_t n_waiting = 0;
  int64_t n_pages_total = 0;
  int64_t n_pages_used = 0;    // referenced by running sequences
  int64_t n_pages_cached = 0;  // kept by the prefix index alone
  int64_t prefix_queried_tokens = 0;
  int64_t prefix_hit_tokens = 0;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int64_t n_steps = 0;
  int64_t n_waiting_tokens = 0;  // prompt tokens of those that wait
  int64_t n_pages_reserved = 0;  // promised to running requests, not yet written
  int64_t n_pages_pinned = 0;    // part of n_pages_cached: kept for a retry
  int64_t n_evictions = 0;       // pages the prefix index lost for others
  int64_t n_preemptions = 0;     // always 0: admission reserves
  int64_t n_refused_queue_full = 0, n_refused_deadline = 0;
  int64_t joined_tokens = 0;  // prompt tokens taken over from an equal prompt in flight
  int64_t n_finished_stop = 0, n_finished_length = 0, n_cancelled = 0, n_failed = 0;
};

// One executed step, for metrics and for checking the predictions.
struct StepRecord {
  int64_t elapsed_us = 0;
  int64_t predicted_us = 0;
  int64_t decode_us = 0;
  int32_t n_decode_rows = 0;
  int32_t n_slices = 0;
  int64_t slices_us = 0;       // all slices of the step
  int64_t prefill_tokens = 0;  // x layers of the slices / n_layers of the model
  bool failed = false;
};

// Called on the engine thread after each step; must only count.
using StepObserver = std::function<void(const StepRecord&)>;

class Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config,
                                                        std::unique_ptr<Executor> executor,
                                                        StepObserver on_step = nullptr);
  virtual ~Engine() = default;  // cancels what runs and joins the thread

  // Errors, all before any work:
  //   OutOfRange         the prompt plus max_tokens exceeds max_model_len, or can never fit the
  //                      KV pool
  //   InvalidArgument    empty prompt, token id outside the vocabulary, sparse options out of range
  //   ResourceExhausted  the queue is full, in requests or in prompt tokens; with RetryAfterUs
  //   Unavailable        draining
  virtual absl::StatusOr<TokenStream> Submit(Request request) = 0;
  // What Submit would say about the queue now, whatever the request: ResourceExhausted when it is
  // full, Unavailable when draining. For front ends, before they read or tokenize anything.
  virtual absl::Status CheckQueue() const = 0;

  virtual EngineStats Stats() const = 0;
  // OK, or Unavailable when the step under way takes far longer than predicted or the last steps
  // all failed (engine/step_watch.h): the text says which. Never waits for the engine thread.
  virtual absl::Status Health() const = 0;
  virtual const ModelShape& shape() const = 0;
  virtual int64_t max_model_len() const = 0;

  // Refuses new requests and waits until the running ones finished, at most `timeout`; what is left
  // then is cancelled. True when everything finished.
  virtual bool Drain(std::chrono::milliseconds timeout) = 0;

  // Every page is free, referenced or cached, exactly once. Runs on the engine thread.
  virtual absl::Status CheckIntegrity() = 0;
};

}  // namespace longhaul
