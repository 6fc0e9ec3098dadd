#include "server/grpc_generate.h"

#include <fmt/format.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "server/grpc_convert.h"

namespace longhaul {
namespace {

constexpr const char* kRequestIdKey = "x-request-id";
// Deadlines that the session would accept as timeouts.
constexpr double kMinDeadlineS = 0.001;
constexpr double kMaxDeadlineS = 86400;

int64_t MicrosSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

std::string MakeRequestId() {
  std::random_device random;
  return fmt::format("grpc-{:08x}{:08x}", random(), random());
}

// Seconds until the call's deadline; nothing when it has none.
std::optional<double> SecondsLeft(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return std::chrono::duration<double>(deadline - std::chrono::system_clock::now()).count();
}

}  // namespace

GenerateCall* GenerateCall::Start(Env env, grpc::CallbackServerContext* context,
                                  const v1::GenerateRequest* request) {
  auto call = std::make_shared<GenerateCall>(std::move(env), context, request);
  call->self_ = call;
  // The task holds the call: OnDone may come before the task has returned.
  if (!call->env_.workers->Post([call] { call->Begin(); })) {
    call->finished_ = true;
    call->Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                              "too many requests wait for tokenization; retry later"));
  }
  return call.get();
}

GenerateCall::GenerateCall(Env env, grpc::CallbackServerContext* context,
                           const v1::GenerateRequest* request)
    : env_(std::move(env)), context_(context), request_(request), accepted_(Clock::now()) {}

absl::StatusOr<std::unique_ptr<Generation>> GenerateCall::StartGeneration() {
  const auto parse_begin = Clock::now();
  LH_ASSIGN_OR_RETURN(api::GenerateRequest request, FromProto(*request_));
  if (request.request_id.empty()) {
    const auto given = context_->client_metadata().find(kRequestIdKey);
    if (given != context_->client_metadata().end()) {
      request.request_id.assign(given->second.data(), given->second.size());
      LH_RETURN_IF_ERROR(CheckRequestId(request.request_id));
    } else {
      request.request_id = MakeRequestId();
    }
  }
  context_->AddInitialMetadata(kRequestIdKey, request.request_id);
  if (const std::optional<double> left = SecondsLeft(*context_)) {
    if (*left < kMinDeadlineS)
      return absl::DeadlineExceededError("no time is left before the deadline");
    // A later one is gRPC's alone to watch.
    if (*left < kMaxDeadlineS) {
      request.timeout_s = std::min(*left, request.timeout_s.value_or(*left));
    }
  }
  api::FrontPhases phases;
  phases.accepted = accepted_;
  phases.parse_us = MicrosSince(parse_begin);
  return env_.session->Start(request, phases);
}

void GenerateCall::Begin() {
  bool cancelled = false;
  {
    std::lock_guard lock(mutex_);
    cancelled = cancelled_;
  }
  // A call that was cancelled while it waited is not tokenized.
  absl::StatusOr<std::unique_ptr<Generation>> generation =
      cancelled ? absl::CancelledError("cancelled before the start") : StartGeneration();
  // Headers now: from here on the client knows that it was admitted. Nothing else talks to gRPC
  // before started_ is set.
  if (generation.ok()) StartSendInitialMetadata();
  {
    std::lock_guard lock(mutex_);
    started_ = true;
    finished_ = !generation.ok();
    if (generation.ok() && !cancelled_) {
      generation_ = *std::move(generation);
      // Not even the weak reference is resolved on the engine thread: it must not run our
      // destructor.
      generation_->SetReadyCallback([weak = weak_from_this(), deliverer = env_.deliverer] {
        (void)deliverer->Post([weak] {
          if (const auto call = weak.lock()) call->Advance();
        });
      });
    }
  }
  if (generation.ok()) {
    Advance();
  } else {
    Finish(ToGrpc(generation.status()));
  }
}

void GenerateCall::Advance() {
  std::unique_ptr<Generation> dropped;  // outside the lock
  grpc::Status status;
  bool write = true;
  bool finish = false;
  {
    std::lock_guard lock(mutex_);
    if (!started_ || writing_ || finished_) return;
    if (cancelled_) {
      status = grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
      write = false;
      finish = true;
    } else {
      std::optional<api::Chunk> chunk = generation_->TryNext();
      if (chunk && std::holds_alternative<AcceptedEvent>(*chunk)) chunk = generation_->TryNext();
      if (!chunk) return;
      if (const auto* delta = std::get_if<api::TextDelta>(&*chunk)) ToProto(*delta, response_);
      if (const auto* event = std::get_if<ProgressEvent>(&*chunk)) ToProto(*event, response_);
      if (const auto* summary = std::get_if<api::Summary>(&*chunk)) {
        ToProto(*summary, response_);
        status = ToGrpc(summary->status);
        write = status.ok();
        finish = true;
      }
    }
    writing_ = write && !finish;
    finished_ = finish;
    if (finish) dropped = std::move(generation_);
  }
  // From Finish on, `this` may be gone.
  if (write && finish) {
    StartWriteAndFinish(&response_, grpc::WriteOptions(), status);
  } else if (write) {
    StartWrite(&response_);
  } else {
    Finish(status);
  }
}

void GenerateCall::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    cancelled_ = cancelled_ || !ok;
  }
  Advance();
}

void GenerateCall::OnCancel() {
  std::unique_ptr<Generation> dropped;  // frees the request's pages within one slice
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    dropped = std::move(generation_);
  }
  Advance();
}

void GenerateCall::OnDone() {
  // on_done lets Shutdown go on: nothing of the server may be used after it.
  const std::function<void()> on_done = env_.on_done;
  const std::shared_ptr<GenerateCall> self = std::move(self_);
  on_done();
}

}  // namespace longhaul
