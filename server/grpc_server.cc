#include "server/grpc_server.h"

#include <fmt/format.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <utility>

#include "longhaul/v1/inference.grpc.pb.h"
#include "server/auth.h"
#include "server/grpc_convert.h"
#include "server/grpc_generate.h"
#include "server/task_queue.h"

namespace longhaul {
namespace {

// A prompt may be silent for minutes: let clients ping as often as every 10 s, and find dead ones.
constexpr int kMinClientPingMs = 10'000;
constexpr int kServerPingMs = 30'000;
constexpr int kServerPingTimeoutMs = 20'000;
constexpr int kMaxStreamsPerConnection = 1024;

class GrpcServerImpl final : public GrpcServer, private v1::Inference::CallbackService {
 public:
  GrpcServerImpl(const GrpcOptions& options, Session* session)
      : options_(options),
        session_(session),
        keys_(options.api_keys),
        workers_(options.n_workers, options.max_pending_starts),
        // Unbounded: at most a task per running call, and a lost one would stall its stream.
        deliverer_(std::make_shared<TaskQueue>(1, std::numeric_limits<int64_t>::max())) {}

  ~GrpcServerImpl() override { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Listen();

  int port() const override { return port_; }
  void SetServing(bool serving) override;
  void Shutdown(std::chrono::milliseconds timeout) override;
  std::shared_ptr<grpc::Channel> InProcessChannel() override {
    return server_->InProcessChannel(grpc::ChannelArguments());
  }

 private:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override;

  // ApiKeys::Caller, or Unauthenticated.
  absl::StatusOr<std::string> Authorize(const grpc::CallbackServerContext& context) const;
  // Runs `work` on a worker and ends the call with its status; refuses who may not call.
  grpc::ServerUnaryReactor* OnWorker(grpc::CallbackServerContext* context,
                                     std::function<absl::Status()> work);
  absl::Status DoTokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse& response) const;
  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse& response) const;
  void DescribeModel(v1::Model& model) const;

  const GrpcOptions options_;
  Session* const session_;
  const ApiKeys keys_;
  TaskQueue workers_;
  std::shared_ptr<TaskQueue> deliverer_;
  int port_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable call_done_;
  int64_t n_generating_ = 0;
  bool draining_ = false;

  std::unique_ptr<grpc::Server>
      server_;  // last: its destructor waits for reactions that use the rest
};

absl::Status GrpcServerImpl::Listen() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  const bool is_ipv6 = options_.host.find(':') != std::string::npos;
  const std::string address = is_ipv6 ? fmt::format("[{}]:{}", options_.host, options_.port)
                                      : fmt::format("{}:{}", options_.host, options_.port);
  grpc::ServerBuilder builder;
  // Without this a second server would silently share the port.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kServerPingMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kServerPingTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.SetMaxReceiveMessageSize(int(options_.max_message_bytes));
  builder.SetMaxSendMessageSize(int(options_.max_message_bytes));
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(fmt::format(
        "cannot listen for gRPC on {}: the port is in use or the address is not of this "
        "machine; choose another with --grpc-port and --host",
        address));
  }
  SetServing(false);
  return absl::OkStatus();
}

void GrpcServerImpl::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(v1::Inference::service_full_name(), serving);
}

void GrpcServerImpl::Shutdown(std::chrono::milliseconds timeout) {
  if (server_ == nullptr) return;
  SetServing(false);
  {
    std::unique_lock lock(mutex_);
    draining_ = true;
    call_done_.wait_for(lock, timeout, [this] { return n_generating_ == 0; });
  }
  // Cancels what is left: Generate calls past the timeout, and health watches, which never end.
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
  workers_.Stop();
  deliverer_->Stop();
}

