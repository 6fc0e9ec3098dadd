// HttpClient: HTTP/1.1 calls to one server as coroutines of one thread, each on a connection of its
// own. A call can be given up at a time, by closing the connection, as a client that goes away
// does. Owned by the load generator; the io_context must be run by one thread only. No TLS, no
// redirects.
#pragma once

#include <utility>  // before Boost 1.74's awaitable.hpp, which forgets it

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::load {

using Clock = std::chrono::steady_clock;

struct Url {
  std::string host;
  std::string port;
  std::string path;  // in front of every path of a call; "" or "/x", without a slash at its end
};
// "http://host[:port][/path]", [::1] for IPv6; a path that ends in /v1 is taken without it.
absl::StatusOr<Url> ParseUrl(const std::string& text);

struct HttpCall {
  std::string method = "GET";
  std::string path;                                // "/v1/models"
  std::string_view body;                           // must outlive the call
  Clock::time_point give_up;                       // then the call fails with DeadlineExceeded
  std::optional<Clock::time_point> disconnect_at;  // then it ends, as asked: stopped
};

struct HttpHead {
  int status = 0;
  std::string server;
  std::string retry_after;
};

// Pieces of the body as they arrive, a whole chunk or a part of one. False: stop, close the
// connection.
using BodySink = std::function<bool(const HttpHead&, std::string_view)>;

struct HttpOutcome {
  absl::Status
      status;  // OK: complete, or stopped; Unavailable: no connection; DataLoss: broken off
  bool stopped = false;  // by the sink or disconnect_at
  HttpHead head;         // status 0: no answer
};

class HttpClient {
 public:
  // Resolves the host; NotFound when there is none of this name.
  static absl::StatusOr<HttpClient> Create(boost::asio::io_context* io, const Url& url,
                                           const std::string& api_key);

  boost::asio::awaitable<HttpOutcome> Call(const HttpCall& call, const BodySink& sink) const;

  boost::asio::io_context& io() const { return *io_; }

 private:
  HttpClient(boost::asio::io_context* io, Url url, std::string headers,
             std::vector<boost::asio::ip::tcp::endpoint> endpoints)
      : io_(io),
        url_(std::move(url)),
        headers_(std::move(headers)),
        endpoints_(std::move(endpoints)) {}

  boost::asio::io_context* io_;
  Url url_;
  std::string headers_;  // the same in every call, each with its line end
  std::vector<boost::asio::ip::tcp::endpoint> endpoints_;
};

}  // namespace longhaul::load
