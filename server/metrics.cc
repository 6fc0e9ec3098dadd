#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <map>
#include <mutex>
#include <string_view>

#include "kernels/kv_layout.h"

namespace longhaul {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

// A million-token prompt takes minutes: buckets up to an hour.
const Buckets& RequestSeconds() {
  static const Buckets buckets = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25,
                                  0.5,   0.75,  1,    2.5,  5,    7.5,  10,   20,  40,
                                  80,    160,   320,  640,  1280, 1800, 3600};
  return buckets;
}
const Buckets& TokenSeconds() {
  static const Buckets buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                                  0.3,   0.4,    0.5,   0.75, 1,     2.5,  5,     10,  40,   80};
  return buckets;
}
const Buckets& Tokens() {
  static const Buckets buckets = {1,     10,    100,    1000,   4096,   16384,
                                  32768, 65536, 131072, 262144, 524288, 1048576};
  return buckets;
}
const Buckets& Shares() {
  static const Buckets buckets = {0.01, 0.02, 0.05, 0.1,  0.15, 0.2,  0.3,   0.4,  0.5,
                                  0.6,  0.7,  0.8,  0.85, 0.9,  0.95, 0.975, 0.99, 1};
  return buckets;
}
// Measured over predicted.
const Buckets& Ratios() {
  static const Buckets buckets = {0.1,  0.25, 0.5,  0.67, 0.8, 0.9, 0.95, 1,
                                  1.05, 1.1,  1.25, 1.5,  2,   4,   8,    16};
  return buckets;
}

double Seconds(int64_t us) { return static_cast<double>(us) * 1e-6; }

// "finished_reason" of vllm:request_success_total; vLLM counts aborts and errors there, too.
enum FinishedAs : size_t { kStop, kLength, kAbort, kError };
constexpr std::array kFinishedAs = {"stop", "length", "abort", "error"};
constexpr std::array kPhases = {"read",  "parse",   "template", "tokenize",
                                "queue", "prefill", "decode"};

}  // namespace

struct Metrics::Impl {
  explicit Impl(const std::string& model) : labels{{"model_name", model}} {
    for (size_t i = 0; i < kFinishedAs.size(); ++i) {
      finished[i] = &success.Add(With("finished_reason", kFinishedAs[i]));
    }
    for (size_t i = 0; i < kPhases.size(); ++i) {
      phases[i] = &phase.Add(With("phase", kPhases[i]), RequestSeconds());
    }
    for (const char* reason : kRefusalReasons) {
      refusals[reason] = &refused.Add(With("reason", reason));
    }
  }

  Gauge& MakeGauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  Family<Counter>& CounterFamily(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
  }
  Counter& MakeCounter(const char* name, const char* help) {
    return CounterFamily(name, help).Add(labels);
  }
  Family<Histogram>& HistogramFamily(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
  }
  Histogram& MakeHistogram(const char* name, const char* help, const Buckets& buckets) {
    return HistogramFamily(name, help).Add(labels, buckets);
  }
  prometheus::Labels With(const char* name, const std::string& value) const {
    prometheus::Labels all = labels;
    all[name] = value;
    return all;
  }
  // Brings a counter up to a total that the engine counts.
  static void RaiseTo(Counter& counter, int64_t total) {
    const double missing = static_cast<double>(total) - counter.Value();
    if (missing > 0) counter.Increment(missing);
  }

  const prometheus::Labels labels;
  prometheus::Registry registry;
  std::mutex render_mutex;

  // State of the engine.
  Gauge& running = MakeGauge("vllm:num_requests_running", "Requests that prefill or decode.");
  Gauge& waiting = MakeGauge("vllm:num_requests_waiting", "Requests in the queue.");
  Gauge& waiting_tokens =
      MakeGauge("longhaul:waiting_tokens", "Prompt tokens of the requests in the queue.");
  Gauge& kv_usage = MakeGauge("vllm:kv_cache_usage_perc",
                              "Share of the KV pages held by or promised to running requests, 0 "
                              "to 1.");
  Family<Gauge>& cache_config = prometheus::BuildGauge()
                                    .Name("vllm:cache_config_info")
                                    .Help("Page size in tokens and number of pages, as labels.")
                                    .Register(registry);
  Gauge& pages_total = MakeGauge("longhaul:kv_pages", "Pages of 64 tokens in the pool.");
  Gauge& pages_used = MakeGauge("longhaul:kv_pages_used", "Pages held by running requests.");
  Gauge& pages_reserved = MakeGauge("longhaul:kv_pages_reserved",
                                    "Pages promised to running requests and not yet written.");
  Gauge& pages_cached =
      MakeGauge("longhaul:kv_pages_cached", "Pages kept by the prefix cache alone.");
  Gauge& pages_pinned =
      MakeGauge("longhaul:kv_pages_pinned", "Of the cached pages, those kept for a retry.");
  Counter& evictions = MakeCounter("longhaul:kv_pages_evicted_total",
                                   "Cached pages that were given to other requests.");
  Counter& preemptions =
      MakeCounter("vllm:num_preemptions_total", "Always 0: admission reserves every page.");
  Counter& prefix_queries = MakeCounter("vllm:prefix_cache_queries_total",
                                        "Prompt tokens looked up in the prefix cache.");
  Counter& prefix_hits = MakeCounter("vllm:prefix_cache_hits_total", "Prompt tokens found there.");
  Counter& joined =
      MakeCounter("longhaul:joined_tokens_total",
                  "Prompt tokens taken over from an equal prompt that was prefilled meanwhile.");
  Counter& prompt_tokens = MakeCounter("vllm:prompt_tokens_total", "Prompt tokens processed.");
  Counter& generation_tokens = MakeCounter("vllm:generation_tokens_total", "Tokens generated.");

