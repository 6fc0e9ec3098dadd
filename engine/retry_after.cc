#include "engine/retry_after.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace longhaul {
namespace {

constexpr char kPayload[] = "longhaul/retry_after_us";

}  // namespace

absl::Status WithRetryAfter(absl::Status status, int64_t retry_after_us) {
  status.SetPayload(kPayload, absl::Cord(std::to_string(retry_after_us)));
  return status;
}

std::optional<int64_t> RetryAfterUs(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  int64_t us = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &us)) return std::nullopt;
  return us;
}

}  // namespace longhaul
