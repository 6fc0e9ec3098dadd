// The gRPC server over an in-process channel and over a socket, with a session whose generations
// the test plays by hand.
#include "server/grpc_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "engine/retry_after.h"
#include "longhaul/v1/inference.grpc.pb.h"
#include "tests/server/scripted_session.h"

namespace longhaul {
namespace {

using testing::HasSubstr;

class GrpcServerTest : public testing::Test {
 protected:
  void SetUp() override { StartServer({}); }

  void StartServer(std::vector<std::string> api_keys,
                   std::chrono::milliseconds write_timeout = std::chrono::minutes(1)) {
    server_.reset();
    GrpcOptions options;
    options.write_timeout = write_timeout;
    options.host = "127.0.0.1";
    options.port = 0;
    options.api_keys = std::move(api_keys);
    options.version = "1.2.3";
    options.on_refused = [this](const RequestRecord& record) {
      const std::lock_guard lock(refusals_mutex_);
      refusals_.emplace_back(RefusalReason(record));
    };
    auto server = GrpcServer::Start(options, &session_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::Inference::NewStub(server_->InProcessChannel());
  }

  // Reads the whole stream.
  grpc::Status Generate(const v1::GenerateRequest& request,
                        std::vector<v1::GenerateResponse>& responses) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) responses.push_back(response);
    return reader->Finish();
  }

  std::vector<std::string> refusals() {
    const std::lock_guard lock(refusals_mutex_);
    return refusals_;
  }

  std::mutex refusals_mutex_;
  std::vector<std::string> refusals_;  // reasons, in order; outlives the server
  FakeSession session_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

v1::GenerateRequest TextRequest(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  return request;
}

TEST_F(GrpcServerTest, StreamsProgressTextAndSummaryInOrder) {
  ProgressEvent progress;
  progress.phase = Phase::kPrefill;
  progress.total_tokens = 7;
  progress.processed_tokens = 4;
  progress.eta_us = 1500;
  session_.script()->Push(progress);
  progress.eta_us = -1;
  session_.script()->Push(progress);
  session_.script()->Push(api::PromptLogprobs{{{}, {{7, 3, "a", -2.5f}, {9, 1, "\xff", -0.25f}}}});
  api::TextDelta delta;
  delta.choice = 1;
  delta.stop_token = 6;
  delta.text = "caf\xc3\xa9";
  delta.token_ids = {5, 6};
  delta.logprobs.push_back({{"\xc3", "\xc3", -0.5f}, {{"a", "a", -0.5f}, {"b", "b", -2.0f}}});
  delta.finish = FinishReason::kStop;
  delta.stop_reason = "END";
  session_.script()->Push(delta);
  session_.script()->PushSummary();

  std::vector<v1::GenerateResponse> responses;
  const grpc::Status status = Generate(TextRequest("hello"), responses);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(responses.size(), 5u);
  EXPECT_EQ(responses[0].progress().phase(), v1::Progress::PHASE_PREFILL);
  EXPECT_EQ(responses[0].progress().processed_tokens(), 4);
  EXPECT_EQ(responses[0].progress().eta_us(), 1500);
  EXPECT_FALSE(responses[1].progress().has_eta_us());
  const v1::PromptLogprobs& prompt = responses[2].prompt_logprobs();
  ASSERT_EQ(prompt.tokens_size(), 2);
  EXPECT_EQ(prompt.tokens(0).logprobs_size(), 0) << "nothing is before the first token";
  EXPECT_EQ(prompt.tokens(1).logprobs(0).token_id(), 7);
  EXPECT_EQ(prompt.tokens(1).logprobs(0).rank(), 3);
  EXPECT_EQ(prompt.tokens(1).logprobs(1).token(), "\xef\xbf\xbd");
  EXPECT_FLOAT_EQ(prompt.tokens(1).logprobs(1).logprob(), -0.25f);
  const v1::Delta& sent = responses[3].delta();
  EXPECT_EQ(sent.stop_token_id(), 6);
  EXPECT_EQ(sent.choice(), 1);
  EXPECT_EQ(sent.text(), "caf\xc3\xa9");
  EXPECT_THAT(std::vector<int32_t>(sent.token_ids().begin(), sent.token_ids().end()),
              testing::ElementsAre(5, 6));
  EXPECT_EQ(sent.logprobs(0).chosen().token(), "\xef\xbf\xbd");
  EXPECT_EQ(sent.logprobs(0).chosen().bytes(), "\xc3");
  EXPECT_FLOAT_EQ(sent.logprobs(0).top(1).logprob(), -2.0f);
  EXPECT_EQ(sent.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sent.stop_reason(), "END");
  EXPECT_EQ(responses[4].summary().usage().prompt_tokens(), 7);
  EXPECT_EQ(responses[4].summary().sparse().mode(), "dense");
}

TEST_F(GrpcServerTest, ChunksThatComeLaterAreDelivered) {
  constexpr int kChunks = 500;
  std::thread engine([this] {
    session_.WaitStarted();
    for (int i = 0; i < kChunks; ++i) session_.script()->PushText(std::to_string(i) + ",");
    session_.script()->PushSummary();
  });
  std::vector<v1::GenerateResponse> responses;
  const grpc::Status status = Generate(TextRequest("hello"), responses);
  engine.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(responses.size(), size_t(kChunks) + 1);
  for (int i = 0; i < kChunks; ++i) {
    ASSERT_EQ(responses[size_t(i)].delta().text(), std::to_string(i) + ",");
  }
}

TEST_F(GrpcServerTest, EveryFieldReachesTheSession) {
  v1::GenerateRequest request;
  request.set_request_id("my-id");
  request.set_model("fake");
  for (const int id : {9, 8, 7}) request.mutable_token_ids()->add_ids(id);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_top_k(5);
  request.mutable_sampling()->set_seed(42);
  request.mutable_sampling()->set_logprobs(0);
  (*request.mutable_sampling()->mutable_logit_bias())[30] = 1.5f;
  (*request.mutable_sampling()->mutable_logit_bias())[4] = -2.0f;
  request.set_max_tokens(0);
  request.set_n(2);
  request.add_stop("END");
  request.add_stop_token_ids(11);
  request.set_add_special_tokens(false);
  request.set_return_progress(true);
  request.mutable_sparse()->set_mode("sample");
  request.mutable_sparse()->set_alpha(0.9f);
  request.set_cache_salt("tenant");
  request.set_priority(-1);
  request.set_timeout_s(30);
  request.set_prompt_logprobs(6);
  session_.script()->PushSummary();
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Generate(request, responses).ok());

