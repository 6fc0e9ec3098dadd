// GenerateCall: one running Generate call. Owns its Generation; gRPC owns the call by `self_` until
// OnDone. Reactions run on gRPC threads, Begin on a worker, Advance on whichever thread has news;
// none of them blocks except Begin, which tokenizes. Nothing is sent, not even headers, before the
// engine took the request.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "longhaul/v1/inference.pb.h"
#include "server/progress_ticker.h"
#include "server/session.h"
#include "server/task_queue.h"

namespace longhaul {

// For the request log: a call that was refused before it reached the Session.
RequestRecord RefusedCall(const v1::GenerateRequest& request, Clock::time_point accepted,
                          const absl::Status& status);

class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // What a call needs from its server.
  struct Env {
    Session* session = nullptr;
    std::string caller;                    // ApiKeys::Caller
    TaskQueue* workers = nullptr;          // Begin runs here
    std::shared_ptr<TaskQueue> deliverer;  // Advance runs here when the engine has news; the
                                           // engine's callback may outlive the server by a moment
    std::function<void(const RequestRecord&)> on_refused;  // GrpcOptions::on_refused
    std::function<void()> on_done;                         // the call is over
    std::chrono::milliseconds write_timeout{};             // GrpcOptions::write_timeout
  };

  // `context` and `request` live until OnDone.
  static GenerateCall* Start(Env env, grpc::CallbackServerContext* context,
                             const v1::GenerateRequest* request);

  GenerateCall(Env env, grpc::CallbackServerContext* context, const v1::GenerateRequest* request);

 private:
  void Begin();
  absl::StatusOr<api::GenerateRequest> ReadRequest();
  absl::StatusOr<std::unique_ptr<Generation>> StartGeneration(bool cancelled);
  void RecordRefusal(const absl::Status& status) const;
  // Sends the next chunk if there is one and no write is under way; ends the call after the last.
  void Advance();
  // What to do next, decided under the lock and done without it.
  enum class Action { kNone, kSetAlarm, kSendHeaders, kWrite, kWriteAndFinish, kFinish };
  Action NextAction(absl::Status* status);
  // Calls Advance at alarm_at_.
  void SetAlarm();
  // Calls CheckWrite at `at`.
  void SetWriteAlarm(Clock::time_point at);
  // Cancels the call when what is being written takes too long: the client does not read.
  void CheckWrite();

  void OnSendInitialMetadataDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  const Env env_;
  grpc::CallbackServerContext* const context_;
  const v1::GenerateRequest* const request_;
  const Clock::time_point accepted_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone
  v1::GenerateResponse response_;       // of the write under way
  grpc::Alarm alarm_;                   // used by who set alarm_set_, as alarm_at_
  Clock::time_point alarm_at_;
  grpc::Alarm write_alarm_;  // used by who set write_alarm_set_

  // Guards what follows. gRPC is never called with it held, but to cancel.
  std::mutex mutex_;
  std::unique_ptr<Generation> generation_;
  ProgressTicker ticker_;
  bool started_ = false;           // Begin is over
  bool writing_ = false;           // headers or a message
  bool alarm_set_ = false;         // until it rings
  bool cancelled_ = false;         // by the client, its deadline or Shutdown
  bool finished_ = false;          // Finish was called
  bool done_ = false;              // OnDone began: context_ may be gone
  Clock::time_point write_began_;  // of headers, a message or the end: the last one
  bool write_alarm_set_ = false;   // until it rings; not set and cancelled for every write
};

}  // namespace longhaul
