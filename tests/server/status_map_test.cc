#include "server/api/status_map.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "engine/retry_after.h"

namespace longhaul::api {
namespace {

TEST(StatusMap, CodesThatClientsDependOn) {
  struct Case {
    absl::Status status;
    int http_status;
    const char* code;
    bool retry;
  };
  const Case cases[] = {
      {absl::InvalidArgumentError("x"), 400, "", false},
      {absl::FailedPreconditionError("x"), 400, "", false},
      {absl::OutOfRangeError("x"), 400, "context_length_exceeded", false},
      {absl::UnauthenticatedError("x"), 401, "invalid_api_key", false},
      {absl::NotFoundError("x"), 404, "model_not_found", false},
      {absl::ResourceExhaustedError("x"), 429, "rate_limit_exceeded", true},
      {absl::UnavailableError("x"), 503, "service_unavailable", true},
      {absl::DeadlineExceededError("x"), 504, "deadline_exceeded", false},
  };
  for (const Case& c : cases) {
    const HttpError error = ToHttpError(c.status);
    EXPECT_EQ(error.http_status, c.http_status) << c.status;
    EXPECT_EQ(error.code, c.code) << c.status;
    EXPECT_EQ(error.retry_after_s > 0, c.retry) << c.status;
    EXPECT_EQ(error.message, "x");
  }
}

TEST(StatusMap, RetryAfterIsWholeSecondsWithinAnHour) {
  const auto seconds = [](int64_t us) {
    return ToHttpError(WithRetryAfter(absl::ResourceExhaustedError("x"), us)).retry_after_s;
  };
  EXPECT_EQ(seconds(0), 1);
  EXPECT_EQ(seconds(-5), 1);
  EXPECT_EQ(seconds(1'000'000), 1);
  EXPECT_EQ(seconds(1'000'001), 2);
  EXPECT_EQ(seconds(90'000'000), 90);
  EXPECT_EQ(seconds(std::numeric_limits<int64_t>::max()), 3600);
  EXPECT_EQ(RetryAfterSeconds(absl::UnavailableError("x")), 1);
  EXPECT_EQ(RetryAfterSeconds(WithRetryAfter(absl::OutOfRangeError("x"), 5'000'000)), 0)
      << "no later request escapes that";
}

TEST(StatusMap, ADeadlineOutOfReachIsTheClientsError) {
  const HttpError error = ToHttpError(AsRefusal(absl::DeadlineExceededError("needs 40 s")));
  EXPECT_EQ(error.http_status, 400);
  EXPECT_EQ(error.code, "deadline_unreachable");
  EXPECT_EQ(error.param, "timeout");
  EXPECT_EQ(error.message, "needs 40 s");
  EXPECT_EQ(ToHttpError(AsRefusal(absl::ResourceExhaustedError("x"))).http_status, 429);
  EXPECT_EQ(ToHttpError(AsRefusal(absl::InternalError("x"))).http_status, 500);
}

TEST(StatusMap, OurOwnErrorsKeepTheirText) {
  const HttpError error = ToHttpError(absl::InternalError("pointer 0x7fff1234 in /etc"));
  EXPECT_EQ(error.http_status, 500);
  EXPECT_EQ(error.message.find("0x7fff"), std::string::npos);
}

TEST(StatusMap, BodyHasAllFourKeys) {
  const auto body =
      nlohmann::json::parse(ErrorBody(ToHttpError(InvalidParam("top_p", "'top_p' is \"odd\""))));
  const auto& error = body.at("error");
  EXPECT_EQ(error.at("message"), "'top_p' is \"odd\"");
  EXPECT_EQ(error.at("type"), "invalid_request_error");
  EXPECT_EQ(error.at("param"), "top_p");
  EXPECT_TRUE(error.at("code").is_null());
  EXPECT_EQ(error.size(), 4u);
}

TEST(StatusMap, InvalidUtf8InAMessageDoesNotThrow) {
  EXPECT_NE(ErrorBody(ToHttpError(absl::InvalidArgumentError("\xff"))).find("error"),
            std::string::npos);
}

}  // namespace
}  // namespace longhaul::api