  const api::GenerateRequest got = session_.last_request();
  EXPECT_EQ(got.request_id, "my-id");
  EXPECT_EQ(got.model, "fake");
  EXPECT_EQ(std::get<std::vector<int32_t>>(got.prompt), (std::vector<int32_t>{9, 8, 7}));
  EXPECT_EQ(got.sampling.temperature, 0);
  EXPECT_EQ(got.sampling.top_k, 5);
  EXPECT_FALSE(got.sampling.top_p.has_value());
  EXPECT_EQ(got.n_prompt_logprobs, 6);
  EXPECT_EQ(got.sampling.seed, 42u);
  EXPECT_EQ(got.sampling.n_logprobs, 0);
  EXPECT_EQ(got.sampling.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{4, -2.0f}, {30, 1.5f}}));
  EXPECT_EQ(got.max_tokens, 0);
  EXPECT_EQ(got.n, 2);
  EXPECT_THAT(got.stop, testing::ElementsAre("END"));
  EXPECT_THAT(got.stop_token_ids, testing::ElementsAre(11));
  EXPECT_FALSE(got.add_special_tokens);
  EXPECT_TRUE(got.return_progress);
  EXPECT_EQ(got.sparse.mode, "sample");
  EXPECT_EQ(got.sparse.alpha, 0.9f);
  EXPECT_EQ(got.cache_salt, "tenant");
  EXPECT_EQ(got.priority, -1);
  EXPECT_EQ(got.timeout_s, 30);
}

TEST_F(GrpcServerTest, AbsentFieldsKeepTheDefaults) {
  v1::GenerateRequest request;
  v1::Message& message = *request.mutable_messages()->add_messages();
  message.set_role("user");
  message.set_content("hi");
  session_.script()->PushSummary();
  std::vector<v1::GenerateResponse> responses;
  ASSERT_TRUE(Generate(request, responses).ok());
  const api::GenerateRequest got = session_.last_request();
  const api::GenerateRequest defaults;
  EXPECT_EQ(std::get<ChatPrompt>(got.prompt).messages.at(0).content, "hi");
  EXPECT_EQ(got.max_tokens, std::nullopt);
  EXPECT_EQ(got.n, 1);
  EXPECT_EQ(got.sampling.temperature, defaults.sampling.temperature);
  EXPECT_EQ(got.sampling.n_logprobs, defaults.sampling.n_logprobs);
  EXPECT_EQ(got.sparse.mode, std::nullopt);
  EXPECT_EQ(got.timeout_s, std::nullopt);
  EXPECT_TRUE(got.add_special_tokens);
  EXPECT_FALSE(got.request_id.empty());
}

