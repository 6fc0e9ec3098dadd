// The HTTP server over loopback, on an engine that plays scripts.
#include "server/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/testing/fake_engine.h"
#include "tests/testing/http_client.h"

namespace longhaul {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

constexpr std::chrono::seconds kPatience{10};

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    options_.host = "127.0.0.1";
    options_.port = 0;
    options_.version = "9.9.9";
    options_.max_body_bytes = 1 << 20;
  }
  ~HttpServerTest() override {
    if (server_) server_->Stop();
  }

  void Start(FakeEngine::Script script) {
    auto engine = std::make_unique<FakeEngine>(std::move(script));
    engine_ = engine.get();
    SessionConfig config = TestSessionConfig();
    config.on_finished = [this](const RequestRecord& record) { metrics_.OnRequest(record); };
    session_ = Session::CreateWith(config, std::make_unique<ByteTokenizer>(), FakeChat(),
                                   std::move(engine));
    auto server = HttpServer::Bind(options_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_TRUE(server_->Listen(&metrics_).ok());
    server_->Serve(session_.get());
  }
  int port() const { return server_->port(); }
  bool WaitUntil(const std::function<bool()>& condition) {
    const Clock::time_point deadline = Clock::now() + kPatience;
    while (!condition()) {
      if (Clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }
  // The server answers somebody else.
  void ExpectAlive() { EXPECT_EQ(HttpClient(port()).Get("/health").status, 200); }

  HttpOptions options_;
  Metrics metrics_{"test-model"};
  FakeEngine* engine_ = nullptr;
  std::unique_ptr<Session> session_;
  std::unique_ptr<HttpServer> server_;
};

json Error(const HttpResponse& response) { return json::parse(response.body).at("error"); }

TEST_F(HttpServerTest, SmallRoutes) {
  Start(Says("x"));
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
  EXPECT_EQ(HttpClient(port()).Get("/ready").status, 200);
  HttpClient client(port());  // all on one connection: keep-alive
  EXPECT_EQ(json::parse(client.Get("/version").body)["version"], "9.9.9");
  EXPECT_EQ(json::parse(client.Get("/v1/models").body)["data"][0]["id"], "test-model");
  EXPECT_EQ(json::parse(client.Get("/v1/models/test%2Dmodel").body)["id"], "test-model");
  EXPECT_EQ(client.Get("/v1/models/other").status, 404);
  EXPECT_EQ(json::parse(client.Post("/tokenize", R"({"prompt":"ab"})").body)["tokens"],
            (json{256, 97, 98}));
  EXPECT_EQ(json::parse(client.Post("/detokenize", R"({"tokens":[97,98]})").body)["prompt"], "ab");
  EXPECT_EQ(client.Post("/detokenize", R"({"tokens":[9999]})").status, 400);
  const HttpResponse metrics = client.Get("/metrics?x=1");
  EXPECT_THAT(metrics.body, HasSubstr("vllm:num_requests_running{model_name=\"test-model\"} 0"));
  EXPECT_THAT(metrics.body, HasSubstr("vllm:prompt_tokens_total{model_name=\"test-model\"} 7"));
  EXPECT_THAT(metrics.headers, HasSubstr("text/plain"));
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  Start(Says("x"));
  HttpClient client(port());
  client.Send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.ReadResponse(/*head_only=*/true).status, 200);
  EXPECT_EQ(client.Get("/ready").status, 200);
}

TEST_F(HttpServerTest, CompletionAndChat) {
  Start(Says("hello"));
  HttpClient client(port());
  const HttpResponse completion = client.Post(
      "/v1/completions", R"({"model":"test-model","prompt":"hi"})", "X-Request-Id: abc\r\n");
  ASSERT_EQ(completion.status, 200) << completion.body;
  EXPECT_THAT(completion.headers, HasSubstr("x-request-id: abc"));
  const json body = json::parse(completion.body);
  EXPECT_EQ(body["id"], "cmpl-abc");
  EXPECT_EQ(body["choices"][0]["text"], "hello");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  EXPECT_LT(body["longhaul"]["timings"]["ttft_s"], 10.0);
  const HttpResponse chat =
      client.Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}],"n":2})");
  ASSERT_EQ(chat.status, 200) << chat.body;
  EXPECT_EQ(json::parse(chat.body)["choices"][1]["message"]["content"], "hello");
}

