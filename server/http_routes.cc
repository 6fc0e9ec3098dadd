#include "server/http_routes.h"

#include <fmt/format.h>
#include <openssl/rand.h>

#include <array>
#include <charconv>
#include <vector>

#include "server/api/openai_request.h"
#include "server/api/openai_response.h"

namespace longhaul {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;

struct RouteSpec {
  std::string_view path;
  Route route;
  bool is_post;
  bool is_public;
};

constexpr RouteSpec kRoutes[] = {
    {"/v1/chat/completions", Route::kChatCompletions, true, false},
    {"/v1/completions", Route::kCompletions, true, false},
    {"/tokenize", Route::kTokenize, true, false},
    {"/detokenize", Route::kDetokenize, true, false},
    {"/v1/models", Route::kModels, false, false},
    {"/health", Route::kHealth, false, true},
    {"/ready", Route::kReady, false, true},
    {"/version", Route::kVersion, false, false},
    {"/metrics", Route::kMetrics, false, false},
};
constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr std::string_view kCancelPrefix = "/v1/requests/";
constexpr std::string_view kCancelSuffix = "/cancel";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

absl::Status CheckModel(const Session& session, const std::string& model) {
  if (model.empty() || model == session.config().served_model_name) return absl::OkStatus();
  return api::WithParam(absl::NotFoundError(fmt::format("The model '{}' does not exist.", model)),
                        "model");
}

}  // namespace

RouteMatch MatchRoute(std::string_view method, std::string_view target) {
  std::string_view path = target.substr(0, target.find('?'));
  const auto allows = [method](bool is_post) {
    return is_post ? method == "POST" : method == "GET" || method == "HEAD";
  };
  RouteMatch match;
  for (const RouteSpec& spec : kRoutes) {
    if (path != spec.path) continue;
    match.route = spec.route;
    match.is_public = spec.is_public;
    match.method_allowed = allows(spec.is_post);
    match.allow = spec.is_post ? "POST" : "GET, HEAD";
    return match;
  }
  if (path.size() > kModelPrefix.size() && path.starts_with(kModelPrefix)) {
    match.route = Route::kModel;
    match.method_allowed = allows(false);
    match.allow = "GET, HEAD";
    match.argument = PercentDecode(path.substr(kModelPrefix.size()));
  }
  if (path.size() > kCancelPrefix.size() + kCancelSuffix.size() &&
      path.starts_with(kCancelPrefix) && path.ends_with(kCancelSuffix)) {
    match.route = Route::kCancel;
    match.method_allowed = allows(true);
    match.allow = "POST";
    path.remove_prefix(kCancelPrefix.size());
    path.remove_suffix(kCancelSuffix.size());
    match.argument = PercentDecode(path);
  }
  return match;
}

HttpReply ErrorReply(const api::HttpError& error) {
  HttpReply reply;
  reply.status = error.http_status;
  reply.body = api::ErrorBody(error);
  reply.retry_after_s = error.retry_after_s;
  return reply;
}

HttpReply ErrorReply(const absl::Status& status) { return ErrorReply(api::ToHttpError(status)); }

HttpReply AnswerCancel(Session& session, const std::string& caller, const std::string& id) {
  int n_requests = session.Cancel(caller, id);
  for (const std::string_view prefix : {"cmpl-", "chatcmpl-"}) {
    if (n_requests > 0 || !std::string_view(id).starts_with(prefix)) continue;
    n_requests = session.Cancel(caller, id.substr(prefix.size()));
  }
  if (n_requests == 0) {
    api::HttpError error;
    error.http_status = 404;
    error.type = "invalid_request_error";
    error.code = "request_not_found";
    error.message = fmt::format("No request with the id '{}' is under way.", id);
    return ErrorReply(error);
  }
  HttpReply reply;
  reply.body = api::CancelBody(id);
  return reply;
}

absl::StatusOr<std::string> AnswerTokenize(const Session& session, std::string_view body,
                                           int64_t max_model_len) {
  LH_ASSIGN_OR_RETURN(const api::TokenizeRequest request, api::ParseTokenize(body));
  LH_RETURN_IF_ERROR(CheckModel(session, request.model));
  LH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                      session.Tokenize(request.prompt, request.add_special_tokens));
  if (!request.return_token_strs) return api::TokenizeBody(ids, max_model_len, nullptr);
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const int32_t id : ids) texts.push_back(session.tokenizer().TokenText(id));
  return api::TokenizeBody(ids, max_model_len, &texts);
}

absl::StatusOr<std::string> AnswerDetokenize(const Session& session, std::string_view body) {
  LH_ASSIGN_OR_RETURN(const api::DetokenizeRequest request, api::ParseDetokenize(body));
  LH_RETURN_IF_ERROR(CheckModel(session, request.model));
  const int32_t vocab_size = session.tokenizer().vocab_size();
  for (const int32_t id : request.tokens) {
    if (id >= vocab_size) {
      return api::InvalidParam("tokens",
                               fmt::format("'tokens' holds id {}; the ids of this model are "
                                           "from 0 to {}",
                                           id, vocab_size - 1));
    }
  }
  return api::DetokenizeBody(session.tokenizer().Decode(request.tokens));
}

bool IsValidRequestId(std::string_view request_id) {
  if (request_id.empty() || request_id.size() > kMaxRequestIdBytes) return false;
  for (const char c : request_id) {
    if (c <= ' ' || c > '~') return false;
  }
  return true;
}

absl::StatusOr<std::optional<double>> ParseTimeout(std::string_view value) {
  if (value.empty()) return std::nullopt;
  double seconds = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (error != std::errc() || end != value.data() + value.size() || !(seconds > 0)) {
    return api::InvalidParam("timeout", fmt::format("the header X-Request-Timeout must be a number "
                                                    "of seconds above 0, got '{}'",
                                                    value.substr(0, 64)));
  }
  return seconds;
}

std::string MakeRequestId() {
  std::array<unsigned char, 16> bytes{};
  RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
  std::string id;
  for (const unsigned char byte : bytes) id += fmt::format("{:02x}", byte);
  return id;
}

}  // namespace longhaul
