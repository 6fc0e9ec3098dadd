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

HttpError ToHttpError(const absl::Status& status);

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const HttpError& error);

}  // namespace longhaul::api