TEST_F(GrpcServerTest, RequestIdComesFromMetadataAndIsEchoed) {
  session_.script()->PushSummary();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "from-metadata");
  auto reader = stub_->Generate(&context, TextRequest("x"));
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(session_.last_request().request_id, "from-metadata");
  const auto& metadata = context.GetServerInitialMetadata();
  ASSERT_EQ(metadata.count("x-request-id"), 1u);
  const grpc::string_ref echoed = metadata.find("x-request-id")->second;
  EXPECT_EQ(std::string(echoed.data(), echoed.size()), "from-metadata");
}

TEST_F(GrpcServerTest, HeadersComeBeforeTheFirstChunk) {
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  session_.WaitStarted();
  session_.script()->Push(AcceptedEvent{});
  reader->WaitForInitialMetadata();  // hangs if acceptance is not told
  session_.script()->PushSummary();
  v1::GenerateResponse response;
  EXPECT_TRUE(reader->Read(&response));
  EXPECT_TRUE(response.has_summary());
}

TEST_F(GrpcServerTest, ARefusalOfTheEngineHasNoHeaders) {
  session_.script()->PushSummary(
      WithRetryAfter(absl::ResourceExhaustedError("12 s of work are ahead"), 11'500'000));
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "12 s of work are ahead");
  const auto& trailer = context.GetServerTrailingMetadata();
  ASSERT_EQ(trailer.count("retry-after"), 1u);
  const grpc::string_ref seconds = trailer.find("retry-after")->second;
  EXPECT_EQ(std::string(seconds.data(), seconds.size()), "12");
}

