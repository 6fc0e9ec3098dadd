#include "server/http_server.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/strand.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "server/http_connection.h"

namespace longhaul {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::milliseconds kPoll{5};
constexpr std::chrono::milliseconds kAcceptPause{50};
constexpr std::chrono::seconds kCloseTimeout{5};

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(const HttpOptions& options)
      : context_(options), io_(options.n_io_threads), acceptor_(asio::make_strand(io_)) {}
  ~HttpServerImpl() override { Stop(); }

  absl::Status BindPort();

  int port() const override { return port_; }
  absl::Status Serve(Session* session, Metrics* metrics) override;
  void BeginDrain() override { context_.draining = true; }
  bool WaitIdle(std::chrono::milliseconds timeout) override;
  void Stop() override;

 private:
  absl::Status PortError(const error_code& error) const;
  asio::awaitable<void> AcceptLoop();
  void Start(tcp::socket socket);
  size_t NumConnections() {
    const std::lock_guard lock(context_.mutex);
    return context_.connections.size();
  }

  HttpContext context_;  // outlives the connections, which die with io_ at the latest
  asio::io_context io_;
  tcp::acceptor acceptor_;
  int port_ = 0;
  std::vector<std::thread> threads_;
  bool stopped_ = false;
};

absl::Status HttpServerImpl::BindPort() {
  const HttpOptions& options = context_.options;
  error_code error;
  tcp::resolver resolver(io_);
  const auto endpoints =
      resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
  if (error || endpoints.empty()) {
    return absl::InvalidArgumentError(fmt::format("--host: '{}' is no address of this machine ({})",
                                                  options.host, error.message()));
  }
  const tcp::endpoint endpoint = *endpoints.begin();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) port_ = acceptor_.local_endpoint(error).port();
  return error ? PortError(error) : absl::OkStatus();
}

absl::Status HttpServerImpl::PortError(const error_code& error) const {
  const HttpOptions& options = context_.options;
  if (error == asio::error::address_in_use) {
    return absl::UnavailableError(
        fmt::format("--port: {} is in use by another process on {}; stop it or choose another port",
                    options.port, options.host));
  }
  return absl::UnavailableError(
      fmt::format("cannot listen on {}:{}: {}", options.host, options.port, error.message()));
}

absl::Status HttpServerImpl::Serve(Session* session, Metrics* metrics) {
  error_code error;
  acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error) return PortError(error);
  context_.session = session;
  context_.metrics = metrics;
  context_.created_s = std::chrono::duration_cast<std::chrono::seconds>(
                           std::chrono::system_clock::now().time_since_epoch())
                           .count();
  asio::co_spawn(
      acceptor_.get_executor(), [this] { return AcceptLoop(); }, asio::detached);
  for (int i = 0; i < context_.options.n_io_threads; ++i) {
    threads_.emplace_back([this] { io_.run(); });
  }
  return absl::OkStatus();
}

asio::awaitable<void> HttpServerImpl::AcceptLoop() {
  while (acceptor_.is_open()) {
    tcp::socket socket(asio::make_strand(io_));
    error_code error;
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error == asio::error::operation_aborted) co_return;
    if (error) {  // out of file descriptors, most likely: wait for some to be closed
      spdlog::warn("cannot accept a connection: {}", error.message());
      asio::steady_timer timer(acceptor_.get_executor(), kAcceptPause);
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    if (NumConnections() >= static_cast<size_t>(context_.options.max_connections)) {
      static constexpr std::string_view kBusy =
          "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
          "Connection: close\r\n\r\n";
      socket.non_blocking(true, error);
      socket.write_some(asio::buffer(kBusy.data(), kBusy.size()), error);
      continue;  // closes the socket
    }
    Start(std::move(socket));
  }
}

void HttpServerImpl::Start(tcp::socket socket) {
  auto connection = std::make_shared<HttpConnection>(std::move(socket), &context_);
  const auto executor = connection->executor();
  {
    const std::lock_guard lock(context_.mutex);
    context_.connections.emplace(connection.get(), connection);
  }
  asio::co_spawn(
      executor, [connection = std::move(connection)] { return connection->Run(); }, asio::detached);
}

bool HttpServerImpl::WaitIdle(std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  while (context_.n_active > 0) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

void HttpServerImpl::Stop() {
  if (std::exchange(stopped_, true)) return;
  context_.draining = true;
  if (!threads_.empty()) {
    asio::post(acceptor_.get_executor(), [this] {
      error_code error;
      acceptor_.close(error);
    });
    std::vector<std::shared_ptr<HttpConnection>> connections;
    {
      const std::lock_guard lock(context_.mutex);
      for (const auto& [pointer, weak] : context_.connections) {
        if (auto connection = weak.lock()) connections.push_back(std::move(connection));
      }
    }
    for (const auto& connection : connections) connection->Close();
    connections.clear();
    const Clock::time_point deadline = Clock::now() + kCloseTimeout;
    while (NumConnections() > 0 && Clock::now() < deadline) std::this_thread::sleep_for(kPoll);
  }
  context_.workers.Stop();
  io_.stop();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Bind(const HttpOptions& options) {
  auto server = std::make_unique<HttpServerImpl>(options);
  LH_RETURN_IF_ERROR(server->BindPort());
  return server;
}

}  // namespace longhaul
