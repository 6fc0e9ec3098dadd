// GenerateCall: one running Generate call. Owns its Generation; gRPC owns the call by `self_` until
// OnDone. Reactions run on gRPC threads, Begin on a worker, Advance on whichever thread has news;
// none of them blocks except Begin, which tokenizes.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "longhaul/v1/inference.pb.h"
#include "server/session.h"
#include "server/task_queue.h"

namespace longhaul {

class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // What a call needs from its server.
  struct Env {
    Session* session = nullptr;
    TaskQueue* workers = nullptr;          // Begin runs here
    std::shared_ptr<TaskQueue> deliverer;  // Advance runs here when the engine has news; the
                                           // engine's callback may outlive the server by a moment
    std::function<void()> on_done;  // the call is over
  };

  // `context` and `request` live until OnDone.
  static GenerateCall* Start(Env env, grpc::CallbackServerContext* context,
                             const v1::GenerateRequest* request);

  GenerateCall(Env env, grpc::CallbackServerContext* context, const v1::GenerateRequest* request);

 private:
  void Begin();
  absl::StatusOr<std::unique_ptr<Generation>> StartGeneration();
  // Sends the next chunk if there is one and no write is under way; ends the call after the last.
  void Advance();

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  const Env env_;
  grpc::CallbackServerContext* const context_;
  const v1::GenerateRequest* const request_;
  const Clock::time_point accepted_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone
  v1::GenerateResponse response_;       // of the write under way

  std::mutex mutex_;  // guards what follows; gRPC is never called with it held
  std::unique_ptr<Generation> generation_;
  bool started_ = false;  // Begin is over
  bool writing_ = false;
  bool cancelled_ = false;  // by the client, its deadline or Shutdown
  bool finished_ = false;   // Finish was called
};

}  // namespace longhaul
