// The generation requests of an HttpConnection: start on a worker, then stream or collect.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>

#include "server/api/openai_request.h"
#include "server/api/openai_response.h"
#include "server/http_connection.h"

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

// Parse, template, tokenize, submit: everything that takes time and needs no network.
void StartGeneration(Session& session, bool chat, const std::string& request_id, std::string body,
                     api::FrontPhases phases, Started* started) {
  const Clock::time_point begin = Clock::now();
  absl::StatusOr<api::GenerateRequest> request =
      chat ? api::ParseChatCompletion(body) : api::ParseCompletion(body);
  if (!request.ok()) {
    started->generation = request.status();
    return;
  }
  started->parsed = true;
  std::string().swap(body);
  request->request_id = request_id;
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
  auto body = std::make_shared<std::string>(std::move(exchange.body));
  std::optional<HttpReply> refusal;
  std::function<void()> work = [started, body, chat, session = context_->session,
                                id = exchange.request_id, phases = exchange.phases] {
    StartGeneration(*session, chat, id, std::move(*body), phases, started.get());
  };
  const bool done = co_await RunOnWorker(std::move(work), &refusal);
  if (refusal) {
    RecordRefusal(exchange, refusal->status);
    co_await WriteReply(exchange, *std::move(refusal));
    co_return;
  }
  if (!done) co_return;  // the client went away; `started` dies with the worker's closure
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
  if (request.stream) {
    co_await StreamAnswer(exchange, *generation, std::move(head));
  } else {
    co_await WholeAnswer(exchange, *generation, std::move(head));
  }
  stream_.socket().cancel();  // ends the watch; no write is under way
}

asio::awaitable<void> HttpConnection::WholeAnswer(Exchange& exchange, Generation& generation,
                                                  api::ResponseHead head) {
  api::BodyWriter writer(std::move(head));
  while (!writer.summary()) {
    while (std::optional<api::Chunk> chunk = generation.TryNext()) writer.Add(*chunk);
    if (writer.summary()) break;
    co_await signal_->Wait(Clock::now() + kLongWait);
    if (gone_) co_return;  // dropping the generation cancels it
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

asio::awaitable<void> HttpConnection::StreamAnswer(Exchange& exchange, Generation& generation,
                                                   api::ResponseHead head) {
  // Start succeeded, so everything that can be refused was refused: the 200 may go out now.
  if (!co_await WriteStreamHeader(exchange)) co_return;
  api::StreamWriter writer(std::move(head));
  const auto ping_interval = context_->options.ping_interval;
  Clock::time_point next_ping = Clock::now() + ping_interval;
  bool complete = false;
  while (!complete) {
    std::string events;
    while (!complete && events.size() < kBatchBytes) {
      const std::optional<api::Chunk> chunk = generation.TryNext();
      if (!chunk) break;
      if (const auto* summary = std::get_if<api::Summary>(&*chunk)) {
        complete = true;
        if (!summary->status.ok()) {
          spdlog::warn("request {} failed: {}", exchange.request_id, summary->status.ToString());
        }
      }
      events += writer.Write(*chunk);
    }
    if (!events.empty()) {
      if (!co_await WriteStreamData(exchange, events)) co_return;
      next_ping = Clock::now() + ping_interval;
      continue;
    }
    const bool notified = co_await signal_->Wait(next_ping);
    if (gone_) co_return;
    if (!notified && Clock::now() >= next_ping) {
      if (!co_await WriteStreamData(exchange, ": ping\n\n")) co_return;
      next_ping = Clock::now() + ping_interval;
    }
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