TEST_F(GrpcServerTest, ProgressIsRepeatedWhileNothingElseComes) {
  session_.script()->Push(AcceptedEvent{});
  ProgressEvent progress;
  progress.phase = Phase::kPrefill;
  progress.processed_tokens = 4;
  progress.time_us = 100;
  progress.eta_us = 60'000'000;
  session_.script()->Push(progress);
  v1::GenerateRequest request = TextRequest("x");
  request.set_return_progress(true);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  int64_t time_us = 0;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.progress().phase(), v1::Progress::PHASE_PREFILL);
    EXPECT_EQ(response.progress().processed_tokens(), 4);
    EXPECT_GT(response.progress().time_us(), time_us);
    EXPECT_EQ(response.progress().time_us() + response.progress().eta_us(), 60'000'100);
    time_us = response.progress().time_us();
  }
  session_.script()->PushSummary();
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(response.has_summary());
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GrpcServerTest, CancelById) {
  StartServer({"secret", "other"});
  session_.script()->Push(AcceptedEvent{});
  grpc::ClientContext generate;
  generate.AddMetadata("authorization", "Bearer secret");
  v1::GenerateRequest request = TextRequest("x");
  request.set_request_id("my-id");
  auto reader = stub_->Generate(&generate, request);
  reader->WaitForInitialMetadata();
  const auto cancel = [&](const std::string& key, const std::string& id) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + key);
    v1::CancelRequest message;
    message.set_request_id(id);
    v1::CancelResponse response;
    const grpc::Status status = stub_->Cancel(&context, message, &response);
    EXPECT_EQ(response.n_requests(), status.ok() ? 2 : 0);
    return status.error_code();
  };
  EXPECT_EQ(cancel("wrong", "my-id"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(cancel("other", "my-id"), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(cancel("secret", "your-id"), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(cancel("secret", "my-id"), grpc::StatusCode::OK);
  session_.script()->PushSummary(absl::CancelledError("the request was cancelled"));
  v1::GenerateResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GrpcServerTest, RequestsWithoutPromptOrWithBadIdAreRefused) {
  std::vector<v1::GenerateResponse> responses;
  grpc::Status status = Generate(v1::GenerateRequest(), responses);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("prompt"));

  v1::GenerateRequest request = TextRequest("x");
  request.set_request_id("two words\n");
  status = Generate(request, responses);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("request_id"));

  request.set_request_id(std::string(129, 'a'));
  EXPECT_EQ(Generate(request, responses).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(responses.empty());
}

TEST_F(GrpcServerTest, RefusalsBeforeTheSessionAreRecorded) {
  StartServer({"key"});
  std::vector<v1::GenerateResponse> responses;
  EXPECT_FALSE(Generate(TextRequest("x"), responses).ok());
  StartServer({});
  EXPECT_FALSE(Generate({}, responses).ok());
  session_.FailWith(absl::NotFoundError("the Session's to record"));
  EXPECT_FALSE(Generate(TextRequest("x"), responses).ok());
  EXPECT_THAT(refusals(), testing::ElementsAre("unauthorized", "invalid"));
}

TEST_F(GrpcServerTest, SessionErrorsKeepCodeAndText) {
  for (const auto& error :
       {absl::InvalidArgumentError("temperature: -1"), absl::OutOfRangeError("context length"),
        absl::NotFoundError("model"), absl::ResourceExhaustedError("queue"),
        absl::UnavailableError("draining"), absl::FailedPreconditionError("chat form")}) {
    session_.FailWith(error);
    std::vector<v1::GenerateResponse> responses;
    const grpc::Status status = Generate(TextRequest("x"), responses);
    EXPECT_EQ(int(status.error_code()), int(error.code()));
    EXPECT_EQ(status.error_message(), std::string(error.message().data(), error.message().size()));
    EXPECT_TRUE(responses.empty());
  }
}

TEST_F(GrpcServerTest, FailureAfterAdmissionEndsTheStreamWithItsStatus) {
  session_.script()->PushText("partial");
  session_.script()->PushSummary(absl::InternalError("the model answered NaN"));
  std::vector<v1::GenerateResponse> responses;
  const grpc::Status status = Generate(TextRequest("x"), responses);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(responses.size(), 1u);
}

TEST_F(GrpcServerTest, ClientCancelDropsTheGeneration) {
  session_.script()->PushText("first");
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_TRUE(session_.script()->WaitDropped());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GrpcServerTest, AClientThatDoesNotReadIsCancelled) {
  StartServer({}, std::chrono::milliseconds(100));
  const auto socket_stub = v1::Inference::NewStub(grpc::CreateChannel(
      "127.0.0.1:" + std::to_string(server_->port()), grpc::InsecureChannelCredentials()));
  session_.script()->PushText(std::string(4 << 20, 'x'));  // more than any buffer holds
  grpc::ClientContext context;
  auto reader = socket_stub->Generate(&context, TextRequest("hello"));
  EXPECT_TRUE(session_.script()->WaitDropped());
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GrpcServerTest, AClientThatReadsSlowlyIsNotCancelled) {
  StartServer({}, std::chrono::seconds(2));
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("hello"));
  v1::GenerateResponse response;
  for (int i = 0; i < 12; ++i) {  // each in time, all together not
    session_.script()->PushText("x");
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    ASSERT_TRUE(reader->Read(&response));
  }
  session_.script()->PushSummary();
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GrpcServerTest, CancelDuringTokenizationDropsTheGeneration) {
  session_.Hold(true);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  session_.WaitStarted();
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  session_.Hold(false);
  EXPECT_TRUE(session_.script()->WaitDropped());
}

TEST_F(GrpcServerTest, DeadlineReachesTheSessionAndEndsTheCall) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  auto reader = stub_->Generate(&context, TextRequest("x"));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(session_.script()->WaitDropped());
  const std::optional<double> timeout_s = session_.last_request().timeout_s;
  ASSERT_TRUE(timeout_s.has_value());
  EXPECT_GT(*timeout_s, 0);
  EXPECT_LE(*timeout_s, 0.4);  // the deadline travels in whole milliseconds
}

