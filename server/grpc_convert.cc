#include "server/grpc_convert.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/api/status_map.h"
#include "server/text/detokenizer.h"

namespace longhaul {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;
constexpr size_t kMaxErrorBytes = 8192;

api::Sampling ReadSampling(const v1::Sampling& message) {
  api::Sampling params;
  if (message.has_temperature()) params.temperature = message.temperature();
  if (message.has_top_k()) params.top_k = message.top_k();
  if (message.has_top_p()) params.top_p = message.top_p();
  if (message.has_min_p()) params.min_p = message.min_p();
  if (message.has_repetition_penalty()) params.repetition_penalty = message.repetition_penalty();
  if (message.has_presence_penalty()) params.presence_penalty = message.presence_penalty();
  if (message.has_frequency_penalty()) params.frequency_penalty = message.frequency_penalty();
  params.logit_bias.assign(message.logit_bias().begin(), message.logit_bias().end());
  // A protobuf map has no order; the engine's result must not depend on it.
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  if (message.has_seed()) params.seed = message.seed();
  if (message.has_logprobs()) params.n_logprobs = message.logprobs();
  if (message.has_min_tokens()) params.min_tokens = message.min_tokens();
  return params;
}

absl::Status ReadPrompt(const v1::GenerateRequest& message, api::Prompt& prompt) {
  switch (message.prompt_case()) {
    case v1::GenerateRequest::kText:
      prompt = message.text();
      return absl::OkStatus();
    case v1::GenerateRequest::kTokenIds:
      prompt =
          std::vector<int32_t>(message.token_ids().ids().begin(), message.token_ids().ids().end());
      return absl::OkStatus();
    case v1::GenerateRequest::kMessages:
      prompt = FromProto(message.messages());
      return absl::OkStatus();
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("prompt: missing; set one of text, token_ids, messages");
}

v1::FinishReason WriteFinish(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Progress::Phase WritePhase(Phase phase) {
  switch (phase) {
    case Phase::kQueued:
      return v1::Progress::PHASE_QUEUED;
    case Phase::kPrefill:
      return v1::Progress::PHASE_PREFILL;
    case Phase::kDecode:
      return v1::Progress::PHASE_DECODE;
  }
  return v1::Progress::PHASE_UNSPECIFIED;
}

void WriteLogprob(const api::LogprobEntry& entry, v1::Logprob& message) {
  // protobuf refuses strings that are not UTF-8.
  message.set_token(SanitizeUtf8(entry.token));
  message.set_bytes(entry.bytes);
  message.set_logprob(entry.logprob);
}

}  // namespace

absl::Status CheckRequestId(const std::string& id) {
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (id.size() <= kMaxRequestIdBytes && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "request_id: has {} bytes; use at most {} printable ASCII characters without spaces",
      id.size(), kMaxRequestIdBytes));
}

ChatPrompt FromProto(const v1::Messages& messages) {
  ChatPrompt result;
  result.messages.reserve(size_t(messages.messages_size()));
  for (const v1::Message& message : messages.messages()) {
    result.messages.push_back({message.role(), message.content()});
  }
  return result;
}

absl::StatusOr<api::GenerateRequest> FromProto(const v1::GenerateRequest& message) {
  api::GenerateRequest request;
  LH_RETURN_IF_ERROR(CheckRequestId(message.request_id()));
  LH_RETURN_IF_ERROR(ReadPrompt(message, request.prompt));
  request.request_id = message.request_id();
  request.model = message.model();
  request.sampling = ReadSampling(message.sampling());
  if (message.has_max_tokens()) request.max_tokens = message.max_tokens();
  request.n = message.n() == 0 ? 1 : message.n();
  request.stop.assign(message.stop().begin(), message.stop().end());
  request.include_stop_str_in_output = message.include_stop_in_output();
  request.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  request.ignore_eos = message.ignore_eos();
  if (message.has_add_special_tokens()) request.add_special_tokens = message.add_special_tokens();
  request.echo = message.echo();
  request.stream = true;
  request.include_usage = true;
  request.return_progress = message.return_progress();
  if (message.sparse().has_mode()) request.sparse.mode = message.sparse().mode();
  if (message.sparse().has_alpha()) request.sparse.alpha = message.sparse().alpha();
  request.cache_salt = message.cache_salt();
  request.priority = message.priority();
  if (message.has_prompt_logprobs()) request.n_prompt_logprobs = message.prompt_logprobs();
  if (message.has_timeout_s()) request.timeout_s = message.timeout_s();
  return request;
}

void ToProto(const api::TextDelta& delta, v1::GenerateResponse& response) {
  v1::Delta& message = *response.mutable_delta();
  message.Clear();
  message.set_choice(delta.choice);
  message.set_text(delta.text);
  message.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
  for (const api::TokenLogprobs& logprobs : delta.logprobs) {
    v1::TokenLogprobs& entry = *message.add_logprobs();
    WriteLogprob(logprobs.chosen, *entry.mutable_chosen());
    for (const api::LogprobEntry& top : logprobs.top) WriteLogprob(top, *entry.add_top());
  }
  if (delta.finish) message.set_finish_reason(WriteFinish(*delta.finish));
  message.set_stop_reason(delta.stop_reason);
  if (delta.stop_token) message.set_stop_token_id(*delta.stop_token);
}

void ToProto(const api::PromptLogprobs& logprobs, v1::GenerateResponse& response) {
  v1::PromptLogprobs& message = *response.mutable_prompt_logprobs();
  message.Clear();
  for (const std::vector<api::RankedLogprob>& token : logprobs.tokens) {
    v1::PromptToken& entries = *message.add_tokens();
    for (const api::RankedLogprob& from : token) {
      v1::RankedLogprob& entry = *entries.add_logprobs();
      entry.set_token_id(from.id);
      entry.set_rank(from.rank);
      entry.set_token(SanitizeUtf8(from.token));
      entry.set_logprob(from.logprob);
    }
  }
}

void ToProto(const ProgressEvent& progress, v1::GenerateResponse& response) {
  v1::Progress& message = *response.mutable_progress();
  message.Clear();
  message.set_phase(WritePhase(progress.phase));
  message.set_total_tokens(progress.total_tokens);
  message.set_cached_tokens(progress.cached_tokens);
  message.set_processed_tokens(progress.processed_tokens);
  message.set_time_us(progress.time_us);
  if (progress.eta_us >= 0) message.set_eta_us(progress.eta_us);
  message.set_density(progress.density);
}

void ToProto(const api::Summary& summary, v1::GenerateResponse& response) {
  v1::Summary& message = *response.mutable_summary();
  message.Clear();
  v1::Usage& usage = *message.mutable_usage();
  usage.set_prompt_tokens(summary.usage.prompt_tokens);
  usage.set_cached_tokens(summary.usage.cached_tokens);
  usage.set_completion_tokens(summary.usage.completion_tokens);
  v1::Timings& timings = *message.mutable_timings();
  timings.set_parse_us(summary.timings.parse);
  timings.set_template_us(summary.timings.template_);
  timings.set_tokenize_us(summary.timings.tokenize);
  timings.set_queue_us(summary.timings.queue);
  timings.set_prefill_us(summary.timings.prefill);
  timings.set_ttft_us(summary.timings.ttft);
  timings.set_decode_us(summary.timings.decode);
  v1::SparseReport& sparse = *message.mutable_sparse();
  sparse.set_mode(summary.sparse_mode);
  sparse.set_density(summary.sparse.Density());
  sparse.set_recall_mean(summary.sparse.RecallMean());
  sparse.set_recall_p1(summary.sparse.RecallPercentile(1.0));
  sparse.set_recall_min(double(summary.sparse.recall_min));
  sparse.set_n_audited(summary.sparse.n_recalls);
  sparse.set_n_head_epochs(summary.sparse.n_head_epochs);
  sparse.set_n_streaming(summary.sparse.n_streaming);
  sparse.set_n_dense(summary.sparse.n_dense);
  sparse.set_n_repaired(summary.sparse.n_repaired);
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view text = status.message();
  return grpc::Status(grpc::StatusCode(int(status.code())),
                      std::string(text.data(), std::min(text.size(), kMaxErrorBytes)));
}

grpc::Status ToGrpc(const absl::Status& status, grpc::CallbackServerContext& context) {
  const int retry_after_s = api::RetryAfterSeconds(status);
  if (retry_after_s > 0) context.AddTrailingMetadata("retry-after", std::to_string(retry_after_s));
  return ToGrpc(status);
}

}  // namespace longhaul
