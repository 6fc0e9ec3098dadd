#include "server/request_record.h"

#include <utility>

#include "server/api/status_map.h"

namespace longhaul {

RequestRecord RefusalRecord(std::string request_id, bool chat, const api::FrontPhases& phases,
                            absl::Status status) {
  RequestRecord record;
  record.request_id = std::move(request_id);
  record.chat = chat;
  record.refused = true;
  record.summary.status = std::move(status);
  record.summary.timings = FrontTimings(phases);
  record.e2e_s = std::chrono::duration<double>(Clock::now() - phases.accepted).count();
  return record;
}

const char* RefusalReason(const RequestRecord& record) {
  if (record.http_status == 413) return "body_too_large";
  switch (record.summary.status.code()) {
    case absl::StatusCode::kResourceExhausted:
      // The scheduler refuses for the sake of a deadline alone, the queue before it for its bounds.
      return api::ParamOf(record.summary.status) == "timeout" ? "deadline" : "queue_full";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kOutOfRange:
      return "context_length";
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return "unauthorized";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kNotFound:
      return "invalid";
    default:
      return "error";
  }
}

api::Timings FrontTimings(const api::FrontPhases& phases) {
  api::Timings timings;
  timings.read = phases.read_us;
  timings.parse = phases.parse_us;
  timings.template_ = phases.template_us;
  timings.tokenize = phases.tokenize_us;
  return timings;
}

}  // namespace longhaul