absl::StatusOr<std::string> GrpcServerImpl::Authorize(
    const grpc::CallbackServerContext& context) const {
  const auto found = context.client_metadata().find("authorization");
  const std::string_view value = found == context.client_metadata().end()
                                     ? std::string_view()
                                     : std::string_view(found->second.data(), found->second.size());
  std::optional<std::string> caller = keys_.Caller(value);
  if (caller) return *std::move(caller);
  return absl::UnauthenticatedError(
      "API key missing or wrong; send metadata `authorization: Bearer <key>`");
}

grpc::ServerWriteReactor<v1::GenerateResponse>* GrpcServerImpl::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  // A call that is refused at once.
  class Refused final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
   public:
    explicit Refused(grpc::Status status) { Finish(std::move(status)); }
    void OnDone() override { delete this; }
  };
  const auto refuse = [this, context, request](const absl::Status& status) {
    if (options_.on_refused) options_.on_refused(RefusedCall(*request, Clock::now(), status));
    return new Refused(ToGrpc(status, *context));
  };
  absl::StatusOr<std::string> caller = Authorize(*context);
  if (!caller.ok()) return refuse(caller.status());
  bool draining;
  {
    std::lock_guard lock(mutex_);
    draining = draining_;
    n_generating_ += draining ? 0 : 1;
  }
  if (draining) {
    return refuse(absl::UnavailableError("the server is shutting down; retry elsewhere"));
  }
  GenerateCall::Env env;
  env.session = session_;
  env.caller = *std::move(caller);
  env.workers = &workers_;
  env.deliverer = deliverer_;
  env.on_refused = options_.on_refused;
  env.write_timeout = options_.write_timeout;
  env.on_done = [this] {
    std::lock_guard lock(mutex_);
    --n_generating_;
    call_done_.notify_all();
  };
  return GenerateCall::Start(std::move(env), context, request);
}

grpc::ServerUnaryReactor* GrpcServerImpl::OnWorker(grpc::CallbackServerContext* context,
                                                   std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (const auto caller = Authorize(*context); !caller.ok()) {
    reactor->Finish(ToGrpc(caller.status()));
  } else if (!workers_.Post(
                 [reactor, work = std::move(work)] { reactor->Finish(ToGrpc(work())); })) {
    reactor->Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                 "too many requests wait for tokenization; retry later"));
  }
  return reactor;
}

// Not on a worker: a cancel must not wait behind prompts that are being tokenized.
grpc::ServerUnaryReactor* GrpcServerImpl::Cancel(grpc::CallbackServerContext* context,
                                                 const v1::CancelRequest* request,
                                                 v1::CancelResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::StatusOr<std::string> caller = Authorize(*context);
  if (!caller.ok()) {
    reactor->Finish(ToGrpc(caller.status()));
    return reactor;
  }
  response->set_n_requests(session_->Cancel(*caller, request->request_id()));
  reactor->Finish(response->n_requests() > 0
                      ? grpc::Status::OK
                      : ToGrpc(absl::NotFoundError("no request with this id is under way")));
  return reactor;
}

grpc::ServerUnaryReactor* GrpcServerImpl::Tokenize(grpc::CallbackServerContext* context,
                                                   const v1::TokenizeRequest* request,
                                                   v1::TokenizeResponse* response) {
  return OnWorker(context, [this, request, response] { return DoTokenize(*request, *response); });
}

absl::Status GrpcServerImpl::DoTokenize(const v1::TokenizeRequest& request,
                                        v1::TokenizeResponse& response) const {
  api::Prompt input;
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      input = request.text();
      break;
    case v1::TokenizeRequest::kMessages:
      input = FromProto(request.messages());
      break;
    case v1::TokenizeRequest::INPUT_NOT_SET:
      return absl::InvalidArgumentError("input: missing; set one of text, messages");
  }
  const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
  LH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, session_->Tokenize(input, add_special));
  if (request.return_tokens()) {
    const Tokenizer& tokenizer = session_->tokenizer();
    for (const int32_t id : ids) response.add_tokens(std::string(tokenizer.TokenBytes(id)));
  }
  response.mutable_ids()->Add(ids.begin(), ids.end());
  response.set_max_model_len(session_->engine().max_model_len());
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* GrpcServerImpl::Detokenize(grpc::CallbackServerContext* context,
                                                     const v1::DetokenizeRequest* request,
                                                     v1::DetokenizeResponse* response) {
  return OnWorker(context, [this, request, response] { return DoDetokenize(*request, *response); });
}

