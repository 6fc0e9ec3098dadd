#include "server/cmd_serve.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <thread>
#include <utility>

#include "server/grpc_server.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/open_session.h"
#include "server/version.h"

namespace longhaul {
namespace {

using std::chrono::milliseconds;

int Fail(const absl::Status& status) {
  fmt::print(stderr, "longhaul serve: {}\n",
             std::string(status.message().data(), status.message().size()));
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

milliseconds ToMilliseconds(double seconds) {
  return milliseconds(static_cast<int64_t>(seconds * 1000));
}

// SIGTERM and SIGINT are taken by the main thread with sigwait; threads made later inherit the
// mask.
sigset_t BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // writing to a closed socket is an error code, not the end
  return set;
}

HttpOptions MakeHttpOptions(const ServerConfig& config) {
  HttpOptions options;
  options.host = config.host;
  options.port = static_cast<int>(config.port);
  options.api_keys = config.api_keys;
  options.version = kVersion;
  options.max_body_bytes = config.max_body_bytes;
  options.max_connections = config.max_connections;
  options.n_workers = static_cast<int>(config.request_workers);
  options.ping_interval = ToMilliseconds(config.sse_ping_interval_s);
  return options;
}

GrpcOptions MakeGrpcOptions(const ServerConfig& config) {
  GrpcOptions options;
  options.host = config.host;
  options.port = static_cast<int>(config.grpc_port);
  options.api_keys = config.api_keys;
  options.max_message_bytes = config.max_body_bytes;
  options.n_workers = static_cast<int>(config.request_workers);
  options.version = kVersion;
  return options;
}

// Everything that runs ends or is cut off within the timeout. True when nothing was cut off.
bool Drain(const ServerConfig& config, HttpServer& http, GrpcServer* grpc, Engine& engine) {
  const milliseconds timeout = ToMilliseconds(config.shutdown_timeout_s);
  const Clock::time_point deadline = Clock::now() + timeout;
  http.BeginDrain();
  if (grpc != nullptr) grpc->SetServing(false);
  const EngineStats stats = engine.Stats();
  spdlog::info("draining: {} running, {} waiting, at most {} s", stats.n_running, stats.n_waiting,
               config.shutdown_timeout_s);
  std::thread grpc_shutdown([grpc, timeout] {
    if (grpc != nullptr) grpc->Shutdown(timeout);
  });
  const auto left = [deadline] {
    return std::max(milliseconds(0),
                    std::chrono::duration_cast<milliseconds>(deadline - Clock::now()));
  };
  const bool http_idle = http.WaitIdle(left());
  grpc_shutdown.join();
  const bool engine_idle = engine.Drain(left());
  http.Stop();
  return http_idle && engine_idle;
}

}  // namespace

int RunServe(const ServerConfig& config) {
  const sigset_t signals = BlockSignals();
  // The port first: a mistake shows before a large model is loaded.
  absl::StatusOr<std::unique_ptr<HttpServer>> http = HttpServer::Bind(MakeHttpOptions(config));
  if (!http.ok()) return Fail(http.status());

  Metrics metrics(config.ServedModelName());
  absl::StatusOr<std::unique_ptr<Session>> session =
      OpenSession(config, [&metrics](const RequestRecord& record) {
        metrics.OnFinished(record);
        LogRequest(record);
      });
  if (!session.ok()) return Fail(session.status());

  std::unique_ptr<GrpcServer> grpc;
  if (config.grpc_port != 0) {
    absl::StatusOr<std::unique_ptr<GrpcServer>> started =
        GrpcServer::Start(MakeGrpcOptions(config), session->get());
    if (!started.ok()) return Fail(started.status());
    grpc = *std::move(started);
    grpc->SetServing(true);
  }
  if (absl::Status status = (*http)->Serve(session->get(), &metrics); !status.ok()) {
    return Fail(status);
  }
  spdlog::info("serving {} ({}, context {} tokens): http://{}:{}{}", config.ServedModelName(),
               (*session)->chat_form(), (*session)->engine().max_model_len(), config.host,
               (*http)->port(), grpc ? fmt::format(", gRPC port {}", grpc->port()) : "");
  if (config.api_keys.empty() && config.host != "127.0.0.1" && config.host != "localhost") {
    spdlog::warn("no --api-key is set: whoever reaches {}:{} can use this server", config.host,
                 (*http)->port());
  }

  int signal_number = 0;
  sigwait(&signals, &signal_number);
  // A second signal means now: nobody waits for it in this thread, so let it have its default
  // action.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  const bool clean = Drain(config, **http, grpc.get(), (*session)->engine());
  spdlog::info(clean ? "bye" : "shut down before every request was finished");
  http->reset();
  grpc.reset();
  return clean ? 0 : 1;
}

}  // namespace longhaul