TEST_F(GrpcServerTest, ApiKeyIsAskedForEverywhereButHealth) {
  StartServer({"secret"});
  server_->SetServing(true);
  std::vector<v1::GenerateResponse> responses;
  EXPECT_EQ(Generate(TextRequest("x"), responses).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  v1::Model model;
  {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer wrong");
    EXPECT_EQ(stub_->GetModel(&context, v1::GetModelRequest(), &model).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer secret");
  EXPECT_TRUE(stub_->GetModel(&context, v1::GetModelRequest(), &model).ok());
  EXPECT_EQ(model.name(), "fake");
}

TEST_F(GrpcServerTest, TokenizeAndDetokenize) {
  grpc::ClientContext tokenize_context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("ab");
  tokenize.set_return_tokens(true);
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(stub_->Tokenize(&tokenize_context, tokenize, &tokens).ok());
  EXPECT_THAT(std::vector<int32_t>(tokens.ids().begin(), tokens.ids().end()),
              testing::ElementsAre(ByteTokenizer::kBos, 'a', 'b'));
  EXPECT_EQ(tokens.tokens(2), "b");
  EXPECT_EQ(tokens.max_model_len(), 4096);

  grpc::ClientContext empty_context;
  EXPECT_EQ(stub_->Tokenize(&empty_context, v1::TokenizeRequest(), &tokens).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);

  grpc::ClientContext detokenize_context;
  v1::DetokenizeRequest detokenize;
  for (const int32_t id : {ByteTokenizer::kBos, int32_t('a'), int32_t('b')}) detokenize.add_ids(id);
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&detokenize_context, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "ab");

  for (const int32_t bad : {-1, ByteTokenizer::kVocab}) {
    grpc::ClientContext bad_context;
    v1::DetokenizeRequest request;
    request.add_ids(bad);
    EXPECT_EQ(stub_->Detokenize(&bad_context, request, &text).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(GrpcServerTest, ModelsAndServerInfo) {
  grpc::ClientContext list_context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(stub_->ListModels(&list_context, v1::ListModelsRequest(), &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "fake");
  EXPECT_EQ(models.models(0).max_model_len(), 4096);
  EXPECT_EQ(models.models(0).n_layers(), 2);

  grpc::ClientContext get_context;
  v1::GetModelRequest other;
  other.set_name("other");
  v1::Model model;
  EXPECT_EQ(stub_->GetModel(&get_context, other, &model).error_code(), grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext info_context;
  v1::ServerInfo info;
  ASSERT_TRUE(stub_->GetServerInfo(&info_context, v1::GetServerInfoRequest(), &info).ok());
  EXPECT_EQ(info.version(), "1.2.3");
  EXPECT_EQ(info.n_pages_total(), 100);
}

TEST_F(GrpcServerTest, LargePromptsOverASocket) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  const auto channel = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                                 grpc::InsecureChannelCredentials(), arguments);
  const auto stub = v1::Inference::NewStub(channel);
  session_.script()->PushSummary();
  {
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, TextRequest(std::string(size_t{32} << 20, 'x')));
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(std::get<std::string>(session_.last_request().prompt).size(), size_t{32} << 20);
  }
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, TextRequest(std::string(size_t{65} << 20, 'x')));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GrpcServerTest, PortInUseIsToldInPlainWords) {
  GrpcOptions options;
  options.host = "127.0.0.1";
  options.port = server_->port();
  const auto second = GrpcServer::Start(options, &session_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(options.port)));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("--grpc-port"));
}

TEST_F(GrpcServerTest, ShutdownWaitsForRunningCallsAndRefusesNewOnes) {
  session_.script()->Push(AcceptedEvent{});
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  reader->WaitForInitialMetadata();
  std::thread shutdown([this] { server_->Shutdown(std::chrono::seconds(20)); });
  // Draining starts soon; from then on new calls are refused.
  grpc::Status refused;
  for (int i = 0; i < 1000 && refused.ok(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    grpc::ClientContext probe_context;
    probe_context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
    auto probe = stub_->Generate(&probe_context, TextRequest("probe"));
    refused = probe->Finish();
    if (refused.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) refused = grpc::Status::OK;
  }
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  session_.script()->PushText("still here");
  session_.script()->PushSummary();
  v1::GenerateResponse response;
  EXPECT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.delta().text(), "still here");
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  shutdown.join();
}

TEST_F(GrpcServerTest, ShutdownCancelsWhatIsLeftAfterTheTimeout) {
  session_.script()->Push(AcceptedEvent{});
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, TextRequest("x"));
  reader->WaitForInitialMetadata();
  server_->Shutdown(std::chrono::milliseconds(50));
  EXPECT_TRUE(session_.script()->WaitDropped());
  EXPECT_FALSE(reader->Finish().ok());
}

}  // namespace
}  // namespace longhaul