TEST_F(HttpServerTest, StreamFraming) {
  Start(Says("hello"));
  HttpClient client(port());
  const HttpResponse response = client.Post(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}})");
  ASSERT_EQ(response.status, 200);
  EXPECT_THAT(response.headers, HasSubstr("content-type: text/event-stream"));
  EXPECT_TRUE(response.body.ends_with("\n\ndata: [DONE]\n\n")) << response.body;
  std::string text;
  size_t begin = 0;
  while (response.body.compare(begin, 7, "data: {") == 0) {
    const size_t end = response.body.find("\n\n", begin);
    const json event = json::parse(response.body.substr(begin + 6, end - begin - 6));
    if (!event["choices"].empty()) text += event["choices"][0]["delta"]["content"];
    begin = end + 2;
  }
  EXPECT_EQ(text, "hello");
  EXPECT_EQ(client.Get("/health").status, 200) << "keep-alive after a stream";
}

TEST_F(HttpServerTest, Http10StreamEndsWithTheConnection) {
  Start(Says("hello"));
  HttpClient client(port());
  const std::string body = R"({"prompt":"x","stream":true})";
  client.Send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) +
              "\r\n\r\n" + body);
  const HttpResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.headers, Not(HasSubstr("chunked")));
  EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpServerTest, BadRequestsGetErrorsAndOthersAreServed) {
  Start(Says("ok"));
  struct Case {
    const char* path;
    const char* body;
    int status;
    const char* param;
  };
  const Case cases[] = {
      {"/v1/completions", "", 400, ""},
      {"/v1/completions", "{", 400, ""},
      {"/v1/completions", "[]", 400, ""},
      {"/v1/completions", "{\"prompt\":\"\xc3\x28\"}", 400, ""},
      {"/v1/completions", R"({"prompt":""})", 400, "prompt"},
      {"/v1/completions", R"({"prompt":"x","max_tokens":-5})", 400, "max_tokens"},
      {"/v1/completions", R"({"prompt":"x","max_tokens":999999999999999999999})", 400,
       "max_tokens"},
      {"/v1/completions", R"({"prompt":"x","n":1000000})", 400, "n"},
      {"/v1/completions", R"({"prompt":"x","temperature":-1})", 400, "temperature"},
      {"/v1/completions", R"({"prompt":[999999]})", 400, "prompt"},
      {"/v1/completions", R"({"prompt":"x","model":"gpt-5"})", 404, "model"},
      {"/v1/chat/completions", R"({"messages":[{"role":"tool","content":"x"}]})", 400, "messages"},
      {"/v1/nothing", "{}", 404, ""},
  };
  HttpClient client(port());
  for (const Case& c : cases) {
    const HttpResponse response = client.Post(c.path, c.body);
    EXPECT_EQ(response.status, c.status) << c.path << " " << c.body << " " << response.body;
    if (response.status == 0) return;
    const json error = Error(response);
    EXPECT_EQ(error["param"].is_null() ? "" : error["param"].get<std::string>(), c.param) << c.body;
    EXPECT_FALSE(error["message"].get<std::string>().empty());
    if (c.status == 404 && *c.param == '\0') break;  // the last: its body was not read
  }
  EXPECT_EQ(engine_->n_requests(), 0u);
  EXPECT_EQ(HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})").status, 200);
}

TEST_F(HttpServerTest, ContextLengthExceeded) {
  Start(Says("ok"));
  const HttpResponse response =
      HttpClient(port()).Post("/v1/completions", "{\"prompt\":\"" + std::string(5000, 'a') + "\"}");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(Error(response)["code"], "context_length_exceeded");
  EXPECT_EQ(engine_->n_requests(), 0u);
}

TEST_F(HttpServerTest, FullQueueAndDrainingSayRetryAfter) {
  Start(Says("ok"));
  engine_->SetSubmitStatus(absl::ResourceExhaustedError("the queue is full"));
  HttpResponse response = HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(response.status, 429);
  EXPECT_THAT(response.headers, HasSubstr("retry-after: 1"));
  engine_->SetSubmitStatus(absl::UnavailableError("draining"));
  EXPECT_EQ(HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})").status, 503);
}

TEST_F(HttpServerTest, MethodsAndPaths) {
  Start(Says("ok"));
  HttpResponse response = HttpClient(port()).Get("/v1/completions");
  EXPECT_EQ(response.status, 405);
  EXPECT_THAT(response.headers, HasSubstr("allow: post"));
  EXPECT_EQ(HttpClient(port()).Post("/health", "{}").status, 405);
  EXPECT_EQ(HttpClient(port()).Get("/").status, 404);
  EXPECT_EQ(HttpClient(port()).Get("/v1/models/").status, 404);
}

