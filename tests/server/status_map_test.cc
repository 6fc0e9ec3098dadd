#include "server/api/status_map.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

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
