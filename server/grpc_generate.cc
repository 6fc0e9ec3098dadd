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

// For alarms, which know no other clock.
std::chrono::system_clock::time_point ToSystemTime(Clock::time_point time) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::microseconds>(time - Clock::now());
}

std::string MakeRequestId() {
  std::random_device random;
  return fmt::format("grpc-{:08x}{:08x}", random(), random());
}

// Seconds from `accepted` to the call's deadline; nothing when it has none.
std::optional<double> Timeout(const grpc::CallbackServerContext& context,
                              Clock::time_point accepted) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  const std::chrono::duration<double> seconds =
      (deadline - std::chrono::system_clock::now()) + (Clock::now() - accepted);
  return seconds.count();
}

}  // namespace

RequestRecord RefusedCall(const v1::GenerateRequest& request, Clock::time_point accepted,
                          const absl::Status& status) {
  api::FrontPhases phases;
  phases.accepted = accepted;
  const bool id_is_valid = CheckRequestId(request.request_id()).ok();
  return RefusalRecord(id_is_valid ? request.request_id() : std::string(), request.has_messages(),
                       phases, status);
}

GenerateCall* GenerateCall::Start(Env env, grpc::CallbackServerContext* context,
                                  const v1::GenerateRequest* request) {
  auto call = std::make_shared<GenerateCall>(std::move(env), context, request);
  call->self_ = call;
  // The task holds the call: OnDone may come before the task has returned.
  if (!call->env_.workers->Post([call] { call->Begin(); })) {
    call->finished_ = true;
    const auto busy =
        absl::ResourceExhaustedError("too many requests wait for tokenization; retry later");
    call->RecordRefusal(busy);
    call->Finish(ToGrpc(busy, *context));
  }
  return call.get();
}

GenerateCall::GenerateCall(Env env, grpc::CallbackServerContext* context,
                           const v1::GenerateRequest* request)
    : env_(std::move(env)),
      context_(context),
      request_(request),
      accepted_(Clock::now()),
      ticker_(request->return_progress()) {}

void GenerateCall::RecordRefusal(const absl::Status& status) const {
  if (env_.on_refused) env_.on_refused(RefusedCall(*request_, accepted_, status));
}

absl::StatusOr<api::GenerateRequest> GenerateCall::ReadRequest() {
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
  request.caller = env_.caller;
  // A later deadline is gRPC's alone to watch.
  const std::optional<double> timeout_s = Timeout(*context_, accepted_);
  if (timeout_s && *timeout_s < kMaxDeadlineS) {
    if (*timeout_s < kMinDeadlineS) {
      return absl::DeadlineExceededError("no time is left before the deadline");
    }
    request.timeout_s = std::min(*timeout_s, request.timeout_s.value_or(*timeout_s));
  }
  return request;
}

absl::StatusOr<std::unique_ptr<Generation>> GenerateCall::StartGeneration(bool cancelled) {
  const auto parse_begin = Clock::now();
  // A call that was cancelled while it waited is not tokenized.
  const absl::StatusOr<api::GenerateRequest> request =
      cancelled ? absl::CancelledError("cancelled before the start") : ReadRequest();
  if (!request.ok()) {
    RecordRefusal(request.status());
    return request.status();
  }
  context_->AddInitialMetadata(kRequestIdKey, request->request_id);
  api::FrontPhases phases;
  phases.accepted = accepted_;
  phases.parse_us = MicrosSince(parse_begin);
  return env_.session->Start(*request, phases);
}

void GenerateCall::Begin() {
  bool cancelled = false;
  {
    std::lock_guard lock(mutex_);
    cancelled = cancelled_;
  }
  absl::StatusOr<std::unique_ptr<Generation>> generation = StartGeneration(cancelled);
  {
    std::lock_guard lock(mutex_);
    started_ = true;  // nothing else talks to gRPC before
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
    Finish(ToGrpc(generation.status(), *context_));
  }
}