TEST_F(HttpServerTest, DeclaredSizeIsRefusedBeforeTheBody) {
  Start(Says("ok"));
  HttpClient client(port());
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n");
  const HttpResponse response = client.ReadResponse();  // not a byte of the body was sent
  EXPECT_EQ(response.status, 413);
  EXPECT_THAT(response.headers, HasSubstr("connection: close"));
  EXPECT_EQ(Error(response)["type"], "invalid_request_error");
  // A client that sends all the same reads the answer, too.
  HttpClient stubborn(port());
  stubborn.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n");
  stubborn.Send(std::string(3'000'000, 'x'));
  EXPECT_EQ(stubborn.ReadResponse().status, 413);
}

TEST_F(HttpServerTest, ChunkedBodiesWorkAndAreCapped) {
  Start(Says("ok"));
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  HttpClient client(port());
  client.Send(head + "9\r\n{\"prompt\"\r\n5\r\n:\"x\"}\r\n0\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 200);
  HttpClient large(port());
  large.Send(head);
  const std::string chunk = "10000\r\n" + std::string(0x10000, ' ') + "\r\n";
  for (int i = 0; i < 17; ++i) large.Send(chunk);
  EXPECT_EQ(large.ReadResponse().status, 413);
  HttpClient broken(port());
  broken.Send(head + "zz\r\n");
  EXPECT_EQ(broken.ReadResponse().status, 400);
  ExpectAlive();
}

TEST_F(HttpServerTest, MalformedHttp) {
  Start(Says("ok"));
  for (const char* text :
       {"\x16\x03\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/7.7\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"}) {
    HttpClient client(port());
    client.Send(text);
    EXPECT_EQ(client.ReadResponse().status, 400) << text;
  }
  HttpClient client(port());
  client.Send("GET / HTTP/1.1\r\nX: " + std::string(100'000, 'a') + "\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 431);
  HttpClient half(port());
  half.Send("POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  half.Close();
  ExpectAlive();
}

TEST_F(HttpServerTest, ExpectContinue) {
  Start(Says("ok"));
  HttpClient client(port());
  const std::string body = R"({"prompt":"x"})";
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 100);
  client.Send(body);
  EXPECT_EQ(client.ReadResponse().status, 200);
}

TEST_F(HttpServerTest, KeysGuardEverythingButHealth) {
  options_.api_keys = {"secret-1", "secret-2"};
  Start(Says("ok"));
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
  EXPECT_EQ(HttpClient(port()).Get("/ready").status, 200);
  for (const char* path : {"/v1/models", "/metrics", "/version", "/nothing"}) {
    const HttpResponse response = HttpClient(port()).Get(path);
    EXPECT_EQ(response.status, 401) << path;
    EXPECT_EQ(Error(response)["code"], "invalid_api_key");
  }
  const std::string body = R"({"prompt":"x"})";
  EXPECT_EQ(
      HttpClient(port()).Post("/v1/completions", body, "Authorization: Bearer secret\r\n").status,
      401);
  EXPECT_EQ(
      HttpClient(port()).Post("/v1/completions", body, "Authorization: Bearer secret-2\r\n").status,
      200);
  EXPECT_EQ(HttpClient(port()).Post("/tokenize", body).status, 401);
}

TEST_F(HttpServerTest, DisconnectCancelsAStream) {
  Start(Hangs());
  HttpClient client(port());
  client.Send(HttpClient::PostText("/v1/completions", R"({"prompt":"x","stream":true})"));
  ASSERT_TRUE(client.WaitFor("text/event-stream"));
  EXPECT_EQ(engine_->n_cancelled(), 0);
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return engine_->n_cancelled() == 1; }));
}

TEST_F(HttpServerTest, DisconnectCancelsAWholeAnswer) {
  Start(Hangs());
  HttpClient client(port());
  client.Send(HttpClient::PostText("/v1/chat/completions",
                                   R"({"messages":[{"role":"user","content":"x"}]})"));
  ASSERT_TRUE(WaitUntil([&] { return engine_->n_running() == 1; }));
  client.Close();
  EXPECT_TRUE(WaitUntil([&] { return engine_->n_cancelled() == 1; }));
  ExpectAlive();
}

