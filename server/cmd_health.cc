#include "server/cmd_health.h"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <cstdio>
#include <string>

namespace longhaul {
namespace {

// An address to connect to, for one to listen on.
std::string ConnectHost(const std::string& listen_host) {
  if (listen_host == "0.0.0.0") return "127.0.0.1";
  if (listen_host == "::") return "::1";
  return listen_host;
}

}  // namespace

int RunHealth(const ServerConfig& config) {
  namespace beast = boost::beast;
  namespace http = beast::http;
  using boost::asio::ip::tcp;

  if (config.port == 0) {
    fmt::print(
        stderr,
        "longhaul health: the server takes any free port (--port 0); name the one it took\n");
    return 2;
  }
  const std::string host = ConnectHost(config.host);
  boost::asio::io_context io;
  boost::system::error_code error;
  tcp::resolver resolver(io);
  const auto endpoints = resolver.resolve(host, std::to_string(config.port), error);
  beast::tcp_stream stream(io);
  http::response<http::string_body> response;
  if (!error) {
    // Timeouts need asynchronous operations: run each one to its end.
    stream.expires_after(std::chrono::seconds(5));
    const auto keep = [&error](boost::system::error_code e, auto&&...) { error = e; };
    const auto run = [&io] {
      io.restart();
      io.run();
    };
    stream.async_connect(endpoints, keep);
    run();
    http::request<http::empty_body> request(http::verb::get, "/ready", 11);
    request.set(http::field::host, host);
    beast::flat_buffer buffer;
    if (!error) {
      http::async_write(stream, request, keep);
      run();
    }
    if (!error) {
      http::async_read(stream, buffer, response, keep);
      run();
    }
  }
  if (error) {
    fmt::print(stderr, "longhaul health: {}:{}: {}\n", host, config.port, error.message());
    return 1;
  }
  if (response.result() != http::status::ok) {
    fmt::print(stderr, "longhaul health: not ready: {}\n", response.body());
    return 1;
  }
  return 0;
}

}  // namespace longhaul
