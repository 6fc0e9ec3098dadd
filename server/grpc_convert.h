// Between the messages of proto/longhaul/v1/inference.proto and api::*. Pure functions, any thread.
// Only what protobuf cannot express is checked here; every range is the Session's business.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "engine/engine.h"
#include "longhaul/v1/inference.pb.h"
#include "server/api/types.h"

namespace longhaul {

// InvalidArgument when there is no prompt or the request_id does not pass CheckRequestId.
absl::StatusOr<api::GenerateRequest> FromProto(const v1::GenerateRequest& message);
// At most 128 printable characters, no space: it goes to logs and headers.
absl::Status CheckRequestId(const std::string& id);
ChatPrompt FromProto(const v1::Messages& messages);

// Overwrites `response`.
void ToProto(const api::TextDelta& delta, v1::GenerateResponse& response);
void ToProto(const api::PromptLogprobs& logprobs, v1::GenerateResponse& response);
void ToProto(const ProgressEvent& progress, v1::GenerateResponse& response);
void ToProto(const api::Summary& summary, v1::GenerateResponse& response);

// The codes are the same by number. The text is cut at 8 KB: it travels in an HTTP/2 header.
grpc::Status ToGrpc(const absl::Status& status);
// The same, with `retry-after` in the trailing metadata where it has one. Before Finish.
grpc::Status ToGrpc(const absl::Status& status, grpc::CallbackServerContext& context);

}  // namespace longhaul
