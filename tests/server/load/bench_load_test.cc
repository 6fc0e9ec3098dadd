// `longhaul bench load` end to end, against our HTTP server on an engine that plays scripts.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "server/cmd_bench_load.h"
#include "server/http_server.h"
#include "server/load/http_client.h"
#include "server/load/prompt_text.h"
#include "tests/testing/fake_engine.h"

namespace longhaul {
namespace {

using load::LoadOptions;
using nlohmann::json;
using testing::HasSubstr;

constexpr int64_t kLongBytes = 4000;  // tokens of this server are bytes

// Long prompts take 60 ms and report progress, short ones 4 ms; all stop when cancelled.
void Answers(const Request& request, StreamState& state) {
  const auto total = static_cast<int64_t>(request.prompt.size());
  if (total > 2000) {
    for (int i = 1; i <= 10 && !state.cancelled(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(6));
      ProgressEvent progress;
      progress.phase = Phase::kPrefill;
      progress.total_tokens = total;
      progress.processed_tokens = total * i / 10;
      state.Emit(progress);
    }
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(4));
  }
  for (int64_t i = 0; i < request.max_tokens; ++i) {
    EmitByte(state, '7', 0,
             i + 1 == request.max_tokens ? std::optional(FinishReason::kLength) : std::nullopt);
  }
  EmitDone(state, request);
}

class BenchLoadTest : public testing::Test {
 protected:
  BenchLoadTest() {
    options_.short_tokens = 700;
    options_.short_output = 3;
    options_.stream_output = 3;
    options_.long_tokens = kLongBytes;
    options_.parallel_tokens = kLongBytes;
    options_.parallel = 3;
    options_.new_tokens = 100;
    options_.seconds = 0.5;
    options_.utilisation = 0.3;
    options_.cancels = 2;
    options_.retries = 1;
    options_.body_bytes = 100000;
    options_.streams = 4;
    options_.json_path = testing::TempDir() + "bench_load.json";
  }
  ~BenchLoadTest() override {
    if (server_) server_->Stop();
  }

