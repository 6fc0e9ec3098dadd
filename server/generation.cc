#include "server/generation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "server/api/status_map.h"

namespace longhaul {
namespace {

constexpr size_t kMaxTokenGaps = 4096;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

int64_t Microseconds(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

}  // namespace

GenerationImpl::GenerationImpl(std::shared_ptr<const SessionShared> shared, GenerationParams params,
                               TokenStream stream, std::unique_ptr<RequestRegistry::Entry> entry)
    : shared_(std::move(shared)),
      params_(std::move(params)),
      stream_(std::move(stream)),
      entry_(std::move(entry)) {
  entry_->OnCancel([this] { stream_.Cancel(); });
  choices_.reserve(params_.n);
  for (int32_t i = 0; i < params_.n; ++i) {
    choices_.emplace_back(shared_->tokenizer.get(), params_);
  }
}

GenerationImpl::~GenerationImpl() {
  api::Summary summary;
  summary.status = absl::CancelledError("the client went away");
  summary.usage.prompt_tokens = params_.prompt_tokens;
  summary.usage.completion_tokens = completion_tokens_;
  summary.timings = FrontTimings(params_.phases);
  summary.sparse_mode = params_.sparse_mode;
  Record(std::move(summary));
}

std::optional<api::Chunk> GenerationImpl::TryNext() {
  while (chunks_.empty()) {
    std::optional<StreamEvent> event = stream_.TryNext();
    if (!event) return std::nullopt;
    OnEvent(*std::move(event));
  }
  api::Chunk chunk = std::move(chunks_.front());
  chunks_.pop_front();
  return chunk;
}

std::optional<api::Chunk> GenerationImpl::Next(std::chrono::microseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  while (true) {
    if (std::optional<api::Chunk> chunk = TryNext()) return chunk;
    const auto left =
        std::chrono::duration_cast<std::chrono::microseconds>(deadline - Clock::now());
    if (left.count() <= 0) return std::nullopt;
    std::optional<StreamEvent> event = stream_.Next(left);
    if (!event) return std::nullopt;
    OnEvent(*std::move(event));
  }
}

void GenerationImpl::SetReadyCallback(std::function<void()> on_ready) {
  stream_.SetReadyCallback(std::move(on_ready));
}

void GenerationImpl::Cancel() { stream_.Cancel(); }

void GenerationImpl::OnEvent(StreamEvent event) {
  if (const auto* accepted = std::get_if<AcceptedEvent>(&event)) {
    accepted_ = true;
    chunks_.emplace_back(*accepted);
    // Nothing is before the first token of the prompt.
    if (params_.n_prompt_logprobs >= 0) chunks_.emplace_back(api::PromptLogprobs{.tokens = {{}}});
  } else if (const auto* logprobs = std::get_if<PromptLogprobsEvent>(&event)) {
    OnPromptLogprobs(*logprobs);
  } else if (auto* progress = std::get_if<ProgressEvent>(&event)) {
    chunks_.emplace_back(*progress);
  } else if (const auto* token = std::get_if<TokenEvent>(&event)) {
    OnToken(*token);
  } else {
    OnDone(std::get<DoneEvent>(event));
  }
}

void GenerationImpl::OnPromptLogprobs(const PromptLogprobsEvent& event) {
  const size_t n_tokens = event.tokens.size();
  const auto top_of = [&event](size_t i) {
    return std::span(event.top).subspan(i * event.n_top, event.n_top);
  };
  if (params_.n_prompt_logprobs >= 0) {
    const Tokenizer& tokenizer = *shared_->tokenizer;
    api::PromptLogprobs chunk;
    chunk.tokens.resize(n_tokens);
    for (size_t i = 0; i < n_tokens; ++i) {
      const TokenLogprob& own = event.tokens[i];
      std::vector<api::RankedLogprob>& entries = chunk.tokens[i];
      entries.push_back({own.token, event.ranks[i], tokenizer.TokenText(own.token), own.logprob});
      int32_t rank = 0;
      for (const TokenLogprob& top : top_of(i).first(params_.n_prompt_logprobs)) {
        ++rank;
        if (top.token == own.token) continue;
        entries.push_back({top.token, rank, tokenizer.TokenText(top.token), top.logprob});
      }
    }
    chunks_.emplace_back(std::move(chunk));
  }
  if (!params_.echo_logprobs) return;
  api::TextDelta delta;
  for (size_t i = 0; i < n_tokens; ++i) {
    const TokenLogprob& own = event.tokens[i];
    delta.token_ids.push_back(own.token);
    delta.logprobs.push_back(MakeLogprobs(own.token, own.logprob, top_of(i)));
  }
  delta.logprobs_begin_bytes =
      echoed_bytes_ +
      static_cast<int64_t>(shared_->tokenizer->TokenBytes(params_.first_prompt_token).size());
  for (const TokenLogprob& own : event.tokens) {
    echoed_bytes_ += static_cast<int64_t>(shared_->tokenizer->TokenBytes(own.token).size());
  }
  for (int32_t i = 0; i < params_.n; ++i) {
    api::TextDelta copy = delta;
    copy.choice = i;
    BeginChoice(choices_[i], &copy);
    chunks_.emplace_back(std::move(copy));
  }
}

void GenerationImpl::BeginChoice(Choice& choice, api::TextDelta* delta) {
  if (std::exchange(choice.started, true)) return;
  delta->text.insert(0, params_.echo);
  if (!params_.echo_logprobs) return;
  delta->token_ids.insert(delta->token_ids.begin(), params_.first_prompt_token);
  delta->logprobs.insert(delta->logprobs.begin(),
                         MakeLogprobs(params_.first_prompt_token, NAN, {}));
  delta->logprobs_begin_bytes = 0;
}

StopStrings::Result GenerationImpl::PushText(Choice& choice, const TokenEvent& event,
                                             bool is_end_token) {
  std::string text;
  if (event.token >= 0 && !is_end_token) {
    PendingToken& pending = choice.pending.emplace_back();
    pending.id = event.token;
    pending.begin_bytes = choice.pushed_bytes;
    if (params_.n_logprobs >= 0) {
      pending.logprobs = MakeLogprobs(event.token, event.logprob, event.top_logprobs);
    }
    text = choice.detokenizer.Push(event.token);
  }
  if (event.finish) text += choice.detokenizer.Finish();
  choice.pushed_bytes += static_cast<int64_t>(text.size());
  if (choice.n_tokens > params_.min_tokens) return choice.stops.Push(text);
  StopStrings::Result shown;
  shown.text = std::move(text);
  return shown;
}

void GenerationImpl::OnToken(const TokenEvent& event) {
  Choice& choice = choices_[event.choice];
  if (choice.finished) return;  // it ended by a stop string; the engine runs on for the others
  if (event.token >= 0) CountToken(choice);
  const bool is_end_token = event.token >= 0 && event.finish == FinishReason::kStop;

  api::TextDelta delta;
  delta.choice = event.choice;
  StopStrings::Result result = PushText(choice, event, is_end_token);
  delta.text = std::move(result.text);
  if (result.stopped) {
    delta.finish = FinishReason::kStop;
    delta.stop_reason = std::move(result.matched);
  } else if (event.finish) {
    delta.text += choice.stops.Finish();
    delta.finish = event.finish;
    const std::vector<int32_t>& asked = params_.requested_stop_ids;
    if (is_end_token && std::find(asked.begin(), asked.end(), event.token) != asked.end()) {
      delta.stop_token = event.token;
    }
  }
  choice.shown_bytes += static_cast<int64_t>(delta.text.size());
  if (delta.text.empty() && !delta.finish) return;
  TakeShownTokens(choice, delta.finish.has_value() && !result.stopped, &delta);
  BeginChoice(choice, &delta);
  if (delta.finish) {
    choice.finished = true;
    reasons_.push_back(*delta.finish);
    if (++n_finished_ == params_.n && result.stopped) {
      stopped_early_ = true;
      stream_.Cancel();
    }
  }
  chunks_.emplace_back(std::move(delta));
}

void GenerationImpl::CountToken(Choice& choice) {
  const Clock::time_point now = Clock::now();
  if (!first_token_) first_token_ = now;
  if (choice.last_token && token_gaps_s_.size() < kMaxTokenGaps) {
    token_gaps_s_.push_back(Seconds(now - *choice.last_token));
  }
  choice.last_token = now;
  ++choice.n_tokens;
  ++completion_tokens_;
}

void GenerationImpl::TakeShownTokens(Choice& choice, bool all, api::TextDelta* delta) {
  size_t n_shown = 0;
  if (!choice.pending.empty()) {
    delta->logprobs_begin_bytes =
        static_cast<int64_t>(params_.echo.size()) + choice.pending.front().begin_bytes;
  }
  while (n_shown < choice.pending.size() &&
         (all || choice.pending[n_shown].begin_bytes < choice.shown_bytes)) {
    PendingToken& token = choice.pending[n_shown++];
    delta->token_ids.push_back(token.id);
    if (token.logprobs) delta->logprobs.push_back(*std::move(token.logprobs));
  }
  choice.pending.erase(choice.pending.begin(), choice.pending.begin() + n_shown);
}

api::TokenLogprobs GenerationImpl::MakeLogprobs(int32_t token, float logprob,
                                                std::span<const TokenLogprob> top) const {
  const Tokenizer& tokenizer = *shared_->tokenizer;
  const auto entry = [&tokenizer](int32_t id, float value) {
    return api::LogprobEntry{tokenizer.TokenText(id), std::string(tokenizer.TokenBytes(id)), value};
  };
  api::TokenLogprobs logprobs;
  logprobs.chosen = entry(token, logprob);
  const auto n_top = std::min(top.size(), static_cast<size_t>(params_.n_logprobs));
  for (const TokenLogprob& likely : top.first(n_top)) {
    logprobs.top.push_back(entry(likely.token, likely.logprob));
  }
  return logprobs;
}

void GenerationImpl::OnDone(const DoneEvent& event) {
  entry_.reset();
  api::Summary summary;
  summary.status =
      stopped_early_ && absl::IsCancelled(event.status) ? absl::OkStatus() : event.status;
  if (!accepted_) summary.status = api::AsRefusal(summary.status);
  summary.usage.prompt_tokens = event.prompt_tokens;
  summary.usage.cached_tokens = event.cached_tokens;
  summary.usage.completion_tokens = completion_tokens_;
  api::Timings& timings = summary.timings;
  timings = FrontTimings(params_.phases);
  timings.queue = event.queue_us;
  timings.prefill = event.prefill_us;
  timings.decode = event.decode_us;
  timings.ttft = Microseconds(first_token_.value_or(Clock::now()) - params_.phases.accepted);
  summary.sparse = event.sparse;
  summary.sparse_mode = params_.sparse_mode;
  Record(summary);
  chunks_.emplace_back(std::move(summary));
}

void GenerationImpl::Record(api::Summary summary) {
  if (std::exchange(recorded_, true) || !shared_->config.on_finished) return;
  RequestRecord record;
  record.request_id = params_.request_id;
  record.chat = params_.chat;
  record.n = params_.n;
  record.refused = !accepted_ && !summary.status.ok() && !absl::IsCancelled(summary.status);
  record.summary = std::move(summary);
  record.finished = std::move(reasons_);
  record.e2e_s = Seconds(Clock::now() - params_.phases.accepted);
  record.token_gaps_s = std::move(token_gaps_s_);
  shared_->config.on_finished(record);
}

}  // namespace longhaul
