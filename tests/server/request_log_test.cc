// The line that a request leaves in the log, and what must never be in it.
#include "server/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "server/api/status_map.h"
#include "tests/testing/fake_engine.h"

namespace longhaul {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

json LineOf(const RequestRecord& record) {
  const std::string line = RequestLogLine(record);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  return json::parse(line);
}

TEST(RequestLog, AFinishedRequest) {
  RequestRecord record;
  record.request_id = "abc";
  record.chat = true;
  record.n = 2;
  record.finished = {FinishReason::kStop, FinishReason::kLength};
  record.e2e_s = 1.5;
  record.summary.usage = {.prompt_tokens = 100, .cached_tokens = 64, .completion_tokens = 7};
  record.summary.timings = {.read = 1000,
                            .parse = 2000,
                            .template_ = 3000,
                            .tokenize = 4000,
                            .queue = 5000,
                            .prefill = 6001,
                            .ttft = 21001,
                            .decode = 7000};
  record.summary.sparse_mode = "sample";
  record.summary.sparse.causal_pairs = 100;
  record.summary.sparse.kept_pairs = 25;
  record.summary.sparse.n_recalls = 2;
  record.summary.sparse.recall_sum = 1.9;
  record.summary.sparse.recall_min = 0.5f;
  EXPECT_EQ(LineOf(record), json::parse(R"({
    "event": "request", "request_id": "abc", "kind": "chat", "status": "ok",
    "finish_reasons": ["stop", "length"], "n": 2,
    "prompt_tokens": 100, "cached_tokens": 64, "output_tokens": 7,
    "phases_ms": {"read": 1.0, "parse": 2.0, "template": 3.0, "tokenize": 4.0, "queue": 5.0,
                  "prefill": 6.001, "decode": 7.0},
    "ttft_ms": 21.001, "e2e_ms": 1500.0,
    "sparse_mode": "sample", "density": 0.25, "recall_mean": 0.95, "recall_min": 0.5,
    "n_repaired": 0})"));
}

TEST(RequestLog, CancelledAndFailedRequests) {
  RequestRecord record;
  record.summary.status = absl::CancelledError("the client went away");
  EXPECT_EQ(LineOf(record)["status"], "cancelled");
  record.summary.status = absl::InternalError("device lost");
  const json line = LineOf(record);
  EXPECT_EQ(line["status"], "failed");
  EXPECT_EQ(line["code"], "INTERNAL");
  EXPECT_EQ(line["error"], "device lost");
  EXPECT_FALSE(line.contains("reason"));
  EXPECT_FALSE(line.contains("ttft_ms"));
}

TEST(RequestLog, ARefusalSaysWhyAndWhatTheClientGot) {
  api::FrontPhases phases;
  phases.accepted = Clock::now();
  phases.read_us = 1500;
  const json line =
      LineOf(RefusalRecord("abc", false, phases, absl::ResourceExhaustedError("9 are waiting")));
  EXPECT_EQ(line["status"], "refused");
  EXPECT_EQ(line["reason"], "queue_full");
  EXPECT_EQ(line["http_status"], 429);
  EXPECT_EQ(line["error"], "9 are waiting");
  EXPECT_EQ(line["phases_ms"]["read"], 1.5);
  EXPECT_FALSE(line["phases_ms"].contains("prefill"));
  EXPECT_FALSE(line.contains("prompt_tokens"));

  RequestRecord large = RefusalRecord("abc", false, phases, absl::InvalidArgumentError(""));
  large.http_status = 413;
  EXPECT_EQ(LineOf(large)["http_status"], 413);
  EXPECT_EQ(LineOf(large)["reason"], "body_too_large");
}

TEST(RequestLog, BytesThatAreNoTextDoNotThrow) {
  RequestRecord record;
  record.request_id = "\xff";
  record.summary.status = absl::InternalError("\xfe\n");
  EXPECT_EQ(LineOf(record)["event"], "request");
}

// Runs requests of every kind through a session, and looks for their texts in the process's log.
TEST(RequestLog, NeverHoldsText) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  const auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log));
  logger->set_level(spdlog::level::trace);
  spdlog::set_default_logger(logger);
  {
    SessionConfig config = TestSessionConfig();
    config.on_finished = LogRequest;
    auto engine = std::make_unique<FakeEngine>(Says("the secret answer"));
    FakeEngine* fake = engine.get();
    const auto session = Session::CreateWith(config, std::make_unique<ByteTokenizer>(), FakeChat(),
                                             std::move(engine));
    const auto run = [&](const api::GenerateRequest& request) {
      auto generation = session->Start(request, {});
      while (generation.ok()) {
        const auto chunk = (*generation)->Next(std::chrono::seconds(10));
        if (!chunk || std::holds_alternative<api::Summary>(*chunk)) break;
      }
    };
    api::GenerateRequest request;
    request.prompt = std::string("the secret prompt");
    run(request);
    request.prompt = ChatPrompt{{{"user", "the secret message"}}};
    run(request);
    request.prompt = ChatPrompt{{{"the secret role", "x"}}};
    run(request);
    request.prompt = std::string("the secret prompt");
    request.model = "the secret model";
    run(request);
    request.model.clear();
    request.stop = {std::string(1 << 16, 's') + "secret"};
    run(request);
    request.stop = {"secret"};
    request.cache_salt = "the secret salt";
    run(request);
    request.max_tokens = 1 << 20;
    run(request);
    request.max_tokens.reset();
    fake->SetVerdict(absl::DeadlineExceededError("needs 40 s"));
    run(request);
    (void)session->Start(request, {});  // dropped
  }
  spdlog::set_default_logger(before);
  const std::string text = log.str();
  EXPECT_THAT(text, HasSubstr("\"status\":\"ok\""));
  EXPECT_THAT(text, HasSubstr("\"status\":\"refused\""));
  EXPECT_THAT(text, HasSubstr("\"reason\":\"context_length\""));
  EXPECT_THAT(text, HasSubstr("\"reason\":\"deadline\""));
  EXPECT_THAT(text, Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace longhaul
