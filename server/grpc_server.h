// GrpcServer: longhaul.v1.Inference, grpc.health.v1 and server reflection on one port, beside the
// HTTP server and on the same Session. Made and shut down by cmd_serve; its threads are its own:
// gRPC's network threads never wait for anything, and tokenization runs on a small pool of workers.
// It does not know JSON, and it does not decide when the process is ready: SetServing() tells it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/session.h"

namespace grpc {
class Channel;
}

namespace longhaul {

struct GrpcOptions {
  std::string host = "0.0.0.0";
  int port = 8001;                                // 0 = any free port; port() tells which
  std::vector<std::string> api_keys;              // empty = no authentication
  int64_t max_message_bytes = int64_t{64} << 20;  // of requests and answers
  int n_workers = 2;                              // threads that validate and tokenize
  int64_t max_pending_starts = 256;               // requests waiting for a worker; more are refused
  std::chrono::milliseconds write_timeout{60'000};  // a client that does not read is cancelled then
  std::string version;                              // GetServerInfo
  // Called for each Generate call that is refused before it reaches the Session. May be empty.
  std::function<void(const RequestRecord&)> on_refused;
};

class GrpcServer {
 public:
  // `session` must outlive the server. Not serving yet in the sense of grpc.health.v1; requests are
  // answered from now on. Unavailable when the port cannot be bound.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const GrpcOptions& options,
                                                           Session* session);
  virtual ~GrpcServer() = default;  // Shutdown(0) if it was not called

  virtual int port() const = 0;

  // What grpc.health.v1 answers for "" and "longhaul.v1.Inference".
  virtual void SetServing(bool serving) = 0;

  // Not serving, accepts nothing new, waits for running calls up to `timeout`, then cancels them.
  virtual void Shutdown(std::chrono::milliseconds timeout) = 0;

  // A channel to this server inside the process (tests).
  virtual std::shared_ptr<grpc::Channel> InProcessChannel() = 0;
};

}  // namespace longhaul
