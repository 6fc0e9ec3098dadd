// HttpConnection: one client connection as one coroutine on its own strand: reads requests one
// after another, answers them, notices when the client goes away. Owned by its coroutine.
// Generation requests are in http_generate.cc, the rest in http_connection.cc.
#pragma once

#include <utility>  // before Boost 1.74's awaitable.hpp, which forgets it

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "server/api/openai_response.h"
#include "server/auth.h"
#include "server/byte_budget.h"
#include "server/http_routes.h"
#include "server/http_server.h"
#include "server/http_signal.h"
#include "server/task_queue.h"

namespace longhaul {

class HttpConnection;

// What all connections of a server share; outlives them.
struct HttpContext {
  explicit HttpContext(const HttpOptions& o)
      : options(o),
        keys(o.api_keys),
        bodies(o.max_total_body_bytes),
        workers(o.n_workers, o.max_pending_starts) {}

  const HttpOptions options;
  const ApiKeys keys;
  ByteBudget bodies;
  TaskQueue workers;  // after bodies: what waits there may hold a share
  Metrics* metrics = nullptr;
  Session* session = nullptr;       // once `loaded`
  int64_t created_s = 0;            // Unix time of the start; once `loaded`
  std::atomic<bool> loaded{false};  // the model is
  std::atomic<bool> draining{false};
  std::atomic<int64_t> n_active{0};  // requests whose answer is not complete

  std::mutex mutex;
  std::unordered_map<HttpConnection*, std::weak_ptr<HttpConnection>>
      connections;  // guarded by mutex
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  // `once`: it is closed after one answer.
  HttpConnection(boost::asio::ip::tcp::socket socket, HttpContext* context, bool once);
  ~HttpConnection();

  boost::asio::awaitable<void> Run();
  // Any thread.
  void Close();
  boost::asio::any_io_executor executor() { return stream_.get_executor(); }

 private:
  using HeaderParser = boost::beast::http::request_parser<boost::beast::http::empty_body>;
  using BodyParser = boost::beast::http::request_parser<boost::beast::http::string_body>;

  // The request being answered.
  struct Exchange {
    RouteMatch match;
    std::string request_id;
    bool id_is_given = false;         // by the header X-Request-Id
    std::string caller;               // ApiKeys::Caller
    std::optional<double> timeout_s;  // X-Request-Timeout
    std::string body;
    std::optional<ByteBudget::Share> body_share;  // as long as there is the body
    unsigned http_version = 11;
    bool keep_alive = false;
    bool head_only = false;
    api::FrontPhases phases;
  };

  // One request and its answer. False when the connection is to be closed.
  boost::asio::awaitable<bool> ServeOne();
  // Reads the headers; false (after answering what can be answered) when the connection must close.
  boost::asio::awaitable<bool> ReadHeader(HeaderParser& parser, Exchange& exchange);
  // A refusal that needs no body, if there is one. Fills caller, timeout_s and body_share.
  std::optional<HttpReply> CheckHeader(const HeaderParser& parser, Exchange& exchange) const;
  // Of routes that work on a prompt: draining, full queues.
  std::optional<HttpReply> CheckWork(Route route) const;
  // The most that the body may become.
  int64_t BodyBytes(const HeaderParser& header) const;
  boost::asio::awaitable<bool> ReadBody(HeaderParser& header, Exchange& exchange);

  boost::asio::awaitable<void> Answer(Exchange& exchange);
  HttpReply AnswerGet(const Exchange& exchange) const;
  boost::asio::awaitable<void> AnswerSmallPost(Exchange& exchange);
  boost::asio::awaitable<void> WriteReply(Exchange& exchange, HttpReply reply);
  // For the request log: a generation request that gets `http_status` before it reaches the
  // Session.
  void RecordRefusal(const Exchange& exchange, int http_status) const;

  // http_generate.cc
  boost::asio::awaitable<void> AnswerGenerate(Exchange& exchange);
  boost::asio::awaitable<void> StreamAnswer(Exchange& exchange, Generation& generation,
                                            api::ResponseHead head, bool return_progress);
  // The next chunk; nullopt when the client went away.
  boost::asio::awaitable<std::optional<api::Chunk>> NextChunk(Generation& generation);
  boost::asio::awaitable<void> WholeAnswer(Exchange& exchange, Generation& generation,
                                           api::ResponseHead head);
  boost::asio::awaitable<bool> WriteStreamHeader(const Exchange& exchange);
  boost::asio::awaitable<bool> WriteStreamData(const Exchange& exchange, const std::string& data);

  // Runs `work` on a worker and waits. False, with a reply in *refusal, when the workers are busy;
  // false without one when the client went away (then `work` may still run: it must own what it
  // uses).
  boost::asio::awaitable<bool> RunOnWorker(std::function<void()> work,
                                           std::optional<HttpReply>* refusal);
  boost::asio::awaitable<bool> WriteAll(const std::string& data);
  // Sets gone_ and the signal when the client closes its side.
  void WatchForDisconnect();
  // Reads and drops what the client still sends, so that it gets to read our refusal.
  boost::asio::awaitable<void> CloseGently();

  // Of GET /health and GET /ready.
  HttpReply AnswerProbe(Route route) const;

  HttpContext* const context_;
  const bool once_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  const std::shared_ptr<Signal> signal_;
  bool gone_ = false;         // the client closed the connection, or it broke
  bool must_linger_ = false;  // refused before the body was read
};

}  // namespace longhaul