  // Steps of the engine.
  Counter& steps = MakeCounter("longhaul:engine_steps_total", "Steps of the engine.");
  Counter& failed_steps =
      MakeCounter("longhaul:engine_steps_failed_total", "Steps that ended with an error.");
  Histogram& step_time = MakeHistogram("longhaul:step_seconds", "One step.", RequestSeconds());
  Histogram& slice_time = MakeHistogram(
      "longhaul:slice_seconds", "The prefill slices of one step together.", RequestSeconds());
  Histogram& decode_step = MakeHistogram("longhaul:decode_step_seconds",
                                         "The decode rows of one step together.", RequestSeconds());
  Histogram& step_ratio =
      MakeHistogram("longhaul:step_prediction_ratio",
                    "Measured time of a step over the predicted one.", Ratios());

  // Requests.
  Histogram& ttft =
      MakeHistogram("vllm:time_to_first_token_seconds",
                    "From the first byte of the request to the first token.", RequestSeconds());
  Histogram& token_gap = MakeHistogram("vllm:inter_token_latency_seconds",
                                       "Between tokens of a choice.", TokenSeconds());
  Histogram& token_gap_old =
      MakeHistogram("vllm:time_per_output_token_seconds",
                    "The former name of vllm:inter_token_latency_seconds.", TokenSeconds());
  Histogram& per_token =
      MakeHistogram("vllm:request_time_per_output_token_seconds",
                    "Mean time between the tokens of a request.", TokenSeconds());
  Histogram& e2e =
      MakeHistogram("vllm:e2e_request_latency_seconds", "Whole request.", RequestSeconds());
  Histogram& queue =
      MakeHistogram("vllm:request_queue_time_seconds", "In the queue.", RequestSeconds());
  Histogram& prefill =
      MakeHistogram("vllm:request_prefill_time_seconds",
                    "First slice of the prompt to the first token.", RequestSeconds());
  Histogram& decode =
      MakeHistogram("vllm:request_decode_time_seconds", "First token to last.", RequestSeconds());
  Histogram& inference = MakeHistogram("vllm:request_inference_time_seconds",
                                       "First slice to the last token.", RequestSeconds());
  Histogram& request_prompt =
      MakeHistogram("vllm:request_prompt_tokens", "Prompt tokens per request.", Tokens());
  Histogram& request_output =
      MakeHistogram("vllm:request_generation_tokens", "Generated tokens per request.", Tokens());
  Family<Histogram>& phase = HistogramFamily(
      "longhaul:phase_seconds", "Phases of a request, from its first byte on, one after another.");
  Histogram& density =
      MakeHistogram("longhaul:attention_density",
                    "Share of the causal triangle that prefill attended to.", Shares());
  Histogram& recall = MakeHistogram(
      "longhaul:recall", "Mean softmax mass kept, over the audit rows of a request.", Shares());
  Counter& repaired = MakeCounter("longhaul:repaired_head_epochs_total",
                                  "Head epochs done again densely because the audit failed.");
  Counter& cancelled =
      MakeCounter("longhaul:requests_cancelled_total", "Requests whose client went away.");
  Counter& failed =
      MakeCounter("longhaul:requests_failed_total", "Requests that failed after admission.");
  Family<Counter>& success =
      CounterFamily("vllm:request_success_total", "Finished choices, by reason.");
  Family<Counter>& refused =
      CounterFamily("longhaul:requests_refused_total", "Requests that were not taken, by reason.");
  Family<Counter>& http =
      CounterFamily("longhaul:http_responses_total", "Answers of the HTTP server, by status code.");
  std::array<Counter*, kFinishedAs.size()> finished{};
  std::array<Histogram*, kPhases.size()> phases{};
  std::map<std::string_view, Counter*> refusals;
  Gauge* cache_info = nullptr;  // made when the pool's size is known; guarded by render_mutex
};

Metrics::Metrics(const std::string& model_name) : impl_(std::make_unique<Impl>(model_name)) {}
Metrics::~Metrics() = default;

