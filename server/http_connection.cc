#include "server/http_connection.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/status.hpp>
#include <cerrno>
#include <limits>

namespace longhaul {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;

constexpr uint32_t kMaxHeaderBytes = 64 << 10;
constexpr size_t kReadBytes = 16 << 10;
constexpr size_t kBufferBytes = 256 << 10;
constexpr int64_t kSmallBodyBytes = 64 << 10;  // bounded by the number of connections alone
constexpr size_t kWriteBytes = 256 << 10;      // each piece has the write timeout to itself
constexpr std::chrono::seconds kLingerTimeout{5};
constexpr std::chrono::seconds kLongWait{3600};

auto Token(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

int64_t MicrosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

absl::StatusCode CodeOf(int http_status) {
  switch (http_status) {
    case 401:
      return absl::StatusCode::kUnauthenticated;
    case 429:
      return absl::StatusCode::kResourceExhausted;
    case 503:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInvalidArgument;
  }
}

HttpReply BodyTooLarge(int64_t max_body_bytes) {
  api::HttpError error;
  error.http_status = 413;
  error.type = "invalid_request_error";
  error.code = "request_too_large";
  error.message =
      fmt::format("The request body is larger than {} bytes; send less, or raise --max-body-bytes.",
                  max_body_bytes);
  return ErrorReply(error);
}

absl::Status WorkersBusy() {
  return absl::ResourceExhaustedError(
      "Too many requests are waiting to be read by the server; try again later.");
}

absl::Status BodiesFull() {
  return absl::ResourceExhaustedError(
      "The requests that the server is reading are too large together (--max-total-body-bytes); "
      "try again later.");
}

HttpReply Malformed(int status, const std::string& message) {
  api::HttpError error;
  error.http_status = status;
  error.type = "invalid_request_error";
  error.message = message;
  return ErrorReply(error);
}

}  // namespace

HttpConnection::HttpConnection(asio::ip::tcp::socket socket, HttpContext* context, bool once)
    : context_(context),
      once_(once),
      stream_(std::move(socket)),
      buffer_(kBufferBytes),
      signal_(std::make_shared<Signal>(stream_.get_executor())) {}

HttpConnection::~HttpConnection() {
  const std::lock_guard lock(context_->mutex);
  context_->connections.erase(this);
}

void HttpConnection::Close() {
  asio::post(stream_.get_executor(), [self = shared_from_this()] {
    self->gone_ = true;
    self->signal_->Set();
    self->stream_.close();
  });
}

asio::awaitable<void> HttpConnection::Run() {
  const SignalCloser closer(signal_);
  error_code error;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), error);
  while (!gone_ && co_await ServeOne()) {
  }
  if (must_linger_ && !gone_) co_await CloseGently();
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_both, error);
}

asio::awaitable<bool> HttpConnection::ServeOne() {
  HeaderParser header;
  Exchange exchange;
  if (!co_await ReadHeader(header, exchange)) co_return false;
  if (std::optional<HttpReply> refusal = CheckHeader(header, exchange)) {
    if (!header.is_done()) {  // the body stays unread: nothing more can follow on this connection
      exchange.keep_alive = false;
      must_linger_ = true;
    }
    RecordRefusal(exchange, refusal->status);
    co_await WriteReply(exchange, *std::move(refusal));
    co_return exchange.keep_alive && !gone_;
  }

  struct ActiveCount {
    explicit ActiveCount(std::atomic<int64_t>& n) : n_(n) { ++n_; }
    ~ActiveCount() { --n_; }
    std::atomic<int64_t>& n_;
  };
  const ActiveCount active(context_->n_active);
  if (!co_await ReadBody(header, exchange)) co_return false;
  co_await Answer(exchange);
  co_return exchange.keep_alive && !gone_ && !context_->draining;
}

