#include "kernels/cuda/graphs.h"

#include "kernels/cuda/errors.h"

namespace longhaul::cuda {

Graphs::~Graphs() {
  for (const auto& [key, recording] : recordings_) {
    if (recording.exec != nullptr) cudaGraphExecDestroy(recording.exec);
  }
}

void Graphs::Record(Recording& recording, int64_t memory_version,
                    const std::function<void()>& issue) {
  if (recording.exec != nullptr) {
    CheckCuda(cudaStreamSynchronize(stream_), "Replay");  // it may still run
    CheckCuda(cudaGraphExecDestroy(recording.exec), "Replay");
  }
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "Replay");
  is_recording_ = true;
  issue();
  is_recording_ = false;
  cudaGraph_t graph = nullptr;
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "Replay");
  CheckCuda(cudaGraphInstantiate(&recording.exec, graph, 0), "Replay");
  CheckCuda(cudaGraphDestroy(graph), "Replay");
  recording.memory_version = memory_version;
}

void Graphs::Replay(int64_t key, int64_t memory_version, const std::function<void()>& issue) {
  const auto [entry, is_first] = recordings_.try_emplace(key);
  if (is_first) {
    issue();
    return;
  }
  Recording& recording = entry->second;
  if (recording.exec == nullptr || recording.memory_version != memory_version) {
    Record(recording, memory_version, issue);
  }
  CheckCuda(cudaGraphLaunch(recording.exec, stream_), "Replay");
}

}  // namespace longhaul::cuda