  void Start(FakeEngine::Script script, int64_t max_model_len = 20000) {
    auto engine = std::make_unique<FakeEngine>(std::move(script), max_model_len);
    engine_ = engine.get();
    session_ = Session::CreateWith(TestSessionConfig(), std::make_unique<ByteTokenizer>(),
                                   FakeChat(), std::move(engine));
    HttpOptions http;
    http.host = "127.0.0.1";
    http.port = 0;
    auto server = HttpServer::Bind(http);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_TRUE(server_->Listen(&metrics_).ok());
    server_->Serve(session_.get());
    options_.url = "http://127.0.0.1:" + std::to_string(server_->port());
  }
  // Runs these scenarios; their reports.
  json Run(std::vector<std::string> scenarios, int expected_exit = 0) {
    options_.scenarios = std::move(scenarios);
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    std::remove(options_.json_path.c_str());
    const int exit = RunBenchLoad(options_);
    stdout_ = testing::internal::GetCapturedStdout();
    stderr_ = testing::internal::GetCapturedStderr();
    EXPECT_EQ(exit, expected_exit) << stdout_ << stderr_;
    std::ifstream file(options_.json_path);
    const json result = json::parse(file, nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(result.contains("scenarios")) << stdout_ << stderr_;
    return result.value("scenarios", json::object());
  }

  LoadOptions options_;
  Metrics metrics_{"test-model"};
  FakeEngine* engine_ = nullptr;
  std::unique_ptr<Session> session_;
  std::unique_ptr<HttpServer> server_;
  std::string stdout_, stderr_;
};

TEST_F(BenchLoadTest, MixedMeasuresBothWindows) {
  Start(Answers);
  options_.svg_path = testing::TempDir() + "bench_load.svg";
  const json mixed = Run({"mixed"})["mixed"];
  EXPECT_GT(mixed["service_s"], 0.004);
  EXPECT_GT(mixed["without"]["ttft_s"]["n"], 5);
  EXPECT_GT(mixed["with"]["ttft_s"]["n"], 5);
  EXPECT_GE(mixed["with"]["ttft_s"]["p50"], 0.004);
  EXPECT_GE(mixed["long_alone_ttft_s"]["p50"], 0.06);
  EXPECT_GE(mixed["long_among_ttft_s"]["n"], 2) << "back to back for the whole window";
  EXPECT_TRUE(mixed["failures"].empty());
  std::ifstream file(options_.svg_path);
  const std::string svg{std::istreambuf_iterator<char>(file), {}};
  EXPECT_THAT(svg, HasSubstr("<circle"));
  EXPECT_THAT(svg, HasSubstr("<path"));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_THAT(stdout_, HasSubstr("TTFT with"));
}

TEST_F(BenchLoadTest, ParallelSeesProgressOfEach) {
  Start(Answers);
  const json parallel = Run({"parallel"})["parallel"];
  ASSERT_EQ(parallel["prompts"].size(), 3u);
  for (const json& prompt : parallel["prompts"]) {
    EXPECT_TRUE(prompt["complete"]);
    EXPECT_GE(prompt["progress"].size(), 5u);
    EXPECT_EQ(prompt["progress"].back()[1], 1.0);
  }
  EXPECT_LT(parallel["ratio"], 0.9) << "this engine runs them beside each other";
  EXPECT_GT(parallel["least_share_at_half"], 0.0);
}

TEST_F(BenchLoadTest, CancelReachesTheEngine) {
  Start(Answers);
  const json cancel = Run({"cancel"})["cancel"];
  EXPECT_EQ(cancel["after_cancel_ttft_s"]["n"], 2);
  EXPECT_EQ(cancel["settled_s"]["n"], 2);
  EXPECT_EQ(cancel["n_not_settled"], 0);
  EXPECT_GE(engine_->n_cancelled() + static_cast<int>(cancel["n_finished_first"]), 2);
  EXPECT_GE(engine_->n_cancelled(), 1);
}

TEST_F(BenchLoadTest, RetryAsksForTheSamePromptAgain) {
  Start(Answers);
  const json retry = Run({"retry"})["retry"];
  EXPECT_EQ(retry["retry_ttft_s"]["n"], 1);
  EXPECT_EQ(retry["retry_cached_tokens"], 2) << "as this engine says";
  EXPECT_GE(engine_->n_cancelled(), 1);
  EXPECT_EQ(engine_->last_request().prompt.size(),
            retry["prompt_tokens"].get<size_t>() + 1 + load::PromptText(1, 1).Filler(100).size());
}

TEST_F(BenchLoadTest, HealthIsPolledWhileBodiesArrive) {
  Start(Answers);
  const json health = Run({"health"})["health"];
  EXPECT_GT(health["idle_s"]["n"], 100);
  EXPECT_GT(health["loaded_s"]["n"], 20);
  EXPECT_NEAR(static_cast<double>(health["body_bytes"]), 100000, 1000);
  EXPECT_GE(health["n_bodies"], 1);
  EXPECT_TRUE(health["failures"].empty()) << "a body that is refused is not a failed health check";
  EXPECT_THAT(health["verdicts"].dump(), HasSubstr("context_length_exceeded"));
}

TEST_F(BenchLoadTest, StreamsCountEveryToken) {
  Start(Answers);
  const json streams = Run({"streams"})["streams"];
  EXPECT_GT(streams["n_requests"], 8);
  EXPECT_EQ(streams["n_requests"], streams["n_complete"]);
  EXPECT_NEAR(
      static_cast<double>(streams["tokens_per_s"]),
      3.0 * static_cast<double>(streams["n_requests"]) / static_cast<double>(streams["seconds"]),
      1);
}

TEST_F(BenchLoadTest, RefusalsAreShownAndCounted) {
  std::atomic<int> n_requests{0};
  Start([&](const Request& request, StreamState& state) {
    if (++n_requests == 6) engine_->SetVerdict(absl::ResourceExhaustedError("no room"));
    Answers(request, state);
  });
  const json streams = Run({"streams"}, /*expected_exit=*/1)["streams"];
  ASSERT_TRUE(streams["failures"].contains("HTTP 429 rate_limit_exceeded")) << streams["failures"];
  EXPECT_GT(streams["failures"]["HTTP 429 rate_limit_exceeded"]["count"], 1);
  EXPECT_LT(streams["n_complete"], streams["n_requests"]);
  EXPECT_THAT(stdout_, HasSubstr("FAILED"));
}

TEST_F(BenchLoadTest, WhatCannotRunSaysSo) {
  Start(Answers, /*max_model_len=*/3000);
  const json all = Run({"mixed", "parallel", "cancel", "retry"});
  for (const char* name : {"mixed", "parallel", "cancel", "retry"}) {
    EXPECT_THAT(all[name]["skipped"].get<std::string>(), HasSubstr("3000")) << name;
  }
}

TEST_F(BenchLoadTest, NobodyAnswers) {
  Start(Answers);
  server_->Stop();
  server_.reset();
  options_.json_path.clear();
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunBenchLoad(options_), 1);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("cannot connect"));
}