absl::Status GrpcServerImpl::DoDetokenize(const v1::DetokenizeRequest& request,
                                          v1::DetokenizeResponse& response) const {
  const Tokenizer& tokenizer = session_->tokenizer();
  const std::vector<int32_t> ids(request.ids().begin(), request.ids().end());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= tokenizer.vocab_size()) {
      return absl::InvalidArgumentError(fmt::format(
          "ids[{}]: {} is not a token id; ids are [0, {})", i, ids[i], tokenizer.vocab_size()));
    }
  }
  response.set_text(tokenizer.Decode(ids));
  return absl::OkStatus();
}

void GrpcServerImpl::DescribeModel(v1::Model& model) const {
  const ModelShape& shape = session_->engine().shape();
  model.set_name(session_->config().served_model_name);
  model.set_max_model_len(session_->engine().max_model_len());
  model.set_vocab_size(shape.vocab_size);
  model.set_n_parameters(shape.n_parameters);
  model.set_n_layers(shape.n_layers);
  model.set_n_heads(shape.n_heads);
  model.set_n_kv_heads(shape.n_kv_heads);
  model.set_head_dim(shape.head_dim);
  model.set_chat_form(session_->chat_form());
  model.set_sparse_mode(std::string(SparseModeName(session_->config().sparse.mode)));
  model.set_sparse_alpha(session_->config().sparse.alpha);
}

grpc::ServerUnaryReactor* GrpcServerImpl::GetModel(grpc::CallbackServerContext* context,
                                                   const v1::GetModelRequest* request,
                                                   v1::Model* response) {
  return OnWorker(context, [this, request, response]() -> absl::Status {
    const std::string& served = session_->config().served_model_name;
    if (!request->name().empty() && request->name() != served) {
      return absl::NotFoundError(fmt::format(
          "model '{}' is not served here; this server serves '{}'", request->name(), served));
    }
    DescribeModel(*response);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* GrpcServerImpl::ListModels(grpc::CallbackServerContext* context,
                                                     const v1::ListModelsRequest*,
                                                     v1::ListModelsResponse* response) {
  return OnWorker(context, [this, response] {
    DescribeModel(*response->add_models());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* GrpcServerImpl::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const v1::GetServerInfoRequest*,
                                                        v1::ServerInfo* response) {
  return OnWorker(context, [this, response] {
    const EngineStats stats = session_->engine().Stats();
    response->set_version(options_.version);
    response->set_n_running(stats.n_running);
    response->set_n_waiting(stats.n_waiting);
    response->set_n_pages_total(stats.n_pages_total);
    response->set_n_pages_used(stats.n_pages_used);
    response->set_n_pages_cached(stats.n_pages_cached);
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcOptions& options,
                                                              Session* session) {
  constexpr int64_t kMaxMessageBytes = std::numeric_limits<int>::max();
  if (options.port < 0 || options.port > 65535) {
    return absl::InvalidArgumentError(
        fmt::format("gRPC port {} is not a port; use 1 to 65535, or 0 for any", options.port));
  }
  if (options.max_message_bytes < 1 || options.max_message_bytes > kMaxMessageBytes) {
    return absl::InvalidArgumentError(fmt::format("gRPC message limit of {} bytes: use 1 to {}",
                                                  options.max_message_bytes, kMaxMessageBytes));
  }
  auto server = std::make_unique<GrpcServerImpl>(options, session);
  LH_RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace longhaul
