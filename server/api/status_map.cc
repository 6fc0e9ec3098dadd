#include "server/api/status_map.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/cord.h"
#include "engine/retry_after.h"

namespace longhaul::api {
namespace {

constexpr char kParamPayload[] = "longhaul/param";
constexpr char kRefusalPayload[] = "longhaul/refusal";
constexpr int64_t kMaxRetryAfterS = 3600;

}  // namespace

absl::Status InvalidParam(const std::string& param, const std::string& message) {
  return WithParam(absl::InvalidArgumentError(message), param);
}

absl::Status WithParam(absl::Status status, const std::string& param) {
  status.SetPayload(kParamPayload, absl::Cord(param));
  return status;
}

std::string ParamOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kParamPayload);
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status AsRefusal(absl::Status status) {
  if (absl::IsDeadlineExceeded(status) || absl::IsResourceExhausted(status)) {
    status = WithParam(std::move(status), "timeout");
  }
  status.SetPayload(kRefusalPayload, absl::Cord());
  return status;
}

int RetryAfterSeconds(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsUnavailable(status)) return 0;
  const int64_t us =
      std::clamp<int64_t>(RetryAfterUs(status).value_or(0), 0, kMaxRetryAfterS * 1'000'000);
  return static_cast<int>(std::max<int64_t>(1, (us + 999'999) / 1'000'000));
}

HttpError ToHttpError(const absl::Status& status) {
  HttpError error;
  error.message = std::string(status.message().data(), status.message().size());
  error.param = ParamOf(status);
  error.retry_after_s = RetryAfterSeconds(status);
  const auto set = [&error](int http_status, const char* type, const char* code) {
    error.http_status = http_status;
    error.type = type;
    error.code = code;
  };
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      set(400, "invalid_request_error", "");
      break;
    case absl::StatusCode::kOutOfRange:
      set(400, "invalid_request_error", "context_length_exceeded");
      break;
    case absl::StatusCode::kUnauthenticated:
      set(401, "invalid_request_error", "invalid_api_key");
      break;
    case absl::StatusCode::kPermissionDenied:
      set(403, "invalid_request_error", "permission_denied");
      break;
    case absl::StatusCode::kNotFound:
      set(404, "invalid_request_error", "model_not_found");
      break;
    case absl::StatusCode::kResourceExhausted:
      set(429, "rate_limit_error", "rate_limit_exceeded");
      break;
    case absl::StatusCode::kCancelled:
      set(499, "request_cancelled", "cancelled");
      break;
    case absl::StatusCode::kUnavailable:
      set(503, "service_unavailable_error", "service_unavailable");
      break;
    case absl::StatusCode::kDeadlineExceeded:
      if (status.GetPayload(kRefusalPayload).has_value()) {
        set(400, "invalid_request_error", "deadline_unreachable");
      } else {
        set(504, "timeout_error", "deadline_exceeded");
      }
      break;
    default:
      set(500, "internal_error", "internal_error");
      error.message = "The server failed to answer this request; its log says why.";
      error.param.clear();
  }
  return error;
}

std::string ErrorBody(const HttpError& error) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(text);
  };
  nlohmann::ordered_json body;
  body["error"] = {{"message", error.message},
                   {"type", error.type},
                   {"param", or_null(error.param)},
                   {"code", or_null(error.code)}};
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string StateBody(const char* state, const absl::Status& reason) {
  nlohmann::ordered_json body = {{"status", state}};
  if (!reason.ok()) {
    body["reason"] = std::string(reason.message().data(), reason.message().size());
  }
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace longhaul::api