TEST(LoadOptionsTest, UnusableValuesAreNamed) {
  const auto message = [](auto change) {
    LoadOptions options;
    change(options);
    const absl::Status status = load::CheckOptions(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_TRUE(load::CheckOptions(LoadOptions()).ok());
  EXPECT_THAT(message([](auto& o) { o.url = "localhost:8000"; }), HasSubstr("http://"));
  EXPECT_THAT(message([](auto& o) {
                o.scenarios = {"mixed", "all"};
              }),
              HasSubstr("--scenario all"));
  EXPECT_THAT(message([](auto& o) { o.utilisation = 1; }), HasSubstr("--utilisation 1"));
  EXPECT_THAT(message([](auto& o) { o.seconds = std::nan(""); }), HasSubstr("--seconds"));
  EXPECT_THAT(message([](auto& o) { o.long_tokens = 3; }), HasSubstr("--long-tokens 3"));
  EXPECT_THAT(message([](auto& o) { o.short_tokens = 64; }), HasSubstr("--short-tokens 64"));
  EXPECT_THAT(message([](auto& o) { o.parallel = 1; }), HasSubstr("--parallel 1"));
  EXPECT_THAT(message([](auto& o) { o.streams = 0; }), HasSubstr("--streams"));
  EXPECT_THAT(message([](auto& o) { o.extra_body = "[]"; }), HasSubstr("--extra-body"));
  EXPECT_THAT(message([](auto& o) { o.api_key = "a\r\nX: y"; }), HasSubstr("--api-key"));
  EXPECT_THAT(message([](auto& o) {
                o.scenarios = {"cancel"};
                o.svg_path = "x.svg";
              }),
              HasSubstr("--svg"));
}

TEST(LoadOptionsTest, FilesThatCannotBeWrittenAreFoundAtOnce) {
  LoadOptions options;
  options.url = "http://127.0.0.1:1";
  options.json_path = "/no/such/folder/x.json";
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunBenchLoad(options), 2);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("/no/such/folder/x.json"));
}

TEST(ParseUrlTest, Forms) {
  const auto parts = [](const std::string& text) {
    const absl::StatusOr<load::Url> url = load::ParseUrl(text);
    return url.ok() ? url->host + "|" + url->port + "|" + url->path : "refused";
  };
  EXPECT_EQ(parts("http://localhost:8000"), "localhost|8000|");
  EXPECT_EQ(parts("http://localhost"), "localhost|80|");
  EXPECT_EQ(parts("http://h:1/"), "h|1|");
  EXPECT_EQ(parts("http://h:1/v1"), "h|1|");
  EXPECT_EQ(parts("http://h:1/v1/"), "h|1|");
  EXPECT_EQ(parts("http://h/a/b/v1"), "h|80|/a/b");
  EXPECT_EQ(parts("http://[::1]:8000/x"), "::1|8000|/x");
  EXPECT_EQ(parts("http://[::1]"), "::1|80|");
  for (const char* bad :
       {"", "h:1", "https://h", "ftp://h", "http://", "http://:80", "http://h:", "http://h:0",
        "http://h:65536", "http://h:8x", "http://[::1", "http://[::1]80", "http://a b",
        "http://h?x", "http://u@h", "http://h\r\nX:1"}) {
    EXPECT_EQ(parts(bad), "refused") << bad;
  }
}

}  // namespace
}  // namespace longhaul