asio::awaitable<bool> HttpConnection::ReadHeader(HeaderParser& parser, Exchange& exchange) {
  error_code error;
  if (buffer_.size() == 0) {
    stream_.expires_after(context_->options.idle_timeout);
    const size_t n_bytes =
        co_await stream_.async_read_some(buffer_.prepare(kReadBytes), Token(error));
    if (error) co_return false;
    buffer_.commit(n_bytes);
  }
  exchange.phases.accepted = Clock::now();
  stream_.expires_after(context_->options.header_timeout);
  parser.header_limit(kMaxHeaderBytes);
  // Checked by CheckHeader and ReadBody. Not boost::none: Boost 1.74 takes that for "no body".
  parser.body_limit(std::numeric_limits<uint64_t>::max());
  co_await http::async_read_header(stream_, buffer_, parser, Token(error));
  exchange.request_id = MakeRequestId();
  if (error) {
    const bool malformed =
        error.category() == make_error_code(http::error::bad_method).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message;
    if (malformed) {
      must_linger_ = true;
      HttpReply reply = error == http::error::header_limit
                            ? Malformed(431, "The request headers are too large.")
                            : Malformed(400, "This is not a valid HTTP request.");
      co_await WriteReply(exchange, std::move(reply));
    }
    co_return false;
  }
  const auto& message = parser.get();
  exchange.http_version = message.version();
  exchange.keep_alive = message.keep_alive() && !once_;
  exchange.head_only = message.method() == http::verb::head;
  exchange.match = MatchRoute(View(message.method_string()), View(message.target()));
  const std::string_view id = View(message["X-Request-Id"]);
  exchange.id_is_given = IsValidRequestId(id);
  if (exchange.id_is_given) exchange.request_id = id;
  co_return true;
}

std::optional<HttpReply> HttpConnection::CheckHeader(const HeaderParser& parser,
                                                     Exchange& exchange) const {
  const RouteMatch& match = exchange.match;
  std::optional<std::string> caller =
      context_->keys.Caller(View(parser.get()[http::field::authorization]));
  if (!match.is_public && !caller) {
    return ErrorReply(absl::UnauthenticatedError(
        "Incorrect API key provided. Send the header 'Authorization: Bearer <key>'."));
  }
  if (match.route == Route::kUnknown) return Malformed(404, "There is nothing at this path.");
  if (!match.method_allowed) {
    HttpReply reply = Malformed(405, fmt::format("This path allows {}.", match.allow));
    reply.allow = match.allow;
    return reply;
  }
  const bool is_probe = match.route == Route::kHealth || match.route == Route::kReady;
  if (!is_probe && !context_->loaded.load(std::memory_order_acquire)) {
    return ErrorReply(absl::UnavailableError("The server is loading its model; try again later."));
  }
  exchange.caller = std::move(caller).value_or("");
  const auto timeout_s = ParseTimeout(View(parser.get()["X-Request-Timeout"]));
  if (!timeout_s.ok()) return ErrorReply(timeout_s.status());
  exchange.timeout_s = *timeout_s;
  const auto length = parser.content_length();
  if (length && *length > static_cast<uint64_t>(context_->options.max_body_bytes)) {
    return BodyTooLarge(context_->options.max_body_bytes);
  }
  if (std::optional<HttpReply> refusal = CheckWork(match.route)) return refusal;
  const int64_t n_body_bytes = BodyBytes(parser);
  if (n_body_bytes <= kSmallBodyBytes) return std::nullopt;
  exchange.body_share = context_->bodies.Take(n_body_bytes);
  return exchange.body_share ? std::nullopt : std::optional(ErrorReply(BodiesFull()));
}

int64_t HttpConnection::BodyBytes(const HeaderParser& header) const {
  if (header.is_done()) return 0;
  return static_cast<int64_t>(
      header.content_length().value_or(static_cast<uint64_t>(context_->options.max_body_bytes)));
}

std::optional<HttpReply> HttpConnection::CheckWork(Route route) const {
  const bool generates = route == Route::kChatCompletions || route == Route::kCompletions;
  if (!generates && route != Route::kTokenize && route != Route::kDetokenize) return std::nullopt;
  if (context_->draining) {
    return ErrorReply(absl::UnavailableError("The server is shutting down; try another one."));
  }
  if (context_->workers.full()) return ErrorReply(WorkersBusy());
  if (!generates) return std::nullopt;
  const absl::Status queue = context_->session->engine().CheckQueue();
  return queue.ok() ? std::nullopt : std::optional(ErrorReply(queue));
}

