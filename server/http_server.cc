#include "server/http_server.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/strand.hpp>
#include <future>
#include <optional>
#include <set>
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
// Beyond max_connections, so that health checks get through when it is reached.
constexpr int64_t kSpareConnections = 64;

constexpr size_t kMaxUnreadBytes = 16 << 10;

// A connection whose first bytes are these is answered by the accepting thread.
constexpr std::string_view kProbes[] = {"GET /health", "GET /ready"};
constexpr size_t kLongestProbe = 11;

// What the client has sent, without taking it; empty when it closed the connection. A probe arrives
// in one segment; one that does not is answered by the network threads, where nothing is lost.
std::string_view Peek(tcp::socket& socket, char (&buffer)[kLongestProbe]) {
  const ssize_t n_bytes =
      recv(socket.native_handle(), buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT);
  return {buffer, n_bytes > 0 ? static_cast<size_t>(n_bytes) : 0};
}

void RefuseBusy(tcp::socket& socket) {
  static constexpr std::string_view kBusy =
      "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
      "Connection: close\r\n\r\n";
  error_code error;
  socket.non_blocking(true, error);
  // To close with unread data would reset the connection, and the client might not see the answer.
  std::array<char, kMaxUnreadBytes> unread;
  socket.read_some(asio::buffer(unread), error);
  socket.write_some(asio::buffer(kBusy.data(), kBusy.size()), error);
}

bool IsProbe(std::string_view begin) {
  return std::any_of(std::begin(kProbes), std::end(kProbes),
                     [begin](std::string_view probe) { return begin.starts_with(probe); });
}

class HttpServerImpl final : public HttpServer {
 public:
  explicit HttpServerImpl(const HttpOptions& options)
      : context_(options), io_(options.n_io_threads), probe_io_(1), acceptor_(probe_io_) {}
  ~HttpServerImpl() override { Stop(); }

  absl::Status BindPort();

  int port() const override { return port_; }
  absl::Status Listen(Metrics* metrics) override;
  void Serve(Session* session) override;
  void BeginDrain() override { context_.draining = true; }
  bool WaitIdle(std::chrono::milliseconds timeout) override;
  void Stop() override;

 private:
  absl::Status PortError(const error_code& error) const;
  // On the probe thread.
  asio::awaitable<void> AcceptLoop();
  asio::awaitable<void> Route(std::shared_ptr<tcp::socket> socket);
  void Start(tcp::socket socket, bool is_probe);
  int64_t NumConnections() {
    const std::lock_guard lock(context_.mutex);
    return static_cast<int64_t>(context_.connections.size());
  }

  HttpContext context_;             // outlives the connections, which die with io_ at the latest
  std::set<tcp::socket*> routing_;  // connections that have sent nothing yet; on the probe thread
  asio::io_context io_;
  asio::io_context probe_io_;
  tcp::acceptor acceptor_;
  tcp protocol_ = tcp::v4();
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
  protocol_ = endpoint.protocol();
  acceptor_.open(protocol_, error);
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

absl::Status HttpServerImpl::Listen(Metrics* metrics) {
  error_code error;
  acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error) return PortError(error);
  context_.metrics = metrics;
  asio::co_spawn(
      probe_io_, [this] { return AcceptLoop(); }, asio::detached);
  threads_.emplace_back([this] { probe_io_.run(); });
  for (int i = 0; i < context_.options.n_io_threads; ++i) {
    threads_.emplace_back([this] {
      const auto work = asio::make_work_guard(io_);  // connections come later
      io_.run();
    });
  }
  return absl::OkStatus();
}

void HttpServerImpl::Serve(Session* session) {
  context_.session = session;
  context_.created_s = std::chrono::duration_cast<std::chrono::seconds>(
                           std::chrono::system_clock::now().time_since_epoch())
                           .count();
  context_.loaded.store(true, std::memory_order_release);
}

asio::awaitable<void> HttpServerImpl::AcceptLoop() {
  while (acceptor_.is_open()) {
    auto socket = std::make_shared<tcp::socket>(probe_io_);
    error_code error;
    co_await acceptor_.async_accept(*socket, asio::redirect_error(asio::use_awaitable, error));
    if (error == asio::error::operation_aborted) co_return;
    if (error) {  // out of file descriptors, most likely: wait for some to be closed
      spdlog::warn("cannot accept a connection: {}", error.message());
      asio::steady_timer timer(probe_io_, kAcceptPause);
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    const int64_t n_open = NumConnections() + static_cast<int64_t>(routing_.size());
    if (n_open >= context_.options.max_connections + kSpareConnections) {
      RefuseBusy(*socket);
      continue;
    }
    asio::co_spawn(
        probe_io_, [this, socket = std::move(socket)] { return Route(socket); }, asio::detached);
  }
}

asio::awaitable<void> HttpServerImpl::Route(std::shared_ptr<tcp::socket> socket) {
  error_code error;
  asio::steady_timer timer(probe_io_, context_.options.idle_timeout);
  timer.async_wait([socket](error_code stopped) {
    if (!stopped) socket->cancel(stopped);
  });
  routing_.insert(socket.get());
  co_await socket->async_wait(tcp::socket::wait_read,
                              asio::redirect_error(asio::use_awaitable, error));
  routing_.erase(socket.get());
  timer.cancel();
  if (error) co_return;
  char buffer[kLongestProbe];
  const std::string_view begin = Peek(*socket, buffer);
  if (begin.empty()) co_return;
  if (IsProbe(begin)) {
    Start(std::move(*socket), /*is_probe=*/true);
  } else if (NumConnections() >= context_.options.max_connections) {
    RefuseBusy(*socket);
  } else {
    tcp::socket moved(asio::make_strand(io_));
    moved.assign(protocol_, socket->release(error), error);
    if (!error) Start(std::move(moved), /*is_probe=*/false);
  }
}

void HttpServerImpl::Start(tcp::socket socket, bool is_probe) {
  auto connection = std::make_shared<HttpConnection>(std::move(socket), &context_, is_probe);
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
    std::promise<void> closed;
    asio::post(probe_io_, [this, &closed] {
      error_code error;
      acceptor_.close(error);
      for (tcp::socket* socket : routing_) socket->close(error);
      closed.set_value();
    });
    closed.get_future().wait();
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
  probe_io_.stop();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Bind(const HttpOptions& options) {
  auto server = std::make_unique<HttpServerImpl>(options);
  LH_RETURN_IF_ERROR(server->BindPort());
  return server;
}

}  // namespace longhaul