TEST_F(HttpServerTest, PingsWhileNothingElseIsSent) {
  options_.ping_interval = std::chrono::milliseconds(30);
  Start(Hangs());
  HttpClient client(port());
  client.Send(HttpClient::PostText("/v1/completions", R"({"prompt":"x","stream":true})"));
  EXPECT_TRUE(client.WaitFor(": ping\n\n\r\n8\r\n: ping\n\n")) << "two in a row";
}

TEST_F(HttpServerTest, FailureInAStreamIsAnEvent) {
  Start([](const Request& request, StreamState& state) {
    EmitByte(state, 'a');
    EmitDone(state, request, absl::InternalError("secret detail"));
  });
  HttpClient client(port());
  HttpResponse response = client.Post("/v1/completions", R"({"prompt":"x","stream":true})");
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.body, HasSubstr("data: {\"error\":"));
  EXPECT_THAT(response.body, Not(HasSubstr("secret detail")));
  EXPECT_EQ(client.Post("/v1/completions", R"({"prompt":"x"})").status, 500);
}

TEST_F(HttpServerTest, ManyStreamsAtOnce) {
  Start([](const Request& request, StreamState& state) {
    for (int i = 0; i < 200; ++i) {
      EmitByte(state, static_cast<char>('a' + i % 26));
      if (i % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EmitText(state, "");
    EmitDone(state, request);
  });
  std::atomic<int> n_right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&] {
      HttpClient client(port());
      for (int i = 0; i < 3; ++i) {
        const HttpResponse response =
            client.Post("/v1/completions", R"({"prompt":"x","stream":true,"max_tokens":300})");
        size_t n_events = 0;
        for (size_t at = 0; (at = response.body.find("\"text\":\"", at)) != std::string::npos; ++at)
          ++n_events;
        n_right += response.body.ends_with("[DONE]\n\n") && n_events >= 200;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_right, 48);
}

TEST_F(HttpServerTest, PipelinedRequests) {
  Start(Says("ok"));
  HttpClient client(port());
  const std::string post = HttpClient::PostText("/v1/completions", R"({"prompt":"x"})");
  client.Send(post + post + post);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.ReadResponse().status, 200);
}

TEST_F(HttpServerTest, ConnectionsAreBounded) {
  options_.max_connections = 2;
  Start(Says("ok"));
  HttpClient first(port()), second(port());
  EXPECT_EQ(first.Get("/version").status, 200);
  EXPECT_EQ(second.Get("/version").status, 200);
  EXPECT_EQ(HttpClient(port()).Get("/version").status, 503);
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200) << "health checks get through";
  first.Close();
  EXPECT_TRUE(WaitUntil([&] { return HttpClient(port()).Get("/version").status == 200; }));
}

TEST_F(HttpServerTest, ProbesAnswerWhileTheModelIsLoading) {
  auto server = HttpServer::Bind(options_);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  ASSERT_TRUE(server_->Listen(&metrics_).ok());
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
  const HttpResponse ready = HttpClient(port()).Get("/ready");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(json::parse(ready.body)["status"], "loading");
  for (const char* path : {"/v1/models", "/metrics", "/version"}) {
    EXPECT_EQ(HttpClient(port()).Get(path).status, 503) << path;
  }
  const HttpResponse post = HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(post.status, 503);
  EXPECT_THAT(post.headers, HasSubstr("retry-after"));
}

TEST_F(HttpServerTest, AnUnhealthyEngineFailsBothProbes) {
  Start(Says("x"));
  engine_->SetHealth(absl::UnavailableError("a step takes \"too\" long"));
  for (const char* path : {"/health", "/ready"}) {
    const HttpResponse response = HttpClient(port()).Get(path);
    EXPECT_EQ(response.status, 503) << path;
    const json body = json::parse(response.body);
    EXPECT_EQ(body["status"], "unhealthy");
    EXPECT_EQ(body["reason"], "a step takes \"too\" long");
  }
  engine_->SetHealth(absl::OkStatus());
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
  EXPECT_EQ(HttpClient(port()).Get("/ready").status, 200);
}

