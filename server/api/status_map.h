// absl::Status to what an HTTP client sees: code, OpenAI error object, Retry-After. Errors of our
// own (Internal and the like) keep their text in the log; the client gets a fixed one.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace longhaul::api {

struct HttpError {
  int http_status = 500;
  std::string message;
  std::string type;   // OpenAI's "type": invalid_request_error, ...
  std::string param;  // request field; empty = null
  std::string code;   // empty = null
  int retry_after_s = 0;
};

// InvalidArgument that names the request field it is about.
absl::Status InvalidParam(const std::string& param, const std::string& message);
// Adds the field's name to a status of any code.
absl::Status WithParam(absl::Status status, const std::string& param);
// The field named by InvalidParam or WithParam, or "".
std::string ParamOf(const absl::Status& status);

// Marks what the engine said instead of taking the request. It matters for DeadlineExceeded: then
// the deadline is out of reach, which trying again does not change (400), and did not pass while
// the server worked (504).
absl::Status AsRefusal(absl::Status status);

// Seconds for Retry-After, from the status' RetryAfterUs where it has one: [1, 3600] for refusals
// that a later request may escape (ResourceExhausted, Unavailable), else 0.
int RetryAfterSeconds(const absl::Status& status);

HttpError ToHttpError(const absl::Status& status);

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const HttpError& error);

// Of /health and /ready: {"status": state}, and {"reason": ...} when `reason` is not OK.
std::string StateBody(const char* state, const absl::Status& reason);

}  // namespace longhaul::api
