// The calls of the stand-in <cuda_runtime.h> about streams, events and graphs.
#include <cuda_runtime.h>

#include <memory>
#include <utility>

#include "tests/simt/runtime.h"

using longhaul::simt::Command;
using longhaul::simt::Moment;
using longhaul::simt::Runtime;
using Clock = std::chrono::steady_clock;

namespace {

cudaError_t Return(cudaError_t error) { return Runtime::Get().Return(error); }

// Polling: now and then the answer is "not yet", and then the device gets on.
cudaError_t Poll(const Moment& moment) {
  if (moment.IsDone()) return cudaSuccess;
  if (Runtime::Get().order.OneIn(2)) return cudaErrorNotReady;
  moment.Wait();
  return Runtime::Get().sticky();
}

}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = Runtime::Get().Create((flags & cudaStreamNonBlocking) == 0);
  return Return(cudaSuccess);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Runtime::Get().Destroy(stream);
  return Return(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  if (runtime.Resolve(stream)->capture != nullptr) return Return(cudaErrorStreamCaptureUnsupported);
  runtime.Now(stream).Wait();
  return Return(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return Return(Poll(Runtime::Get().Now(stream)));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st();
  return Return(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return Return(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  if (runtime.Resolve(stream)->capture != nullptr) return Return(cudaErrorStreamCaptureUnsupported);
  event->time = std::make_shared<Clock::time_point>();
  const cudaError_t error = runtime.Enqueue(stream, [time = event->time] { *time = Clock::now(); });
  event->moment = runtime.Now(stream);
  return Return(error);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Runtime& runtime = Runtime::Get();
  if (runtime.Resolve(stream)->capture != nullptr) return Return(cudaErrorStreamCaptureUnsupported);
  return Return(runtime.Enqueue(stream, [moment = event->moment] { moment.Wait(); }));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  event->moment.Wait();
  return Return(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return Return(Poll(event->moment)); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  if (begin->time == nullptr || end->time == nullptr) return Return(cudaErrorInvalidValue);
  if (!begin->moment.IsDone() || !end->moment.IsDone()) return Return(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(*end->time - *begin->time).count();
  return Return(cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  // The default stream cannot be captured.
  if (stream == nullptr || stream->stream->capture != nullptr) {
    return Return(cudaErrorStreamCaptureUnsupported);
  }
  stream->stream->capture = std::make_unique<std::vector<Command>>();
  return Return(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream == nullptr || stream->stream->capture == nullptr) {
    return Return(cudaErrorStreamCaptureInvalidated);
  }
  *graph = new CUgraph_st{std::move(*stream->stream->capture)};
  stream->stream->capture.reset();
  return Return(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->commands};
  return Return(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++Runtime::Get().statistics.n_graph_launches;
  for (const Command& command : exec->commands) {
    const cudaError_t error = Runtime::Get().Enqueue(stream, command);
    if (error != cudaSuccess) return Return(error);
  }
  return Return(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return Return(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return Return(cudaSuccess);
}