// Network threads that hang (in a callback of this test) keep nobody from seeing that the process
// lives.
TEST_F(HttpServerTest, ProbesAnswerWhileEveryNetworkThreadIsBlocked) {
  std::atomic<int> n_blocked{0};
  std::atomic<bool> go{false};
  options_.max_body_bytes = 10;
  options_.on_refused = [&](const RequestRecord&) {
    ++n_blocked;
    while (!go) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  Start(Says("x"));
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < options_.n_io_threads; ++i) {
    clients.push_back(std::make_unique<HttpClient>(port()));
    clients.back()->Send(HttpClient::PostText("/v1/completions", R"({"prompt":"too large"})"));
  }
  EXPECT_TRUE(WaitUntil([&] { return n_blocked == options_.n_io_threads; }));
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
    EXPECT_EQ(HttpClient(port()).Get("/ready").status, 200);
  }
  go = true;
  for (const auto& client : clients) EXPECT_EQ(client->ReadResponse().status, 413);
}

TEST_F(HttpServerTest, RefusalsBeforeTheSessionAreRecorded) {
  std::mutex mutex;
  std::vector<std::string> reasons;
  options_.api_keys = {"key"};
  options_.max_body_bytes = 40;
  options_.on_refused = [&](const RequestRecord& record) {
    const std::lock_guard lock(mutex);
    EXPECT_TRUE(record.refused);
    EXPECT_FALSE(record.request_id.empty());
    reasons.push_back(RefusalReason(record));
  };
  Start(Says("x"));
  const std::string key = "Authorization: Bearer key\r\n";
  HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})");
  HttpClient(port()).Post("/v1/completions", std::string(41, ' '), key);
  HttpClient(port()).Post("/v1/chat/completions", "{", key);
  HttpClient(port()).Post("/tokenize", "{", key);                       // no request for an answer
  HttpClient(port()).Post("/v1/completions", R"({"prompt":""})", key);  // the Session's to record
  server_->BeginDrain();
  HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})", key);
  const std::lock_guard lock(mutex);
  EXPECT_THAT(reasons,
              testing::ElementsAre("unauthorized", "body_too_large", "invalid", "unavailable"));
}

TEST_F(HttpServerTest, DrainRefusesNewWorkAndFinishesOld) {
  std::atomic<bool> go{false};
  Start([&go](const Request& request, StreamState& state) {
    while (!go && !state.cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EmitText(state, "late");
    EmitDone(state, request);
  });
  HttpClient running(port());
  running.Send(HttpClient::PostText("/v1/completions", R"({"prompt":"x"})"));
  ASSERT_TRUE(WaitUntil([&] { return engine_->n_running() == 1; }));
  server_->BeginDrain();
  EXPECT_EQ(HttpClient(port()).Get("/ready").status, 503);
  EXPECT_EQ(HttpClient(port()).Get("/health").status, 200);
  const HttpResponse refused = HttpClient(port()).Post("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.headers, HasSubstr("retry-after"));
  EXPECT_FALSE(server_->WaitIdle(std::chrono::milliseconds(20)));
  go = true;
  const HttpResponse response = running.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.body, HasSubstr("late"));
  EXPECT_TRUE(server_->WaitIdle(kPatience));
}

TEST_F(HttpServerTest, StopCutsOffWhatRuns) {
  Start(Hangs());
  HttpClient stream(port()), whole(port()), idle(port());
  stream.Send(HttpClient::PostText("/v1/completions", R"({"prompt":"x","stream":true})"));
  whole.Send(HttpClient::PostText("/v1/completions", R"({"prompt":"x"})"));
  ASSERT_TRUE(WaitUntil([&] { return engine_->n_running() == 2; }));
  server_->Stop();
  EXPECT_TRUE(WaitUntil([&] { return engine_->n_cancelled() == 2; }));
  EXPECT_TRUE(idle.AtEnd());
}

TEST_F(HttpServerTest, PortInUse) {
  Start(Says("ok"));
  HttpOptions options = options_;
  options.port = port();
  const auto second = HttpServer::Bind(options);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use"));
  options.host = "no.such.host.invalid";
  EXPECT_EQ(HttpServer::Bind(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HttpServerTest, RequestsAreCounted) {
  Start(Says("ok"));
  HttpClient client(port());
  client.Post("/v1/completions", R"({"prompt":"x"})");
  client.Post("/v1/completions", "{");
  const std::string text = client.Get("/metrics").body;
  EXPECT_THAT(
      text,
      HasSubstr(
          "vllm:request_success_total{finished_reason=\"stop\",model_name=\"test-model\"} 1"));
  EXPECT_THAT(text, HasSubstr("longhaul:http_responses_total{code=\"400\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("vllm:time_to_first_token_seconds_count{model_name=\"test-model\"} 1"));
}

}  // namespace
}  // namespace longhaul
