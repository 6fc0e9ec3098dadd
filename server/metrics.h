// Metrics: what GET /metrics shows, in Prometheus text. Names and meanings are vLLM's where it has
// the metric ("vllm:..."), so that its dashboards and autoscalers work; ours are "longhaul:...".
// Fed by RequestRecords and by EngineStats when it is read. Any thread.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/session.h"

namespace longhaul {

class Metrics {
 public:
  explicit Metrics(const std::string& model_name);
  ~Metrics();

  void OnFinished(const RequestRecord& record);
  // An answer of the HTTP server, by its status code.
  void OnHttpResponse(int http_status);

  // The text of all metrics, with the engine's counters as of now.
  std::string Render(const EngineStats& stats);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One log line per request: ids, counts, times, never text.
void LogRequest(const RequestRecord& record);

}  // namespace longhaul
