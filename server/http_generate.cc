// The generation requests of an HttpConnection: start on a worker, then stream or collect.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

#include "server/api/openai_request.h"
#include "server/api/openai_response.h"
#include "server/http_connection.h"
#include "server/progress_ticker.h"

namespace longhaul {
namespace {

namespace asio = boost::asio;

constexpr size_t kBatchBytes = 64 << 10;  // events that are ready together travel in one write
constexpr std::chrono::seconds kLongWait{3600};

struct Started {
  bool parsed = false;
  api::GenerateRequest request;  // without its prompt
  absl::StatusOr<std::unique_ptr<Generation>> generation;
};

// What the headers said, and the body.
struct Arrived {
  bool chat = false;
  std::string request_id;
  bool id_is_given = false;
  std::string caller;
  std::optional<double> timeout_s;
  std::string body;
  std::optional<ByteBudget::Share> body_share;
  api::FrontPhases phases;
};

absl::StatusOr<api::GenerateRequest> ParseRequest(const Arrived& arrived) {
  LH_ASSIGN_OR_RETURN(api::GenerateRequest request, arrived.chat
                                                        ? api::ParseChatCompletion(arrived.body)
                                                        : api::ParseCompletion(arrived.body));
  // The header's id before the body's before ours.
  if (arrived.id_is_given || request.request_id.empty()) request.request_id = arrived.request_id;
  if (!IsValidRequestId(request.request_id)) {
    return api::InvalidParam("request_id",
                             "'request_id' must have 1 to 128 printable characters without spaces");
  }
  request.caller = arrived.caller;
  if (arrived.timeout_s) {
    request.timeout_s =
        std::min(*arrived.timeout_s, request.timeout_s.value_or(*arrived.timeout_s));
  }
  return request;
}

// Parse, template, tokenize, submit: everything that takes time and needs no network. What is
// large dies here, too, and not on a network thread: body, JSON, text of the prompt.
void StartGeneration(Session& session, Arrived arrived, Started* started) {
  const Clock::time_point begin = Clock::now();
  absl::StatusOr<api::GenerateRequest> request = ParseRequest(arrived);
  if (!request.ok()) {
    started->generation = request.status();
    return;
  }
  started->parsed = true;
  std::string().swap(arrived.body);
  arrived.body_share.reset();
  api::FrontPhases phases = arrived.phases;
  phases.parse_us =
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
  started->generation = session.Start(*request, phases);
  request->prompt = std::string();
  started->request = *std::move(request);
}

}  // namespace

asio::awaitable<void> HttpConnection::AnswerGenerate(Exchange& exchange) {
  const bool chat = exchange.match.route == Route::kChatCompletions;
  auto started = std::make_shared<Started>();
  auto arrived = std::make_shared<Arrived>(
      Arrived{chat, exchange.request_id, exchange.id_is_given, exchange.caller, exchange.timeout_s,
              std::move(exchange.body), std::move(exchange.body_share), exchange.phases});
  std::optional<HttpReply> refusal;
  std::function<void()> work = [started, arrived, session = context_->session] {
    StartGeneration(*session, std::move(*arrived), started.get());
  };
  const bool done = co_await RunOnWorker(std::move(work), &refusal);
  if (refusal) {
    RecordRefusal(exchange, refusal->status);
    co_await WriteReply(exchange, *std::move(refusal));
    co_return;
  }
  if (!done) co_return;  // the client went away; `started` dies with the worker's closure
  if (started->parsed) exchange.request_id = started->request.request_id;
  if (!started->generation.ok()) {
    const absl::Status& status = started->generation.status();
    if (!started->parsed) RecordRefusal(exchange, 400);
    spdlog::debug("request {} refused: {}", exchange.request_id,
                  absl::StatusCodeToString(status.code()));
    co_await WriteReply(exchange, ErrorReply(status));
    co_return;
  }
  const std::unique_ptr<Generation> generation = *std::move(started->generation);
  generation->SetReadyCallback([signal = signal_] { signal->Notify(); });

  const api::GenerateRequest& request = started->request;
  api::ResponseHead head;
  head.id = fmt::format("{}-{}", chat ? "chatcmpl" : "cmpl", exchange.request_id);
  head.model = context_->session->config().served_model_name;
  head.created_s = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  head.chat = chat;
  head.n = request.n;
  head.include_usage = request.include_usage;
  WatchForDisconnect();
  // Nothing is sent before the engine has taken the request or refused it.
  const std::optional<api::Chunk> first = co_await NextChunk(*generation);
  const auto* refused = first ? std::get_if<api::Summary>(&*first) : nullptr;
  if (refused != nullptr) {
    co_await WriteReply(exchange, ErrorReply(refused->status));
  } else if (first && request.stream) {
    co_await StreamAnswer(exchange, *generation, std::move(head), request.return_progress);
  } else if (first) {
    co_await WholeAnswer(exchange, *generation, std::move(head));
  }
  stream_.socket().cancel();  // ends the watch; no write is under way
}

asio::awaitable<void> HttpConnection::WholeAnswer(Exchange& exchange, Generation& generation,
                                                  api::ResponseHead head) {
  api::BodyWriter writer(std::move(head));
  while (!writer.summary()) {
    const std::optional<api::Chunk> chunk = co_await NextChunk(generation);
    if (!chunk) co_return;  // dropping the generation cancels it
    writer.Add(*chunk);
  }
  const absl::Status& status = writer.summary()->status;
  HttpReply reply;
  if (status.ok()) {
    reply.body = writer.Body();
  } else {
    spdlog::warn("request {} failed: {}", exchange.request_id, status.ToString());
    reply = ErrorReply(status);
  }
  co_await WriteReply(exchange, std::move(reply));
}

asio::awaitable<std::optional<api::Chunk>> HttpConnection::NextChunk(Generation& generation) {
  while (!gone_) {
    std::optional<api::Chunk> chunk = generation.TryNext();
    if (chunk) co_return chunk;
    co_await signal_->Wait(Clock::now() + kLongWait);
  }
  co_return std::nullopt;
}

asio::awaitable<void> HttpConnection::StreamAnswer(Exchange& exchange, Generation& generation,
                                                   api::ResponseHead head, bool return_progress) {
  if (!co_await WriteStreamHeader(exchange)) co_return;
  api::StreamWriter writer(std::move(head));
  ProgressTicker ticker(return_progress);
  const auto ping_interval = context_->options.ping_interval;
  Clock::time_point next_ping = Clock::now() + ping_interval;
  std::string events;
  bool complete = false;
  while (!complete) {
    while (!complete && events.size() < kBatchBytes) {
      const std::optional<api::Chunk> chunk = generation.TryNext();
      if (!chunk) break;
      if (const auto* summary = std::get_if<api::Summary>(&*chunk)) {
        complete = true;
        if (!summary->status.ok()) {
          spdlog::warn("request {} failed: {}", exchange.request_id, summary->status.ToString());
        }
      }
      ticker.OnChunk(*chunk, Clock::now());
      events += writer.Write(*chunk);
    }
    const Clock::time_point now = Clock::now();
    if (events.empty() && now >= ticker.due()) events = writer.Write(ticker.Repeat(now));
    if (events.empty() && now >= next_ping) events = ": ping\n\n";
    if (!events.empty()) {
      if (!co_await WriteStreamData(exchange, events)) co_return;
      next_ping = Clock::now() + ping_interval;
      events.clear();
      continue;
    }
    co_await signal_->Wait(std::min(next_ping, ticker.due()));
    if (gone_) co_return;
  }
  if (exchange.http_version >= 11) co_await WriteAll("0\r\n\r\n");
}

asio::awaitable<bool> HttpConnection::WriteStreamHeader(const Exchange& exchange) {
  context_->metrics->OnHttpResponse(200);
  // X-Accel-Buffering: nginx would collect the events otherwise.
  std::string text = fmt::format(
      "HTTP/1.1 200 OK\r\nServer: longhaul\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
      "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\nX-Request-Id: {}\r\n",
      exchange.request_id);
  text += exchange.keep_alive && !context_->draining ? "Connection: keep-alive\r\n"
                                                     : "Connection: close\r\n";
  if (exchange.http_version >= 11) text += "Transfer-Encoding: chunked\r\n";
  co_return co_await WriteAll(text + "\r\n");
}

asio::awaitable<bool> HttpConnection::WriteStreamData(const Exchange& exchange,
                                                      const std::string& data) {
  if (exchange.http_version < 11) co_return co_await WriteAll(data);
  co_return co_await WriteAll(fmt::format("{:x}\r\n{}\r\n", data.size(), data));
}

}  // namespace longhaul