asio::awaitable<bool> HttpConnection::ReadBody(HeaderParser& header, Exchange& exchange) {
  if (header.is_done()) co_return true;
  const HttpOptions& options = context_->options;
  const bool expects_continue =
      beast::iequals(header.get()[http::field::expect], "100-continue") && buffer_.size() == 0;
  const int64_t n_bytes = BodyBytes(header);
  const Clock::time_point begin = Clock::now();
  if (expects_continue && !co_await WriteAll("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;

  BodyParser body(std::move(header));
  body.body_limit(static_cast<uint64_t>(options.max_body_bytes));
  stream_.expires_after(options.header_timeout +
                        std::chrono::seconds(n_bytes / options.slowest_upload_bytes_per_s));
  error_code error;
  co_await http::async_read(stream_, buffer_, body, Token(error));
  if (error == http::error::body_limit) {
    must_linger_ = true;
    exchange.keep_alive = false;
    RecordRefusal(exchange, 413);
    co_await WriteReply(exchange, BodyTooLarge(options.max_body_bytes));
    co_return false;
  }
  if (error) {
    if (error.category() == make_error_code(http::error::bad_method).category() &&
        error != http::error::partial_message && error != http::error::end_of_stream) {
      must_linger_ = true;
      exchange.keep_alive = false;
      co_await WriteReply(exchange, Malformed(400, "The request body is not valid HTTP."));
    }
    co_return false;
  }
  exchange.body = std::move(body.get().body());
  exchange.phases.read_us = MicrosecondsSince(begin);
  co_return true;
}

asio::awaitable<void> HttpConnection::Answer(Exchange& exchange) {
  switch (exchange.match.route) {
    case Route::kChatCompletions:
    case Route::kCompletions:
      co_await AnswerGenerate(exchange);
      break;
    case Route::kTokenize:
    case Route::kDetokenize:
      co_await AnswerSmallPost(exchange);
      break;
    case Route::kCancel:
      co_await WriteReply(
          exchange, AnswerCancel(*context_->session, exchange.caller, exchange.match.argument));
      break;
    case Route::kHealth:
    case Route::kReady:
      co_await WriteReply(exchange, AnswerProbe(exchange.match.route));
      break;
    default:
      co_await WriteReply(exchange, AnswerGet(exchange));
  }
}

HttpReply HttpConnection::AnswerProbe(Route route) const {
  const bool loaded = context_->loaded.load(std::memory_order_acquire);
  const absl::Status health = loaded ? context_->session->engine().Health() : absl::OkStatus();
  HttpReply reply;
  const auto answer = [&reply](int status, const char* state, const absl::Status& reason) {
    reply.status = status;
    reply.body = api::StateBody(state, reason);
  };
  if (!health.ok()) {
    answer(503, "unhealthy", health);
  } else if (route == Route::kHealth) {
    answer(200, "ok", health);
  } else if (!loaded) {
    answer(503, "loading", health);
  } else if (context_->draining) {
    answer(503, "draining", health);
  } else {
    answer(200, "ready", health);
  }
  return reply;
}

HttpReply HttpConnection::AnswerGet(const Exchange& exchange) const {
  Session& session = *context_->session;
  const api::ModelCard card{session.config().served_model_name, context_->created_s,
                            session.engine().max_model_len()};
  HttpReply reply;
  switch (exchange.match.route) {
    case Route::kModels:
      reply.body = api::ModelListBody({card});
      break;
    case Route::kModel:
      if (exchange.match.argument != card.id) {
        return ErrorReply(absl::NotFoundError(
            fmt::format("The model '{}' does not exist.", exchange.match.argument)));
      }
      reply.body = api::ModelBody(card);
      break;
    case Route::kVersion:
      reply.body = fmt::format(R"({{"version":"{}"}})", context_->options.version);
      break;
    case Route::kMetrics:
      reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
      reply.body = context_->metrics->Render(session.engine().Stats());
      break;
    default:
      reply = Malformed(404, "There is nothing at this path.");
  }
  return reply;
}

asio::awaitable<void> HttpConnection::AnswerSmallPost(Exchange& exchange) {
  auto body = std::make_shared<std::string>(std::move(exchange.body));
  auto answer = std::make_shared<absl::StatusOr<std::string>>();
  std::optional<HttpReply> refusal;
  const bool tokenize = exchange.match.route == Route::kTokenize;
  auto share = std::make_shared<std::optional<ByteBudget::Share>>(std::move(exchange.body_share));
  // A variable, not an argument: gcc 12 destroys a lambda's captures twice when it is a temporary
  // of a co_await expression.
  std::function<void()> work = [body, share, answer, tokenize, session = context_->session] {
    *answer = tokenize ? AnswerTokenize(*session, *body, session->engine().max_model_len())
                       : AnswerDetokenize(*session, *body);
    std::string().swap(*body);
    share->reset();
  };
  const bool done = co_await RunOnWorker(std::move(work), &refusal);
  if (refusal) {
    co_await WriteReply(exchange, *std::move(refusal));
  } else if (done) {
    HttpReply reply;
    if (answer->ok()) {
      reply.body = **std::move(answer);
    } else {
      reply = ErrorReply(answer->status());
    }
    co_await WriteReply(exchange, std::move(reply));
  }
}

asio::awaitable<bool> HttpConnection::RunOnWorker(std::function<void()> work,
                                                  std::optional<HttpReply>* refusal) {
  auto done = std::make_shared<std::atomic<bool>>(false);
  const bool posted = context_->workers.Post([done, work = std::move(work), signal = signal_] {
    work();
    *done = true;
    signal->Notify();
  });
  if (!posted) {
    *refusal = ErrorReply(WorkersBusy());
    co_return false;
  }
  WatchForDisconnect();
  while (!*done && !gone_) co_await signal_->Wait(Clock::now() + kLongWait);
  stream_.socket().cancel();
  co_return !gone_;
}

void HttpConnection::WatchForDisconnect() {
  if (buffer_.size() > 0) return;  // the next request is here already
  stream_.socket().async_wait(
      asio::ip::tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
        if (error) return;  // cancelled: the wait is over
        char byte;
        const ssize_t n_bytes =
            recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n_bytes > 0) return;  // the next request
        if (n_bytes < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
          self->WatchForDisconnect();
          return;
        }
        self->gone_ = true;
        self->signal_->Set();
      });
}