void GenerateCall::Advance() {
  absl::Status status;
  std::unique_ptr<Generation> dropped;  // outside the lock
  Action action;
  bool set_write_alarm = false;
  {
    std::lock_guard lock(mutex_);
    if (!started_ || writing_ || finished_) return;
    action = NextAction(&status);
    writing_ = action == Action::kSendHeaders || action == Action::kWrite;
    finished_ = action == Action::kFinish || action == Action::kWriteAndFinish;
    if (finished_) dropped = std::move(generation_);
    if (writing_ || finished_) {
      write_began_ = Clock::now();
      set_write_alarm = !std::exchange(write_alarm_set_, true);
    }
  }
  if (set_write_alarm) SetWriteAlarm(Clock::now() + env_.write_timeout);
  switch (action) {  // from Finish on, `this` may be gone
    case Action::kNone:
      break;
    case Action::kSetAlarm:
      SetAlarm();
      break;
    case Action::kSendHeaders:
      StartSendInitialMetadata();
      break;
    case Action::kWrite:
      StartWrite(&response_);
      break;
    case Action::kWriteAndFinish:
      StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
      break;
    case Action::kFinish:
      Finish(ToGrpc(status, *context_));
      break;
  }
}

GenerateCall::Action GenerateCall::NextAction(absl::Status* status) {
  if (cancelled_) {
    *status = absl::CancelledError("cancelled");
    return Action::kFinish;
  }
  const Clock::time_point now = Clock::now();
  const std::optional<api::Chunk> chunk = generation_->TryNext();
  if (!chunk) {
    if (now >= ticker_.due()) {
      ToProto(ticker_.Repeat(now), response_);
      return Action::kWrite;
    }
    if (alarm_set_ || ticker_.due() == Clock::time_point::max()) return Action::kNone;
    alarm_set_ = true;
    alarm_at_ = ticker_.due();
    return Action::kSetAlarm;
  }
  ticker_.OnChunk(*chunk, now);
  if (std::holds_alternative<AcceptedEvent>(*chunk)) return Action::kSendHeaders;
  if (const auto* delta = std::get_if<api::TextDelta>(&*chunk)) ToProto(*delta, response_);
  if (const auto* logprobs = std::get_if<api::PromptLogprobs>(&*chunk)) {
    ToProto(*logprobs, response_);
  }
  if (const auto* progress = std::get_if<ProgressEvent>(&*chunk)) ToProto(*progress, response_);
  const auto* summary = std::get_if<api::Summary>(&*chunk);
  if (summary == nullptr) return Action::kWrite;
  ToProto(*summary, response_);
  *status = summary->status;
  return status->ok() ? Action::kWriteAndFinish : Action::kFinish;
}

void GenerateCall::SetAlarm() {
  alarm_.Set(ToSystemTime(alarm_at_), [weak = weak_from_this()](bool) {
    const auto call = weak.lock();
    if (call == nullptr) return;
    {
      std::lock_guard lock(call->mutex_);
      call->alarm_set_ = false;
    }
    call->Advance();
  });
}

void GenerateCall::SetWriteAlarm(Clock::time_point at) {
  write_alarm_.Set(ToSystemTime(at), [weak = weak_from_this()](bool) {
    if (const auto call = weak.lock()) call->CheckWrite();
  });
}

void GenerateCall::CheckWrite() {
  Clock::time_point deadline;
  {
    std::lock_guard lock(mutex_);
    write_alarm_set_ = false;
    if (done_ || !(writing_ || finished_)) return;
    deadline = write_began_ + env_.write_timeout;
    if (Clock::now() >= deadline) {
      // With the lock, so that OnDone waits. Reactions come on other threads.
      context_->TryCancel();
      return;
    }
    write_alarm_set_ = true;
  }
  SetWriteAlarm(deadline);
}

void GenerateCall::OnSendInitialMetadataDone(bool ok) { OnWriteDone(ok); }

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
  {
    std::lock_guard lock(mutex_);
    done_ = true;
  }
  // on_done lets Shutdown go on: nothing of the server may be used after it.
  const std::function<void()> on_done = env_.on_done;
  const std::shared_ptr<GenerateCall> self = std::move(self_);
  on_done();
}

}  // namespace longhaul
