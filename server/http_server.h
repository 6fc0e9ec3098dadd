// HttpServer: the OpenAI-compatible HTTP front end on one port; routes in docs/api.md. Made,
// drained and stopped by cmd_serve. Its threads are its own:
//   - one accepts, and answers the connections that begin with GET /health or GET /ready. It does
//     nothing else, so these two answer whatever the others, the workers and the engine do;
//   - n_io_threads network threads, which never wait for anything;
//   - n_workers that parse, apply templates and tokenize.
// Everything else goes through the Session.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/metrics.h"
#include "server/session.h"

namespace longhaul {

struct HttpOptions {
  std::string host = "0.0.0.0";
  int port = 8000;                    // 0 = any free port; port() tells which
  std::vector<std::string> api_keys;  // empty = no authentication
  std::string version;
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_total_body_bytes = int64_t{1} << 30;  // of all that are read or wait to be parsed
  int64_t max_connections = 1024;
  int n_io_threads = 2;
  int n_workers = 2;
  int64_t max_pending_starts = 256;  // requests waiting for a worker; more are refused with 503
  std::chrono::milliseconds ping_interval{10'000};
  std::chrono::milliseconds idle_timeout{75'000};    // between requests of a connection
  std::chrono::milliseconds header_timeout{20'000};  // first byte to the end of the headers
  std::chrono::milliseconds write_timeout{60'000};   // a client that does not read is gone then
  int64_t slowest_upload_bytes_per_s = 100'000;      // bodies that arrive slower are given up
  // Called for each request for an answer that is refused before it reaches the Session. May be
  // empty.
  std::function<void(const RequestRecord&)> on_refused;
};

class HttpServer {
 public:
  // Takes the port, but refuses connections until Listen(). Unavailable when the port is in use or
  // not allowed, InvalidArgument when `host` is no address of this machine.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Bind(const HttpOptions& options);
  virtual ~HttpServer() = default;  // Stop()

  virtual int port() const = 0;

  // Listens and starts the threads. Until Serve(), /health answers 200, everything else 503.
  // `metrics` must outlive the server.
  virtual absl::Status Listen(Metrics* metrics) = 0;
  // The model is loaded. `session` must outlive the server. Once.
  virtual void Serve(Session* session) = 0;

  // /ready and new work answer 503 from now on; what runs goes on.
  virtual void BeginDrain() = 0;
  // Waits until no request is being answered, at most `timeout`. True when idle.
  virtual bool WaitIdle(std::chrono::milliseconds timeout) = 0;
  // Closes every connection, which cancels what still runs, and joins the threads.
  virtual void Stop() = 0;
};

}  // namespace longhaul
