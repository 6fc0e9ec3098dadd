#include "server/load/completion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace longhaul::load {
namespace {

using nlohmann::json;
using testing::HasSubstr;

HttpHead Head(int status = 200) {
  HttpHead head;
  head.status = status;
  return head;
}

HttpOutcome Outcome(int status = 200, absl::Status error = absl::OkStatus()) {
  HttpOutcome outcome;
  outcome.head = Head(status);
  outcome.status = std::move(error);
  return outcome;
}

// The answer that these bytes of a complete HTTP answer make.
Answer Read(std::string_view bytes, int status = 200) {
  AnswerReader reader(Clock::now());
  reader.Take(Head(status), bytes);
  return reader.Finish(Outcome(status));
}

TEST(CompletionBodyTest, AsksOthersForNothingOfOurs) {
  CompletionStyle style;
  style.model = "m";
  const json body = json::parse(CompletionBody(style, "p \"q\"", 5, /*report_progress=*/true));
  const json expected = {{"model", "m"},    {"prompt", "p \"q\""},
                         {"max_tokens", 5}, {"temperature", 0},
                         {"stream", true},  {"stream_options", {{"include_usage", true}}}};
  EXPECT_EQ(body, expected);
}

TEST(CompletionBodyTest, OursChatAndExtraFields) {
  CompletionStyle style{"m", true, true, "sample", R"({"priority": 3, "stream_options": null})"};
  const json body = json::parse(CompletionBody(style, "p", 5, /*report_progress=*/true));
  EXPECT_EQ(body["messages"][0]["content"], "p");
  EXPECT_FALSE(body.contains("prompt"));
  EXPECT_EQ(body["sparse"]["mode"], "sample");
  EXPECT_EQ(body["return_progress"], true);
  EXPECT_EQ(body["priority"], 3);
  EXPECT_FALSE(body.contains("stream_options"));
  EXPECT_STREQ(CompletionPath(style), "/v1/chat/completions");
}

TEST(AnswerReaderTest, TimesTextAndUsage) {
  AnswerReader reader(Clock::now() - std::chrono::seconds(10));
  EXPECT_TRUE(reader.Take(Head(),
                          "data: {\"choices\":[{\"text\":\"\"}],\"prompt_progress\":{\"total\":100,"
                          "\"processed\":25,\"phase\":\"prefill\"}}\n\n"));
  EXPECT_TRUE(
      reader.Take(Head(), "data: {\"choices\":[{\"text\":\"1\",\"finish_reason\":null}]}\n\n"));
  EXPECT_TRUE(reader.Take(
      Head(), "data: {\"choices\":[{\"text\":\"2\",\"finish_reason\":\"length\"}]}\n\n"));
  EXPECT_TRUE(
      reader.Take(Head(),
                  "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":2,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":64}}}\n\ndata: [DONE]\n\n"));
  const Answer answer = reader.Finish(Outcome());
  EXPECT_TRUE(answer.complete) << answer.failure;
  EXPECT_EQ(answer.text, "12");
  EXPECT_GE(answer.ttft_s, 10);
  EXPECT_GE(answer.total_s, answer.ttft_s);
  EXPECT_EQ(answer.gaps_s.size(), 1u);
  EXPECT_EQ(answer.prompt_tokens, 100);
  EXPECT_EQ(answer.cached_tokens, 64);
  EXPECT_EQ(answer.output_tokens, 2);
  ASSERT_EQ(answer.progress.size(), 1u);
  EXPECT_DOUBLE_EQ(answer.progress[0].share, 0.25);
}

TEST(AnswerReaderTest, ChatDeltas) {
  const Answer answer = Read(
      "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n"
      "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"a\"}}]}\n\n"
      "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n"
      "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\ndata: "
      "[DONE]\n\n");
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.text, "ab");
  EXPECT_EQ(answer.gaps_s.size(), 1u);
  EXPECT_EQ(answer.prompt_tokens, -1) << "the server did not say";
}

