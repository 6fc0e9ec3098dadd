#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <spdlog/spdlog.h>

#include <mutex>
#include <nlohmann/json.hpp>

#include "server/api/openai_response.h"

namespace longhaul {
namespace {

using prometheus::Counter;
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
  static const Buckets buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                  0.2,   0.3,    0.4,   0.5,  0.75,  1,    2.5,   5,   10};
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

double Seconds(int64_t us) { return static_cast<double>(us) * 1e-6; }

}  // namespace

struct Metrics::Impl {
  explicit Impl(const std::string& model) : labels{{"model_name", model}} {}

  Gauge& MakeGauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  Counter& MakeCounter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  }
  Histogram& MakeHistogram(const char* name, const char* help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels,
                                                                                     buckets);
  }
  Histogram& Phase(const char* phase) {
    prometheus::Labels all = labels;
    all["phase"] = phase;
    return phases.Add(all, RequestSeconds());
  }
  Counter& Finished(const char* reason) {
    prometheus::Labels all = labels;
    all["finished_reason"] = reason;
    return success.Add(all);
  }
  // Brings a counter up to a total that the engine counts.
  static void RaiseTo(Counter& counter, int64_t total) {
    const double missing = static_cast<double>(total) - counter.Value();
    if (missing > 0) counter.Increment(missing);
  }

  const prometheus::Labels labels;
  prometheus::Registry registry;
  std::mutex render_mutex;

  Gauge& running = MakeGauge("vllm:num_requests_running", "Requests that prefill or decode.");
  Gauge& waiting = MakeGauge("vllm:num_requests_waiting", "Requests in the queue.");
  Gauge& kv_usage = MakeGauge("vllm:kv_cache_usage_perc",
                              "Share of the KV pages held by running requests, 0 to 1.");
  Gauge& pages_total = MakeGauge("longhaul:kv_pages", "Pages of 64 tokens in the pool.");
  Gauge& pages_used = MakeGauge("longhaul:kv_pages_used", "Pages held by running requests.");
  Gauge& pages_cached =
      MakeGauge("longhaul:kv_pages_cached", "Pages kept by the prefix cache alone.");
  Counter& prefix_queries = MakeCounter("vllm:prefix_cache_queries_total",
                                        "Prompt tokens looked up in the prefix cache.");
  Counter& prefix_hits = MakeCounter("vllm:prefix_cache_hits_total", "Prompt tokens found there.");
  Counter& prompt_tokens = MakeCounter("vllm:prompt_tokens_total", "Prompt tokens processed.");
  Counter& generation_tokens = MakeCounter("vllm:generation_tokens_total", "Tokens generated.");
  Counter& steps = MakeCounter("longhaul:engine_steps_total", "Steps of the engine.");
  Counter& cancelled =
      MakeCounter("longhaul:requests_cancelled_total", "Requests whose client went away.");
  Counter& failed =
      MakeCounter("longhaul:requests_failed_total", "Requests that failed after admission.");
  Histogram& ttft =
      MakeHistogram("vllm:time_to_first_token_seconds",
                    "From the first byte of the request to the first token.", RequestSeconds());
  Histogram& e2e =
      MakeHistogram("vllm:e2e_request_latency_seconds", "Whole request.", RequestSeconds());
  Histogram& queue =
      MakeHistogram("vllm:request_queue_time_seconds", "In the queue.", RequestSeconds());
  Histogram& prefill =
      MakeHistogram("vllm:request_prefill_time_seconds",
                    "First slice of the prompt to the first token.", RequestSeconds());
  Histogram& decode =
      MakeHistogram("vllm:request_decode_time_seconds", "First token to last.", RequestSeconds());
  Histogram& token_gap = MakeHistogram("vllm:inter_token_latency_seconds",
                                       "Between tokens of a choice.", TokenSeconds());
  Histogram& request_prompt =
      MakeHistogram("vllm:request_prompt_tokens", "Prompt tokens per request.", Tokens());
  Histogram& request_output =
      MakeHistogram("vllm:request_generation_tokens", "Generated tokens per request.", Tokens());
  Histogram& density =
      MakeHistogram("longhaul:prefill_density",
                    "Share of the causal triangle that prefill attended to.", Shares());
  Histogram& recall =
      MakeHistogram("longhaul:prefill_recall",
                    "Mean softmax mass kept, over the audit rows of a request.", Shares());
  Counter& repaired = MakeCounter("longhaul:repaired_head_epochs_total",
                                  "Head epochs done again densely because the audit failed.");
  prometheus::Family<Histogram>& phases = prometheus::BuildHistogram()
                                              .Name("longhaul:request_phase_seconds")
                                              .Help("Phases of a request before the first token.")
                                              .Register(registry);
  prometheus::Family<Counter>& success = prometheus::BuildCounter()
                                             .Name("vllm:request_success_total")
                                             .Help("Finished requests, by reason.")
                                             .Register(registry);
  prometheus::Family<Counter>& http = prometheus::BuildCounter()
                                          .Name("longhaul:http_responses_total")
                                          .Help("Answers of the HTTP server, by status code.")
                                          .Register(registry);
  Histogram& phase_read = Phase("read");
  Histogram& phase_parse = Phase("parse");
  Histogram& phase_template = Phase("template");
  Histogram& phase_tokenize = Phase("tokenize");
  Histogram& phase_queue = Phase("queue");
  Histogram& phase_prefill = Phase("prefill");
  Counter& finished_stop = Finished("stop");
  Counter& finished_length = Finished("length");
};

