#include "server/load/http_client.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <limits>

namespace longhaul::load {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kReadBytes = 64 << 10;

auto Token(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

std::string Text(beast::string_view text) { return {text.data(), text.size()}; }

// What an error means to the caller of Call.
HttpOutcome Ended(const HttpCall& call, HttpHead head, const char* doing, const error_code& error) {
  HttpOutcome outcome;
  outcome.head = std::move(head);
  if (error == beast::error::timeout) {
    outcome.stopped = call.disconnect_at && Clock::now() >= *call.disconnect_at;
    if (!outcome.stopped)
      outcome.status = absl::DeadlineExceededError("no answer in the time given");
    return outcome;
  }
  const std::string text = fmt::format("{}: {}", doing, error.message());
  outcome.status =
      outcome.head.status == 0 ? absl::UnavailableError(text) : absl::DataLossError(text);
  return outcome;
}

}  // namespace

absl::StatusOr<Url> ParseUrl(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  const auto bad = [&text](const char* why) {
    return absl::InvalidArgumentError(
        fmt::format("'{}' is not a URL to use here: {}; write http://host:port", text, why));
  };
  if (text.starts_with("https://")) return bad("TLS is not supported");
  if (!text.starts_with(kScheme)) return bad("it must begin with http://");
  if (text.find_first_of(" \t\r\n?#@") != std::string::npos) {
    return bad("it must not have spaces, a query, a fragment or a user");
  }
  std::string_view rest = std::string_view(text).substr(kScheme.size());
  Url url;
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) url.path = rest.substr(slash);
  rest = rest.substr(0, slash);
  while (url.path.ends_with('/')) url.path.pop_back();
  if (url.path.ends_with("/v1")) url.path.resize(url.path.size() - 3);  // OpenAI's base_url form
  size_t host_end = rest.find(':');
  if (rest.starts_with('[')) {
    host_end = rest.find(']');
    if (host_end == std::string_view::npos) return bad("a ']' is missing");
    url.host = rest.substr(1, host_end - 1);
    ++host_end;
  } else {
    url.host = rest.substr(0, host_end);
  }
  if (url.host.empty()) return bad("it has no host");
  url.port = "80";
  if (host_end < rest.size()) {
    url.port = rest.substr(host_end + 1);
    const bool digits = url.port.find_first_not_of("0123456789") == std::string::npos;
    if (rest[host_end] != ':' || url.port.empty() || url.port.size() > 5 || !digits ||
        std::stoi(url.port) < 1 || std::stoi(url.port) > 65535) {
      return bad("the port must be 1 to 65535");
    }
  }
  return url;
}

absl::StatusOr<HttpClient> HttpClient::Create(asio::io_context* io, const Url& url,
                                              const std::string& api_key) {
  tcp::resolver resolver(*io);
  error_code error;
  const auto found = resolver.resolve(url.host, url.port, error);
  if (error) return absl::NotFoundError(fmt::format("host {}: {}", url.host, error.message()));
  std::vector<tcp::endpoint> endpoints;
  for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  const bool ipv6 = url.host.find(':') != std::string::npos;
  const std::string host = ipv6 ? fmt::format("[{}]", url.host) : url.host;
  std::string headers = fmt::format("Host: {}:{}\r\n", host, url.port);
  headers += "User-Agent: longhaul-bench\r\nConnection: close\r\nAccept: */*\r\n";
  if (!api_key.empty()) headers += fmt::format("Authorization: Bearer {}\r\n", api_key);
  return HttpClient(io, url, std::move(headers), std::move(endpoints));
}

asio::awaitable<HttpOutcome> HttpClient::Call(const HttpCall& call, const BodySink& sink) const {
  beast::tcp_stream stream(*io_);
  stream.expires_at(call.disconnect_at ? std::min(*call.disconnect_at, call.give_up)
                                       : call.give_up);
  error_code error;
  co_await stream.async_connect(endpoints_, Token(error));
  if (error) co_return Ended(call, HttpHead(), "cannot connect", error);
  error_code ignored;
  stream.socket().set_option(tcp::no_delay(true), ignored);

  std::string header =
      fmt::format("{} {}{} HTTP/1.1\r\n{}", call.method, url_.path, call.path, headers_);
  if (call.method != "GET") {
    header +=
        fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", call.body.size());
  }
  header += "\r\n";
  const std::array<asio::const_buffer, 2> request = {
      asio::buffer(header), asio::buffer(call.body.data(), call.body.size())};
  // A server may refuse and close before it has read a large body: its answer is read all the same.
  co_await asio::async_write(stream, request, Token(error));
  if (error == beast::error::timeout) co_return Ended(call, HttpHead(), "send", error);

  beast::flat_buffer buffer;
  http::response_parser<http::buffer_body> parser;
  // Not boost::none: Boost 1.74 takes that for "no body". The sink bounds what it keeps.
  parser.body_limit(std::numeric_limits<uint64_t>::max());
  co_await http::async_read_header(stream, buffer, parser, Token(error));
  if (error) co_return Ended(call, HttpHead(), "no answer", error);
  HttpOutcome outcome;
  outcome.head.status = static_cast<int>(parser.get().result_int());
  outcome.head.server = Text(parser.get()[http::field::server]);
  outcome.head.retry_after = Text(parser.get()[http::field::retry_after]);

  std::vector<char> piece(kReadBytes);
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    co_await http::async_read_some(stream, buffer, parser, Token(error));
    if (error == http::error::need_buffer) error = {};  // the piece is full: the rest comes next
    const size_t n_bytes = piece.size() - parser.get().body().size;
    if (n_bytes > 0 && !sink(outcome.head, std::string_view(piece.data(), n_bytes))) {
      outcome.stopped = true;
      break;
    }
    if (error) co_return Ended(call, std::move(outcome.head), "the answer broke off", error);
  }
  stream.close();
  co_return outcome;
}

}  // namespace longhaul::load