// A single token without text still has a time.
TEST(AnswerReaderTest, AnswerWithoutText) {
  const Answer answer =
      Read("data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
  EXPECT_TRUE(answer.complete);
  EXPECT_GE(answer.ttft_s, 0);
}

TEST(AnswerReaderTest, StopsAtAShareOfProgress) {
  AnswerReader reader(Clock::now(), /*stop_at_share=*/0.8);
  const auto progress = [](int done) {
    return "data: {\"choices\":[],\"prompt_progress\":{\"total\":10,\"processed\":" +
           std::to_string(done) + "}}\n\n";
  };
  EXPECT_TRUE(reader.Take(Head(), progress(7)));
  EXPECT_FALSE(reader.Take(Head(), progress(8)));
  HttpOutcome outcome = Outcome();
  outcome.stopped = true;
  const Answer answer = reader.Finish(outcome);
  EXPECT_TRUE(answer.stopped);
  EXPECT_FALSE(answer.complete);
  EXPECT_EQ(answer.failure, "") << "we left, nothing failed";
}

TEST(AnswerReaderTest, RefusalsAreNamed) {
  const std::string body =
      R"({"error":{"message":"queue is full","type":"t","code":"rate_limit_exceeded"}})";
  EXPECT_EQ(Read(body, 429).failure, "HTTP 429 rate_limit_exceeded");
  EXPECT_EQ(Read(body, 429).detail, "queue is full");
  EXPECT_EQ(Read(R"({"error":{"message":"m","code":400,"type":null}})", 400).failure, "HTTP 400");
  EXPECT_EQ(Read("<html>busy</html>", 503).failure, "HTTP 503");
  EXPECT_EQ(Read("<html>busy</html>", 503).detail, "<html>busy</html>");
  EXPECT_EQ(Read("[1]", 500).failure, "HTTP 500");
  EXPECT_EQ(Read(R"({"error":"text"})", 500).failure, "HTTP 500");
  EXPECT_EQ(Read("", 502).failure, "HTTP 502");
  EXPECT_LT(Read(std::string(1 << 20, 'x'), 500).detail.size(), 1000u);
}

TEST(AnswerReaderTest, ErrorsInAStream) {
  const Answer error =
      Read("data: {\"error\":{\"message\":\"lost\",\"type\":\"server_error\",\"code\":null}}\n\n");
  EXPECT_EQ(error.failure, "error event server_error");
  EXPECT_EQ(error.detail, "lost");
  EXPECT_EQ(Read("data: {\"choices\":[{\"text\":\"a\"}]}\n\n").failure, "broken stream");
  EXPECT_EQ(Read("data: {nonsense\n\n").failure, "broken stream");
  EXPECT_EQ(Read("data: 7\n\n").failure, "broken stream");
  EXPECT_EQ(Read("").failure, "broken stream");
  EXPECT_EQ(Read("{\"choices\":[]}").failure, "broken stream") << "not an event stream";
}

// What a server may send that makes no sense is skipped, not trusted.
TEST(AnswerReaderTest, OddShapes) {
  const Answer answer = Read(
      "data: {\"choices\":7}\n\ndata: {\"choices\":[7]}\n\ndata: "
      "{\"choices\":[{\"text\":7.5,\"delta\":[]}]}\n\n"
      "data: {\"usage\":[],\"prompt_progress\":3,\"error\":null}\n\n"
      "data: {\"prompt_progress\":{\"total\":0,\"processed\":5}}\n\n"
      "data: "
      "{\"usage\":{\"prompt_tokens\":\"many\"},\"choices\":[{\"finish_reason\":\"stop\"}]}\n\ndata:"
      " [DONE]\n\n");
  EXPECT_TRUE(answer.complete) << answer.failure;
  EXPECT_EQ(answer.prompt_tokens, -1);
}

TEST(AnswerReaderTest, NetworkFailures) {
  const auto failure = [](int status, absl::Status error) {
    AnswerReader reader(Clock::now());
    return reader.Finish(Outcome(status, std::move(error))).failure;
  };
  EXPECT_EQ(failure(0, absl::UnavailableError("refused")), "no connection");
  EXPECT_EQ(failure(200, absl::DataLossError("reset")), "broken stream");
  EXPECT_EQ(failure(200, absl::DeadlineExceededError("late")), "timeout");
}

TEST(FailuresTest, CountsByKind) {
  Failures failures;
  Answer fine, bad;
  bad.failure = "HTTP 429";
  bad.detail = "first";
  failures.Add(fine);
  failures.Add(bad);
  bad.detail = "second";
  failures.Add(bad);
  failures.Add("timeout", "");
  EXPECT_EQ(failures.n(), 3);
  EXPECT_EQ(failures.kinds().at("HTTP 429").count, 2);
  EXPECT_EQ(failures.kinds().at("HTTP 429").first_detail, "first");
}

}  // namespace
}  // namespace longhaul::load
