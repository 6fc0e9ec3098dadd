#include "server/cmd_serve.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stop_token>
#include <thread>
#include <utility>

#include "server/grpc_server.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/open_session.h"
#include "server/request_log.h"
#include "server/version.h"

namespace longhaul {
namespace {

using std::chrono::milliseconds;

constexpr std::chrono::seconds kHealthPeriod{1};
constexpr std::chrono::seconds kDrainLogPeriod{5};
constexpr long kLoadingPauseNs = 20'000'000;  // a start takes this much longer at most

int Fail(const absl::Status& status) {
  fmt::print(stderr, "longhaul serve: {}\n",
             std::string(status.message().data(), status.message().size()));
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

milliseconds ToMilliseconds(double seconds) {
  return milliseconds(static_cast<int64_t>(seconds * 1000));
}

milliseconds Left(Clock::time_point deadline) {
  return std::max(milliseconds(0),
                  std::chrono::duration_cast<milliseconds>(deadline - Clock::now()));
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

using RequestObserver = std::function<void(const RequestRecord&)>;

HttpOptions MakeHttpOptions(const ServerConfig& config, const RequestObserver& on_refused) {
  HttpOptions options;
  options.host = config.host;
  options.port = static_cast<int>(config.port);
  options.api_keys = config.api_keys;
  options.version = kVersion;
  options.max_body_bytes = config.max_body_bytes;
  options.max_total_body_bytes = config.max_total_body_bytes;
  options.max_connections = config.max_connections;
  options.n_workers = static_cast<int>(config.request_workers);
  options.ping_interval = ToMilliseconds(config.sse_ping_interval_s);
  options.on_refused = on_refused;
  return options;
}

GrpcOptions MakeGrpcOptions(const ServerConfig& config, const RequestObserver& on_refused) {
  GrpcOptions options;
  options.host = config.host;
  options.port = static_cast<int>(config.grpc_port);
  options.api_keys = config.api_keys;
  options.max_message_bytes = config.max_body_bytes;
  options.n_workers = static_cast<int>(config.request_workers);
  options.version = kVersion;
  options.on_refused = on_refused;
  return options;
}

// Until it is destroyed, SIGTERM and SIGINT end the process: a model that loads cannot be
// interrupted, and nothing was promised to anybody yet. Not by the signals' default action, which
// does nothing to the first process of a container.
std::jthread EndOnSignal(const sigset_t& signals) {
  return std::jthread([signals](const std::stop_token& loaded) {
    const timespec pause{0, kLoadingPauseNs};
    while (!loaded.stop_requested()) {
      if (sigtimedwait(&signals, nullptr, &pause) < 0) continue;
      spdlog::info("told to end while loading the model: bye");
      std::_Exit(0);
    }
  });
}

// Waits for SIGTERM or SIGINT. Meanwhile gRPC's health service follows the engine's health.
void ServeUntilSignal(const sigset_t& signals, const Engine& engine, GrpcServer* grpc) {
  bool was_healthy = true;
  while (true) {
    const timespec pause{kHealthPeriod.count(), 0};
    if (sigtimedwait(&signals, nullptr, &pause) >= 0) return;
    const absl::Status health = engine.Health();
    if (health.ok() == was_healthy) continue;
    was_healthy = health.ok();
    if (was_healthy) {
      spdlog::info("healthy again");
    } else {
      spdlog::error("unhealthy: {}", std::string(health.message()));
    }
    if (grpc != nullptr) grpc->SetServing(was_healthy);
  }
}

// Waits until HTTP answers nothing any more, and says every few seconds what is left.
bool WaitForAnswers(HttpServer& http, const Engine& engine, Clock::time_point deadline) {
  while (true) {
    const Clock::time_point next = std::min(deadline, Clock::now() + kDrainLogPeriod);
    if (http.WaitIdle(Left(next))) return true;
    if (Clock::now() >= deadline) return false;
    const EngineStats stats = engine.Stats();
    spdlog::info("draining: {} running, {} waiting, {} s left", stats.n_running, stats.n_waiting,
                 std::chrono::duration_cast<std::chrono::seconds>(Left(deadline)).count());
  }
}

// Everything that runs ends or is cut off within the timeout. True when nothing was cut off and
// every page of the KV pool is accounted for.
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
  const bool http_idle = WaitForAnswers(http, engine, deadline);
  grpc_shutdown.join();
  const bool engine_idle = engine.Drain(Left(deadline));
  http.Stop();
  absl::Status integrity = engine.CheckIntegrity();
  if (const int64_t n_used = engine.Stats().n_pages_used; integrity.ok() && n_used > 0) {
    integrity = absl::InternalError(fmt::format("{} are still in use without a request", n_used));
  }
  if (integrity.ok()) {
    spdlog::info("KV pages: all free or cached");
  } else {
    spdlog::error("KV pages: {}", std::string(integrity.message()));
  }
  return http_idle && engine_idle && integrity.ok();
}

}  // namespace

int RunServe(const ServerConfig& config) {
  const sigset_t signals = BlockSignals();
  Metrics metrics(config.ServedModelName());
  const RequestObserver on_request = [&metrics,
                                      log = config.request_log](const RequestRecord& record) {
    metrics.OnRequest(record);
    if (log) LogRequest(record);
  };
  // The port first: a mistake shows before a large model is loaded, and /health answers meanwhile.
  absl::StatusOr<std::unique_ptr<HttpServer>> http =
      HttpServer::Bind(MakeHttpOptions(config, on_request));
  if (!http.ok()) return Fail(http.status());
  if (absl::Status status = (*http)->Listen(&metrics); !status.ok()) return Fail(status);

  std::jthread end_on_signal = EndOnSignal(signals);
  absl::StatusOr<std::unique_ptr<Session>> session =
      OpenSession(config, on_request, [&metrics](const StepRecord& step) { metrics.OnStep(step); });
  if (!session.ok()) return Fail(session.status());
  end_on_signal = std::jthread();  // from now on signals are for ServeUntilSignal()

  std::unique_ptr<GrpcServer> grpc;
  if (config.grpc_port != 0) {
    absl::StatusOr<std::unique_ptr<GrpcServer>> started =
        GrpcServer::Start(MakeGrpcOptions(config, on_request), session->get());
    if (!started.ok()) return Fail(started.status());
    grpc = *std::move(started);
    grpc->SetServing(true);
  }
  (*http)->Serve(session->get());
  spdlog::info("serving {} (chat template: {}; context {} tokens): http://{}:{}{}",
               config.ServedModelName(), (*session)->chat_form(),
               (*session)->engine().max_model_len(), config.host, (*http)->port(),
               grpc ? fmt::format(", gRPC port {}", grpc->port()) : "");
  if (config.api_keys.empty() && config.host != "127.0.0.1" && config.host != "localhost") {
    spdlog::warn("no --api-key is set: whoever reaches {}:{} can use this server", config.host,
                 (*http)->port());
  }

  ServeUntilSignal(signals, (*session)->engine(), grpc.get());
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
