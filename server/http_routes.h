// Routes of the HTTP server, and the answers that need no engine. Pure functions, any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "server/api/status_map.h"
#include "server/session.h"

namespace longhaul {

enum class Route : uint8_t {
  kChatCompletions,
  kCompletions,
  kTokenize,
  kDetokenize,
  kCancel,
  kModels,
  kModel,
  kHealth,
  kReady,
  kVersion,
  kMetrics,
  kUnknown,
};

struct RouteMatch {
  Route route = Route::kUnknown;
  bool is_public = false;  // no API key needed
  bool method_allowed = false;
  const char* allow = "";  // methods of this path, for 405
  std::string argument;    // kModel: the name, kCancel: the request id; percent-decoded
};

// `target` is the request target, query included (and ignored). HEAD counts as GET.
RouteMatch MatchRoute(std::string_view method, std::string_view target);

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  int retry_after_s = 0;
  std::string allow;  // 405
};
HttpReply ErrorReply(const api::HttpError& error);
HttpReply ErrorReply(const absl::Status& status);

// POST /v1/requests/{id}/cancel; `id` may also be that of an answer ("cmpl-..."). Does not block.
HttpReply AnswerCancel(Session& session, const std::string& caller, const std::string& id);

// Blocking work of the small POST routes: run it on a worker.
absl::StatusOr<std::string> AnswerTokenize(const Session& session, std::string_view body,
                                           int64_t max_model_len);
absl::StatusOr<std::string> AnswerDetokenize(const Session& session, std::string_view body);

// `request_id` if a client may choose it: 1 to 128 printable characters without space.
bool IsValidRequestId(std::string_view request_id);
// Seconds of the header X-Request-Timeout; nothing when it is empty.
absl::StatusOr<std::optional<double>> ParseTimeout(std::string_view value);
// 128 random bits in hexadecimal.
std::string MakeRequestId();

}  // namespace longhaul
