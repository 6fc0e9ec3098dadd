// Metrics: what GET /metrics shows, in Prometheus text; docs/operations.md lists every one. Names
// and meanings are vLLM's where it has the metric ("vllm:..."), so that its dashboards and
// autoscalers work; ours are "longhaul:...". Fed by RequestRecords and StepRecords, and by
// EngineStats when it is read. Any thread.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/request_record.h"

namespace longhaul {

class Metrics {
 public:
  explicit Metrics(const std::string& model_name);
  ~Metrics();

  // A request is over, refused ones included.
  void OnRequest(const RequestRecord& record);
  // On the engine thread, after each step: a few locks that nobody holds for long.
  void OnStep(const StepRecord& step);
  // An answer of the HTTP server, by its status code.
  void OnHttpResponse(int http_status);

  // The text of all metrics, with the engine's counters as of now.
  std::string Render(const EngineStats& stats);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longhaul