void HttpConnection::RecordRefusal(const Exchange& exchange, int http_status) const {
  const Route route = exchange.match.route;
  const bool chat = route == Route::kChatCompletions;
  if (!context_->options.on_refused || !(chat || route == Route::kCompletions)) return;
  const absl::Status status(CodeOf(http_status), "");
  RequestRecord record = RefusalRecord(exchange.request_id, chat, exchange.phases, status);
  record.http_status = http_status;
  context_->options.on_refused(record);
}

asio::awaitable<void> HttpConnection::WriteReply(Exchange& exchange, HttpReply reply) {
  context_->metrics->OnHttpResponse(reply.status);
  if (context_->draining) exchange.keep_alive = false;
  const auto reason = http::obsolete_reason(static_cast<http::status>(reply.status));
  std::string text = fmt::format(
      "HTTP/1.1 {} {}\r\nServer: longhaul\r\nContent-Type: {}\r\nContent-Length: {}\r\n"
      "X-Request-Id: {}\r\nConnection: {}\r\n",
      reply.status, View(reason), reply.content_type, reply.body.size(), exchange.request_id,
      exchange.keep_alive ? "keep-alive" : "close");
  if (reply.retry_after_s > 0) text += fmt::format("Retry-After: {}\r\n", reply.retry_after_s);
  if (reply.status == 401) text += "WWW-Authenticate: Bearer\r\n";
  if (!reply.allow.empty()) text += fmt::format("Allow: {}\r\n", reply.allow);
  text += "\r\n";
  if (!exchange.head_only) text += reply.body;
  co_await WriteAll(text);
}

asio::awaitable<bool> HttpConnection::WriteAll(const std::string& data) {
  for (size_t begin = 0; begin < data.size() && !gone_; begin += kWriteBytes) {
    const size_t n_bytes = std::min(kWriteBytes, data.size() - begin);
    error_code error;
    stream_.expires_after(context_->options.write_timeout);
    co_await asio::async_write(stream_, asio::buffer(data.data() + begin, n_bytes), Token(error));
    if (error) gone_ = true;
  }
  co_return !gone_;
}

asio::awaitable<void> HttpConnection::CloseGently() {
  error_code error;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, error);
  stream_.expires_after(kLingerTimeout);
  buffer_.clear();
  while (!error) {
    co_await stream_.async_read_some(buffer_.prepare(kReadBytes), Token(error));
  }
}

}  // namespace longhaul
