#include "engine/sequence.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fmt/format.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/draw_token.h"

namespace longhaul {
namespace {

int64_t ToUs(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

}  // namespace

int64_t PagesPerChoice(int64_t prompt_tokens, int64_t max_tokens) {
  const int64_t n_tokens = prompt_tokens + std::max<int64_t>(0, max_tokens - 1);
  return CeilDiv(n_tokens, kPageTokens) - prompt_tokens / kPageTokens;
}

int64_t PagesNeeded(int64_t prompt_tokens, int64_t max_tokens, int64_t n_choices) {
  return prompt_tokens / kPageTokens + n_choices * PagesPerChoice(prompt_tokens, max_tokens);
}

bool IsDensePolicy(const SparseOptions& options) {
  if (options.mode == SparseMode::kDense) return true;
  return UsesAlpha(options.mode) && options.alpha >= 1;
}

absl::Status CheckPromptLogprobs(const PromptLogprobsEvent& logprobs) {
  for (const TokenLogprob& token : logprobs.tokens) {
    if (std::isnan(token.logprob)) {
      return absl::InternalError(
          fmt::format("the model returned NaN or infinite logits for prompt token {}; the weights "
                      "or the KV storage type may be too coarse for this prompt",
                      logprobs.begin + (&token - logprobs.tokens.data())));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckToken(int32_t token, int32_t vocab_size) {
  if (token == kBrokenLogits) {
    return absl::InternalError(
        "the model returned NaN or infinite logits, or none that is finite; the weights or the KV "
        "storage type may be too coarse for this prompt");
  }
  if (token < 0 || token >= vocab_size) {
    return absl::InternalError(
        fmt::format("the executor drew token {} of a vocabulary of {}", token, vocab_size));
  }
  return absl::OkStatus();
}

absl::Status CheckLogits(std::span<const float> logits, int32_t vocab_size) {
  if (static_cast<int64_t>(logits.size()) != vocab_size) {
    return absl::InternalError(
        fmt::format("the model returned {} logits, expected {}", logits.size(), vocab_size));
  }
  int64_t n_bad = 0;
  int64_t n_finite = 0;
  for (float logit : logits) {
    n_bad += !(logit < INFINITY);  // NaN too
    n_finite += std::isfinite(logit) ? 1 : 0;
  }
  if (n_bad > 0 || n_finite == 0) {
    return absl::InternalError(
        fmt::format("the model returned {} NaN or infinite of {} logits; the weights or the KV "
                    "storage type may be too coarse for this prompt",
                    vocab_size - n_finite, vocab_size));
  }
  return absl::OkStatus();
}

Sequence::Sequence(Request req, const SparseOptions& default_sparse,
                   std::shared_ptr<EventSink> event_sink, const ModelShape& model_shape,
                   int64_t epoch_tokens, int64_t now_us)
    : request(std::move(req)),
      sparse(request.sparse.value_or(default_sparse)),
      dense(IsDensePolicy(sparse)),
      sink(std::move(event_sink)),
      shape(model_shape),
      cursor(prompt_tokens(), epoch_tokens, shape.n_layers),
      density(sparse),
      turn_priority(request.priority) {
  times.accepted_us = ToUs(request.accepted);
  times.submitted_us = now_us;
  if (request.deadline.has_value()) times.deadline_us = ToUs(*request.deadline);
  ForgetMatch();
}

void Sequence::ForgetMatch() {
  lease.reset();
  cached_tokens = 0;
  cursor.Restart();
  sparse_state.alpha.assign(int64_t{shape.n_layers} * shape.n_heads, sparse.alpha);
}

PrefillWork Sequence::CellsWork(const PrefillCells& cells) const {
  if (cells.n_layers() == 0) return {};
  PrefillWork layer =
      CostModel::EpochWork(sparse, density, cells.begin, cells.end, prompt_tokens());
  if (!ReadsAllRows()) {
    if (cells.layer_end < shape.n_layers) return layer * cells.n_layers();
    PrefillWork work = layer * (cells.n_layers() - 1);
    work += CostModel::LastLayerWork(shape, cells.begin, cells.end, prompt_tokens());
    return work;
  }
  // Logits of every row: a share of all products with weights, spread evenly over the layers.
  if (shape.n_parameters > 0) {
    const double n_weights = double(shape.vocab_size) * shape.hidden_size;
    layer.tokens *= 1 + n_weights / static_cast<double>(shape.n_parameters);
  }
  return layer * cells.n_layers();
}

MatchRule Sequence::CacheRule(int64_t epoch_tokens) const {
  if (request.n_prompt_logprobs >= 0) return {.limit_tokens = 0};
  if (dense) return {.limit_tokens = prompt_tokens() - 1};
  return {.limit_tokens = prompt_tokens() - std::max<int64_t>(1, sparse.dense_tail_tokens),
          .grain_tokens = epoch_tokens,
          .needs_state = true};
}

int64_t Sequence::PublishableTokens(int64_t computed_end, int64_t epoch_tokens) const {
  if (dense) return computed_end / kPageTokens * kPageTokens;
  const int64_t limit = std::min(computed_end, prompt_tokens() - sparse.dense_tail_tokens);
  return std::max<int64_t>(0, limit) / epoch_tokens * epoch_tokens;
}

void Sequence::StartChoices(std::span<const float> logits, int64_t* next_seq_id, int64_t now_us) {
  times.first_token_us = now_us;
  choices.reserve(request.n);
  for (int32_t i = 0; i < request.n; ++i) {
    choices.emplace_back((*next_seq_id)++, i,
                         Sampler(request.sampling, request.prompt, i, shape.vocab_size));
    if (request.max_tokens > 0) {
      AcceptLogits(choices.back(), logits);
    } else {
      choices.back().finish = FinishReason::kLength;
      TokenEvent event;
      event.choice = i;
      event.finish = FinishReason::kLength;
      sink->Emit(std::move(event));
    }
  }
}

std::optional<TokenDraw> Sequence::NextDraw(const Choice& choice) const {
  if (!choice.sampler.is_plain() || !Forbidden(choice).empty()) return std::nullopt;
  return choice.sampler.NextDraw();
}

std::span<const int32_t> Sequence::Forbidden(const Choice& choice) const {
  const auto n_output = static_cast<int64_t>(choice.output.size());
  if (n_output < request.sampling.min_tokens) return request.stop_token_ids;
  return {};
}

void Sequence::AcceptLogits(Choice& choice, std::span<const float> logits) {
  EmitToken(choice, choice.sampler.Sample(logits, Forbidden(choice)));
}

void Sequence::AcceptDrawn(Choice& choice, int32_t token) {
  choice.sampler.Accept(token);
  EmitToken(choice, {.token = token, .top_logprobs = {}});
}

void Sequence::EmitToken(Choice& choice, Sampled sampled) {
  choice.output.push_back(sampled.token);
  TokenEvent event;
  event.choice = choice.index;
  event.token = sampled.token;
  event.logprob = sampled.logprob;
  event.top_logprobs = std::move(sampled.top_logprobs);
  const std::vector<int32_t>& stops = request.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), sampled.token) != stops.end()) {
    event.finish = FinishReason::kStop;
  } else if (static_cast<int64_t>(choice.output.size()) >= request.max_tokens) {
    event.finish = FinishReason::kLength;
  }
  choice.finish = event.finish;
  sink->Emit(std::move(event));
}

bool Sequence::AllFinished() const {
  return std::all_of(choices.begin(), choices.end(),
                     [](const Choice& choice) { return choice.finished(); });
}

ProgressEvent Sequence::Progress(Phase phase, int64_t now_us, int64_t eta_us) const {
  return {.phase = phase,
          .total_tokens = prompt_tokens(),
          .cached_tokens = cached_tokens,
          .processed_tokens = cursor.processed_tokens(),
          .time_us = std::max<int64_t>(0, now_us - times.accepted_us),
          .eta_us = eta_us,
          .density = report.Density()};
}

void Sequence::EmitDone(const absl::Status& status, int64_t now_us) {
  DoneEvent done;
  done.status = status;
  done.prompt_tokens = prompt_tokens();
  done.cached_tokens = cached_tokens;
  for (const Choice& choice : choices) {
    done.output_tokens += static_cast<int64_t>(choice.output.size());
  }
  const int64_t slice_us = times.first_slice_us < 0 ? now_us : times.first_slice_us;
  const int64_t token_us = times.first_token_us < 0 ? now_us : times.first_token_us;
  done.queue_us = slice_us - times.submitted_us;
  done.prefill_us = token_us - slice_us;
  done.decode_us = now_us - token_us;
  done.sparse = std::move(report);
  sink->Emit(std::move(done));
}

}  // namespace longhaul