Metrics::Metrics(const std::string& model_name) : impl_(std::make_unique<Impl>(model_name)) {}
Metrics::~Metrics() = default;

void Metrics::OnFinished(const RequestRecord& record) {
  Impl& m = *impl_;
  const api::Summary& summary = record.summary;
  if (!summary.status.ok()) {
    (absl::IsCancelled(summary.status) ? m.cancelled : m.failed).Increment();
    return;
  }
  const api::Timings& t = summary.timings;
  m.ttft.Observe(Seconds(t.ttft));
  m.e2e.Observe(record.e2e_s);
  m.queue.Observe(Seconds(t.queue));
  m.prefill.Observe(Seconds(t.prefill));
  m.decode.Observe(Seconds(t.decode));
  for (const double gap_s : record.token_gaps_s) m.token_gap.Observe(gap_s);
  m.request_prompt.Observe(static_cast<double>(summary.usage.prompt_tokens));
  m.request_output.Observe(static_cast<double>(summary.usage.completion_tokens));
  m.phase_read.Observe(Seconds(t.read));
  m.phase_parse.Observe(Seconds(t.parse));
  m.phase_template.Observe(Seconds(t.template_));
  m.phase_tokenize.Observe(Seconds(t.tokenize));
  m.phase_queue.Observe(Seconds(t.queue));
  m.phase_prefill.Observe(Seconds(t.prefill));
  if (summary.sparse.causal_pairs > 0) m.density.Observe(summary.sparse.Density());
  if (summary.sparse.n_recalls > 0) m.recall.Observe(summary.sparse.RecallMean());
  m.repaired.Increment(static_cast<double>(summary.sparse.n_repaired));
  for (const FinishReason reason : record.finished) {
    (reason == FinishReason::kStop ? m.finished_stop : m.finished_length).Increment();
  }
}

void Metrics::OnHttpResponse(int http_status) {
  impl_->http.Add({{"code", std::to_string(http_status)}}).Increment();
}

std::string Metrics::Render(const EngineStats& stats) {
  Impl& m = *impl_;
  const std::lock_guard lock(m.render_mutex);  // RaiseTo reads and then adds
  m.running.Set(static_cast<double>(stats.n_running));
  m.waiting.Set(static_cast<double>(stats.n_waiting));
  m.kv_usage.Set(stats.n_pages_total == 0 ? 0
                                          : static_cast<double>(stats.n_pages_used) /
                                                static_cast<double>(stats.n_pages_total));
  m.pages_total.Set(static_cast<double>(stats.n_pages_total));
  m.pages_used.Set(static_cast<double>(stats.n_pages_used));
  m.pages_cached.Set(static_cast<double>(stats.n_pages_cached));
  Impl::RaiseTo(m.prefix_queries, stats.prefix_queried_tokens);
  Impl::RaiseTo(m.prefix_hits, stats.prefix_hit_tokens);
  Impl::RaiseTo(m.prompt_tokens, stats.prompt_tokens);
  Impl::RaiseTo(m.generation_tokens, stats.generation_tokens);
  Impl::RaiseTo(m.steps, stats.n_steps);
  return prometheus::TextSerializer().Serialize(m.registry.Collect());
}

void LogRequest(const RequestRecord& record) {
  const api::Summary& summary = record.summary;
  nlohmann::ordered_json line = {
      {"event", "request"},
      {"request_id", record.request_id},
      {"kind", record.chat ? "chat" : "completion"},
      {"status", summary.status.ok() ? "ok" : absl::StatusCodeToString(summary.status.code())},
      {"n", record.n},
      {"prompt_tokens", summary.usage.prompt_tokens},
      {"cached_tokens", summary.usage.cached_tokens},
      {"completion_tokens", summary.usage.completion_tokens},
      {"e2e_s", record.e2e_s}};
  if (summary.status.ok()) {
    line.update(api::LonghaulObject(summary));
  } else {
    line["error"] = std::string(summary.status.message().data(), summary.status.message().size());
  }
  spdlog::info("{}", line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace longhaul
