// What the HTTP server says before, instead of and beside an answer: refusals before the first byte
// of a 200, timeouts, cancel by id, progress while nothing happens, namespaces of API keys.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "engine/retry_after.h"
#include "server/http_server.h"
#include "tests/testing/fake_engine.h"
#include "tests/testing/http_client.h"

namespace longhaul {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kBodies[] = {R"({"prompt":"x"})", R"({"prompt":"x","stream":true})"};

class HttpAdmissionTest : public testing::Test {
 protected:
  HttpAdmissionTest() {
    options_.host = "127.0.0.1";
    options_.port = 0;
    options_.max_body_bytes = 1 << 20;
  }
  ~HttpAdmissionTest() override {
    if (server_) server_->Stop();
  }

  void Start(FakeEngine::Script script) {
    auto engine = std::make_unique<FakeEngine>(std::move(script));
    engine_ = engine.get();
    session_ = Session::CreateWith(TestSessionConfig(), std::make_unique<ByteTokenizer>(),
                                   FakeChat(), std::move(engine));
    auto server = HttpServer::Bind(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_TRUE(server_->Listen(&metrics_).ok());
    server_->Serve(session_.get());
  }
  HttpResponse Post(const std::string& body, const std::string& headers = "",
                    const std::string& path = "/v1/completions") {
    return HttpClient(server_->port()).Post(path, body, headers);
  }
  // Starts a request and waits until the engine has it.
  void Send(HttpClient& client, const std::string& body, const std::string& headers = "") {
    const size_t n_before = engine_->n_requests();
    client.Send(HttpClient::PostText("/v1/completions", body, headers));
    while (engine_->n_requests() == n_before) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  int Cancel(const std::string& id, const std::string& headers = "") {
    return Post("", headers, "/v1/requests/" + id + "/cancel").status;
  }
  // Seconds until the deadline of the last request, when it arrived at the engine.
  double TimeoutOfLast() {
    const Request request = engine_->last_request();
    if (!request.deadline) return -1;
    return std::chrono::duration<double>(*request.deadline - request.accepted).count();
  }

  HttpOptions options_;
  Metrics metrics_{"test-model"};
  FakeEngine* engine_ = nullptr;
  std::unique_ptr<Session> session_;
  std::unique_ptr<HttpServer> server_;
};

json Error(const HttpResponse& response) { return json::parse(response.body).at("error"); }

TEST_F(HttpAdmissionTest, AVerdictOfTheEngineIsAProperErrorAlsoOfAStream) {
  Start(Says("ok"));
  for (const char* body : kBodies) {
    engine_->SetVerdict(
        WithRetryAfter(absl::ResourceExhaustedError("12 s of work are ahead"), 11'500'000));
    HttpResponse response = Post(body);
    EXPECT_EQ(response.status, 429) << body;
    EXPECT_THAT(response.headers, HasSubstr("retry-after: 12\r\n"));
    EXPECT_THAT(response.headers, HasSubstr("application/json"));
    EXPECT_EQ(Error(response)["type"], "rate_limit_error");
    engine_->SetVerdict(absl::DeadlineExceededError("needs 40 s"));
    response = Post(body);
    EXPECT_EQ(response.status, 400) << body;
    EXPECT_EQ(Error(response)["code"], "deadline_unreachable");
    EXPECT_EQ(Error(response)["param"], "timeout");
    EXPECT_THAT(response.headers, Not(HasSubstr("retry-after")));
    engine_->SetVerdict(absl::OkStatus());
    EXPECT_EQ(Post(body).status, 200);
  }
}

TEST_F(HttpAdmissionTest, ADeadlineThatPassesWhileItRunsIs504) {
  Start([](const Request& request, StreamState& state) {
    EmitDone(state, request, absl::DeadlineExceededError("passed"));
  });
  const HttpResponse response = Post(kBodies[0]);
  EXPECT_EQ(response.status, 504);
  EXPECT_EQ(Error(response)["code"], "deadline_exceeded");
  EXPECT_THAT(Post(kBodies[1]).body, HasSubstr("\"code\":\"deadline_exceeded\""));
}

TEST_F(HttpAdmissionTest, TheHeaderOfAStreamWaitsForTheVerdictAndNoWorkerDoes) {
  options_.n_workers = 1;
  Start(Says("ok"));
  engine_->HoldVerdicts(true);
  HttpClient waiting(server_->port());
  Send(waiting, kBodies[1]);
  EXPECT_EQ(Post(R"({"prompt":"x"})", "", "/tokenize").status, 200) << "the worker is free";
  EXPECT_FALSE(waiting.HasData()) << "answered before the verdict";
  engine_->HoldVerdicts(false);
  EXPECT_EQ(waiting.ReadResponse().status, 200);
}

TEST_F(HttpAdmissionTest, AFullQueueIsToldBeforeTheBody) {
  Start(Says("ok"));
  engine_->SetQueueStatus(WithRetryAfter(absl::ResourceExhaustedError("full"), 3'000'000));
  HttpClient client(server_->port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
  const HttpResponse response = client.ReadResponse();  // not a byte of the body was sent
  EXPECT_EQ(response.status, 429);
  EXPECT_THAT(response.headers, HasSubstr("retry-after: 3\r\n"));
  EXPECT_THAT(response.headers, HasSubstr("connection: close"));
  // The declared size is cheaper to check, and other routes do not queue.
  HttpClient large(server_->port());
  large.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n");
  EXPECT_EQ(large.ReadResponse().status, 413);
  EXPECT_EQ(Post(R"({"prompt":"x"})", "", "/tokenize").status, 200);
  engine_->SetQueueStatus(absl::OkStatus());
  EXPECT_EQ(Post(kBodies[0]).status, 200);
}

TEST_F(HttpAdmissionTest, LargeBodiesHaveABoundTogether) {
  options_.max_total_body_bytes = 300'000;
  Start(Says("ok"));
  const std::string body = R"({"prompt":"x")" + std::string(200'000, ' ') + "}";
  const auto header = [](const std::string& fields) {
    return "POST /tokenize HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n\r\n";
  };
  const std::string length = fmt::format("Content-Length: {}", body.size());
  HttpClient first(server_->port());
  first.Send(header(length + "\r\nExpect: 100-continue"));
  EXPECT_EQ(first.ReadResponse().status, 100);  // it holds its share
  for (const std::string& fields : {length, std::string("Transfer-Encoding: chunked")}) {
    HttpClient second(server_->port());
    second.Send(header(fields));  // not a byte of the body
    const HttpResponse refused = second.ReadResponse();
    EXPECT_EQ(refused.status, 429) << fields;
    EXPECT_THAT(refused.headers, HasSubstr("retry-after: 1\r\n"));
    EXPECT_THAT(refused.body, HasSubstr("--max-total-body-bytes"));
  }
  EXPECT_EQ(Post(kBodies[0]).status, 200) << "small ones pass";
  first.Send(body);
  EXPECT_EQ(first.ReadResponse().status, 200);
  // Every way to end gives the share back.
  EXPECT_EQ(Post(body, "", "/tokenize").status, 200);
  EXPECT_EQ(Post(body).status, 200);
  EXPECT_EQ(Post(body.substr(0, 150'000)).status, 400) << "not JSON";
  EXPECT_EQ(Post(body, "", "/tokenize").status, 200);
}

TEST_F(HttpAdmissionTest, TheSmallestTimeoutWins) {
  Start(Says("ok"));
  EXPECT_EQ(Post(R"({"prompt":"x"})").status, 200);
  EXPECT_EQ(TimeoutOfLast(), -1);
  EXPECT_EQ(Post(R"({"prompt":"x","timeout":50})").status, 200);
  EXPECT_NEAR(TimeoutOfLast(), 50, 1e-3);
  EXPECT_EQ(Post(R"({"prompt":"x","timeout_s":50})", "X-Request-Timeout: 20.5\r\n").status, 200);
  EXPECT_NEAR(TimeoutOfLast(), 20.5, 1e-3);
  EXPECT_EQ(Post(R"({"prompt":"x","timeout":50})", "X-Request-Timeout: 90\r\n").status, 200);
  EXPECT_NEAR(TimeoutOfLast(), 50, 1e-3);
  EXPECT_EQ(Post(R"({"prompt":"x"})", "x-request-timeout: 90\r\n").status, 200);
  EXPECT_NEAR(TimeoutOfLast(), 90, 1e-3);
  for (const char* value : {"soon", "0", "-1", "nan", "1s", "1e99", "inf"}) {
    const HttpResponse response = Post(kBodies[0], fmt::format("X-Request-Timeout: {}\r\n", value));
    EXPECT_EQ(response.status, 400) << value;
    EXPECT_EQ(Error(response)["param"], "timeout") << value;
  }
}

TEST_F(HttpAdmissionTest, CancelByAnyOfItsIds) {
  Start(Hangs());
  const struct {
    const char* body;
    const char* headers;
    const char* id;
  } cases[] = {{R"({"prompt":"x"})", "X-Request-Id: from-header\r\n", "from-header"},
               {R"({"prompt":"x","request_id":"from-body"})", "", "from-body"},
               {R"({"prompt":"x","request_id":"b"})", "X-Request-Id: h\r\n", "h"},
               {R"({"prompt":"x"})", "X-Request-Id: a/b%c\r\n", "a%2Fb%25c"},
               {R"({"prompt":"x"})", "X-Request-Id: abc\r\n", "cmpl-abc"}};
  for (const auto& c : cases) {
    HttpClient client(server_->port());
    Send(client, c.body, c.headers);
    EXPECT_EQ(Cancel("other"), 404);
    const HttpResponse cancel = Post("", "", fmt::format("/v1/requests/{}/cancel", c.id));
    EXPECT_EQ(cancel.status, 200) << c.id;
    EXPECT_EQ(json::parse(cancel.body)["status"], "cancelling");
    const HttpResponse response = client.ReadResponse();
    EXPECT_EQ(response.status, 499) << c.id;
    EXPECT_EQ(Error(response)["code"], "cancelled");
    EXPECT_EQ(Cancel(c.id), 404) << "it ended";
  }
  EXPECT_EQ(Post(R"({"prompt":"x","request_id":"two words"})").status, 400);
  EXPECT_EQ(HttpClient(server_->port()).Get("/v1/requests/x/cancel").status, 405);
}

TEST_F(HttpAdmissionTest, CancelOfAStreamByTheIdThatTheServerMade) {
  Start(Hangs());
  HttpClient client(server_->port());
  client.Send(HttpClient::PostText("/v1/completions", kBodies[1]));
  ASSERT_TRUE(client.WaitFor("\r\n\r\n"));
  const std::string& received = client.received();
  const size_t at = received.find("X-Request-Id: ") + 14;
  EXPECT_EQ(Cancel(received.substr(at, received.find("\r\n", at) - at)), 200);
  const HttpResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.body, HasSubstr("\"code\":\"cancelled\""));
  EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpAdmissionTest, OnlyTheHolderOfTheKeyMayCancelAlsoWhileDraining) {
  options_.api_keys = {"alice", "bob"};
  Start(Hangs());
  const std::string alice = "Authorization: Bearer alice\r\n",
                    bob = "Authorization: Bearer bob\r\n";
  HttpClient client(server_->port());
  Send(client, kBodies[0], alice + "X-Request-Id: mine\r\n");
  EXPECT_EQ(Cancel("mine"), 401);
  EXPECT_EQ(Cancel("mine", bob), 404);
  EXPECT_EQ(engine_->n_cancelled(), 0);
  server_->BeginDrain();
  EXPECT_EQ(Cancel("mine", alice), 200);
  EXPECT_EQ(client.ReadResponse().status, 499);
}

TEST_F(HttpAdmissionTest, KeysAreNamespacesOfThePrefixCache) {
  options_.api_keys = {"alice", "bob"};
  Start(Says("ok"));
  const auto salt = [&](const std::string& key, const std::string& body) {
    EXPECT_EQ(Post(body, "Authorization: Bearer " + key + "\r\n").status, 200);
    return engine_->last_request().cache_salt;
  };
  const std::string plain = kBodies[0], salted = R"({"prompt":"x","cache_salt":"s"})";
  EXPECT_EQ(salt("alice", plain), salt("alice", plain));
  EXPECT_NE(salt("alice", plain), salt("bob", plain));
  EXPECT_NE(salt("alice", salted), salt("bob", salted));
  EXPECT_NE(salt("alice", salted), salt("alice", plain));
  EXPECT_THAT(salt("alice", plain), Not(HasSubstr("alice")));
}

TEST_F(HttpAdmissionTest, ProgressIsRepeatedWhileNothingElseComes) {
  Start([](const Request& request, StreamState& state) {
    ProgressEvent progress;
    progress.phase = Phase::kPrefill;
    progress.total_tokens = 100;
    progress.processed_tokens = 40;
    progress.time_us = 1000;
    progress.eta_us = 60'000'000;
    state.Emit(progress);
    while (!state.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EmitDone(state, request);
  });
  HttpClient client(server_->port());
  client.Send(HttpClient::PostText("/v1/completions",
                                   R"({"prompt":"x","stream":true,"return_progress":true})",
                                   "X-Request-Id: p\r\n"));
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));
  EXPECT_EQ(Cancel("p"), 200);
  const HttpResponse response = client.ReadResponse();
  int64_t n_events = 0, time_ms = -1;
  for (size_t at = 0; (at = response.body.find("data: {\"id\"", at)) != std::string::npos; ++at) {
    const size_t end = response.body.find("\n\n", at);
    const json progress =
        json::parse(response.body.substr(at + 6, end - at - 6)).at("prompt_progress");
    EXPECT_EQ(progress["processed"], 40);
    EXPECT_EQ(progress["phase"], "prefill");
    EXPECT_GT(progress["time_ms"], time_ms);
    time_ms = progress["time_ms"];
    EXPECT_NEAR(time_ms + progress["eta_ms"].get<int64_t>(), 60'001, 1);
    ++n_events;
  }
  EXPECT_GE(n_events, 3) << response.body;
}

TEST_F(HttpAdmissionTest, WithoutAskingThereIsNoProgress) {
  Start([](const Request& request, StreamState& state) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1200));
    EmitText(state, "a");
    EmitDone(state, request);
  });
  EXPECT_THAT(Post(kBodies[1]).body, Not(HasSubstr("prompt_progress")));
}

TEST_F(HttpAdmissionTest, UsageTellsCachedTokensOnBothRoutes) {
  Start(Says("ok"));
  const std::string chat = R"({"messages":[{"role":"user","content":"hi"}])";
  const std::string streams = R"(,"stream":true,"stream_options":{"include_usage":true}})";
  const std::string cached = "\"prompt_tokens_details\":{\"cached_tokens\":2}";
  for (const auto& [path, body] :
       {std::pair<std::string, std::string>("/v1/chat/completions", chat),
        {"/v1/completions", R"({"prompt":"x")"}}) {
    EXPECT_THAT(Post(body + "}", "", path).body, HasSubstr(cached)) << path;
    EXPECT_THAT(Post(body + streams, "", path).body, HasSubstr(cached)) << path;
  }
}

}  // namespace
}  // namespace longhaul