void Metrics::OnRequest(const RequestRecord& record) {
  Impl& m = *impl_;
  const api::Summary& summary = record.summary;
  if (record.refused) {
    m.refusals.at(RefusalReason(record))->Increment();
    return;
  }
  if (!summary.status.ok()) {
    const bool cancelled = absl::IsCancelled(summary.status);
    (cancelled ? m.cancelled : m.failed).Increment();
    m.finished[cancelled ? kAbort : kError]->Increment();
    return;
  }
  const api::Timings& t = summary.timings;
  m.ttft.Observe(Seconds(t.ttft));
  m.e2e.Observe(record.e2e_s);
  m.queue.Observe(Seconds(t.queue));
  m.prefill.Observe(Seconds(t.prefill));
  m.decode.Observe(Seconds(t.decode));
  m.inference.Observe(Seconds(t.prefill + t.decode));
  for (const double gap_s : record.token_gaps_s) {
    m.token_gap.Observe(gap_s);
    m.token_gap_old.Observe(gap_s);
  }
  if (const int64_t n_gaps = summary.usage.completion_tokens / record.n - 1; n_gaps > 0) {
    m.per_token.Observe(Seconds(t.decode) / static_cast<double>(n_gaps));
  }
  m.request_prompt.Observe(static_cast<double>(summary.usage.prompt_tokens));
  m.request_output.Observe(static_cast<double>(summary.usage.completion_tokens));
  const std::array<int64_t, kPhases.size()> phases_us = {
      t.read, t.parse, t.template_, t.tokenize, t.queue, t.prefill, t.decode};
  for (size_t i = 0; i < phases_us.size(); ++i) m.phases[i]->Observe(Seconds(phases_us[i]));
  if (summary.sparse.causal_pairs > 0) m.density.Observe(summary.sparse.Density());
  if (summary.sparse.n_recalls > 0) m.recall.Observe(summary.sparse.RecallMean());
  m.repaired.Increment(static_cast<double>(summary.sparse.n_repaired));
  for (const FinishReason reason : record.finished) {
    m.finished[reason == FinishReason::kStop ? kStop : kLength]->Increment();
  }
}

void Metrics::OnStep(const StepRecord& step) {
  Impl& m = *impl_;
  m.step_time.Observe(Seconds(step.elapsed_us));
  if (step.failed) {
    m.failed_steps.Increment();
    return;
  }
  if (step.n_slices > 0) m.slice_time.Observe(Seconds(step.slices_us));
  if (step.n_decode_rows > 0) m.decode_step.Observe(Seconds(step.decode_us));
  if (step.predicted_us > 0) {
    m.step_ratio.Observe(static_cast<double>(step.elapsed_us) /
                         static_cast<double>(step.predicted_us));
  }
}

void Metrics::OnHttpResponse(int http_status) {
  impl_->http.Add({{"code", std::to_string(http_status)}}).Increment();
}

std::string Metrics::Render(const EngineStats& stats) {
  Impl& m = *impl_;
  const std::lock_guard lock(m.render_mutex);  // RaiseTo reads and then adds
  const auto set = [](Gauge& gauge, int64_t value) { gauge.Set(static_cast<double>(value)); };
  set(m.running, stats.n_running);
  set(m.waiting, stats.n_waiting);
  set(m.waiting_tokens, stats.n_waiting_tokens);
  const auto n_held = static_cast<double>(stats.n_pages_used + stats.n_pages_reserved);
  m.kv_usage.Set(stats.n_pages_total == 0 ? 0 : n_held / static_cast<double>(stats.n_pages_total));
  if (m.cache_info == nullptr && stats.n_pages_total > 0) {
    prometheus::Labels labels = m.With("block_size", std::to_string(kPageTokens));
    labels["num_gpu_blocks"] = std::to_string(stats.n_pages_total);
    m.cache_info = &m.cache_config.Add(labels);
    m.cache_info->Set(1);
  }
  set(m.pages_total, stats.n_pages_total);
  set(m.pages_used, stats.n_pages_used);
  set(m.pages_reserved, stats.n_pages_reserved);
  set(m.pages_cached, stats.n_pages_cached);
  set(m.pages_pinned, stats.n_pages_pinned);
  Impl::RaiseTo(m.evictions, stats.n_evictions);
  Impl::RaiseTo(m.preemptions, stats.n_preemptions);
  Impl::RaiseTo(m.prefix_queries, stats.prefix_queried_tokens);
  Impl::RaiseTo(m.prefix_hits, stats.prefix_hit_tokens);
  Impl::RaiseTo(m.joined, stats.joined_tokens);
  Impl::RaiseTo(m.prompt_tokens, stats.prompt_tokens);
  Impl::RaiseTo(m.generation_tokens, stats.generation_tokens);
  Impl::RaiseTo(m.steps, stats.n_steps);
  return prometheus::TextSerializer().Serialize(m.registry.Collect());
}

}  // namespace longhaul
