#include "server/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "kernels/base/checked_math.h"
#include "kernels/kv_layout.h"
#include "server/api/status_map.h"
#include "server/generation.h"
#include "server/generation_config.h"
#include "server/text/chat_template.h"
#include "server/validate.h"

namespace longhaul {
namespace {

constexpr int64_t kDefaultCompletionTokens = 16;  // OpenAI's
// The answer is written on a network thread, which must not be busy for long.
constexpr size_t kMaxEchoBytes = 1 << 20;

int64_t MicrosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

std::optional<Clock::time_point> Deadline(const api::GenerateRequest& request,
                                          const api::FrontPhases& phases) {
  if (!request.timeout_s) return std::nullopt;
  return phases.accepted + std::chrono::duration_cast<Clock::duration>(
                               std::chrono::duration<double>(*request.timeout_s));
}

// Normalization to NFC may shorten text, at most to a third (Hangul), before it is tokenized.
constexpr int64_t kMaxNormalizedShrink = 3;

int64_t LongestTokenBytes(const Tokenizer& tokenizer) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max({longest, tokenizer.TokenBytes(id).size(), tokenizer.TokenText(id).size()});
  }
  return static_cast<int64_t>(longest);
}

class SessionImpl final : public Session {
 public:
  SessionImpl(const SessionConfig& config, std::unique_ptr<Tokenizer> tokenizer,
              std::unique_ptr<const ChatTemplate> chat, std::unique_ptr<Engine> engine)
      : chat_(std::move(chat)), engine_(std::move(engine)) {
    auto shared = std::make_shared<SessionShared>();
    shared->config = config;
    shared->tokenizer = std::move(tokenizer);
    longest_token_bytes_ = LongestTokenBytes(*shared->tokenizer);
    shared_ = std::move(shared);
  }

  absl::StatusOr<std::unique_ptr<Generation>> Start(const api::GenerateRequest& request,
                                                    const api::FrontPhases& phases) override;
  int Cancel(const std::string& caller, const std::string& request_id) override {
    return shared_->registry->Cancel(caller, request_id);
  }
  absl::StatusOr<std::vector<int32_t>> Tokenize(const api::Prompt& prompt,
                                                bool add_special_tokens) const override;

  const Tokenizer& tokenizer() const override { return *shared_->tokenizer; }
  Engine& engine() override { return *engine_; }
  const SessionConfig& config() const override { return shared_->config; }
  std::string chat_form() const override { return chat_->source(); }

 private:
  // Start, with *phases filled as far as it came.
  absl::StatusOr<std::unique_ptr<Generation>> StartTimed(const api::GenerateRequest& request,
                                                         api::FrontPhases* phases);

  int32_t vocab_size() const { return engine_->shape().vocab_size; }
  absl::Status CheckModel(const std::string& model) const;
  // All that can be refused without looking at the prompt.
  absl::Status CheckBeforePrompt(const api::GenerateRequest& request,
                                 std::optional<Clock::time_point> deadline) const;
  // Refuses by size alone what cannot fit, before any work.
  absl::Status CheckPromptBytes(int64_t n_bytes, const char* param) const;
  absl::StatusOr<int64_t> ResolveMaxTokens(const api::GenerateRequest& request,
                                           int64_t n_prompt_tokens) const;
  // How many likeliest tokens the engine shall find for each prompt token; -1 = no logprobs.
  absl::StatusOr<int32_t> ResolvePromptLogprobs(const api::GenerateRequest& request,
                                                int64_t n_prompt_tokens) const;
  std::vector<int32_t> StopTokens(const api::GenerateRequest& request, bool chat) const;
  std::string CacheSalt(const api::GenerateRequest& request) const;

  const std::unique_ptr<const ChatTemplate> chat_;
  std::shared_ptr<const SessionShared> shared_;
  int64_t longest_token_bytes_ = 1;
  const std::unique_ptr<Engine> engine_;
};

absl::Status SessionImpl::CheckModel(const std::string& model) const {
  const std::string& served = config().served_model_name;
  if (model.empty() || model == served) return absl::OkStatus();
  return api::WithParam(
      absl::NotFoundError(
          fmt::format("The model '{}' does not exist. This server serves '{}'.", model, served)),
      "model");
}

absl::Status SessionImpl::CheckBeforePrompt(const api::GenerateRequest& request,
                                            std::optional<Clock::time_point> deadline) const {
  LH_RETURN_IF_ERROR(CheckModel(request.model));
  LH_RETURN_IF_ERROR(ValidateRequest(request, config(), vocab_size()));
  LH_RETURN_IF_ERROR(engine_->CheckQueue());
  if (!deadline || Clock::now() < *deadline) return absl::OkStatus();
  return absl::DeadlineExceededError(fmt::format(
      "the timeout of {} s passed before the prompt was tokenized", *request.timeout_s));
}

absl::Status SessionImpl::CheckPromptBytes(int64_t n_bytes, const char* param) const {
  const int64_t n_tokens_at_least = n_bytes / (longest_token_bytes_ * kMaxNormalizedShrink);
  const int64_t max_model_len = engine_->max_model_len();
  if (n_tokens_at_least < max_model_len) return absl::OkStatus();
  return api::WithParam(
      absl::OutOfRangeError(fmt::format(
          "This model's maximum context length is {} tokens. The prompt has {} bytes, which is at "
          "least {} tokens. Please shorten the prompt.",
          max_model_len, n_bytes, n_tokens_at_least)),
      param);
}

absl::StatusOr<std::vector<int32_t>> SessionImpl::Tokenize(const api::Prompt& prompt,
                                                           bool add_special_tokens) const {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
    if (ids->empty()) return api::InvalidParam("prompt", "'prompt' must not be empty");
    LH_RETURN_IF_ERROR(ValidateIds(*ids, vocab_size(), "prompt"));
    return *ids;
  }
  if (const auto* chat = std::get_if<ChatPrompt>(&prompt)) {
    const auto text = chat_->Render(*chat, std::time(nullptr));
    if (!text.ok()) return api::WithParam(text.status(), "messages");
    LH_RETURN_IF_ERROR(CheckPromptBytes(static_cast<int64_t>(text->size()), "messages"));
    // The template writes the beginning of sequence itself.
    auto ids = tokenizer().Encode(*text, /*add_bos=*/false, SpecialTokens::kParse);
    if (!ids.ok()) return api::WithParam(ids.status(), "messages");
    if (ids->empty()) return api::InvalidParam("messages", "'messages' render to an empty prompt");
    return ids;
  }
  const std::string& text = std::get<std::string>(prompt);
  if (text.empty()) return api::InvalidParam("prompt", "'prompt' must not be empty");
  LH_RETURN_IF_ERROR(CheckPromptBytes(static_cast<int64_t>(text.size()), "prompt"));
  auto ids = tokenizer().Encode(text, add_special_tokens, SpecialTokens::kParse);
  if (!ids.ok()) return api::WithParam(ids.status(), "prompt");
  return ids;
}

absl::StatusOr<int64_t> SessionImpl::ResolveMaxTokens(const api::GenerateRequest& request,
                                                      int64_t n_prompt_tokens) const {
  const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
  const int64_t max_model_len = engine_->max_model_len();
  const int64_t room = max_model_len - n_prompt_tokens;
  const char* where = chat ? "messages" : "prompt";
  const int64_t asked = request.max_tokens.value_or(1);
  if (asked > room) {
    return api::WithParam(
        absl::OutOfRangeError(fmt::format(
            "This model's maximum context length is {} tokens. However, you requested {} tokens in "
            "the {} and {} in the completion. Please reduce one of them.",
            max_model_len, n_prompt_tokens, where, asked)),
        where);
  }
  if (request.max_tokens) return asked;
  if (!chat) return std::min(kDefaultCompletionTokens, room);
  // The engine reserves pages for every token that may come: stay inside the pool. Each choice has
  // a page of its own where the prompt ends.
  const int64_t pool_tokens = engine_->Stats().n_pages_total * kPageTokens;
  const int64_t pool_room =
      (pool_tokens - RoundUp(n_prompt_tokens, kPageTokens)) / request.n - kPageTokens;
  const int64_t wanted = config().defaults.max_tokens.value_or(config().default_max_tokens);
  return std::max<int64_t>(1, std::min({room, pool_room, wanted}));
}

absl::StatusOr<int32_t> SessionImpl::ResolvePromptLogprobs(const api::GenerateRequest& request,
                                                           int64_t n_prompt_tokens) const {
  const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
  const int64_t n_copies = chat ? 1 : request.n;
  const int32_t n_echoed = request.echo ? request.sampling.n_logprobs : -1;
  LH_RETURN_IF_ERROR(
      ValidatePromptLogprobs(n_prompt_tokens, n_echoed, n_copies, config(), "logprobs"));
  LH_RETURN_IF_ERROR(ValidatePromptLogprobs(n_prompt_tokens, request.n_prompt_logprobs, n_copies,
                                            config(), "prompt_logprobs"));
  return std::max(n_echoed, request.n_prompt_logprobs);
}

std::vector<int32_t> SessionImpl::StopTokens(const api::GenerateRequest& request, bool chat) const {
  std::vector<int32_t> ids = request.stop_token_ids;
  if (request.ignore_eos) return ids;
  const std::vector<int32_t>& eos = tokenizer().eos_ids();
  ids.insert(ids.end(), eos.begin(), eos.end());
  if (chat) {  // the mark that ends a turn, where the model's files do not name it
    const std::vector<int32_t>& end_of_turn = chat_->end_of_turn_ids();
    ids.insert(ids.end(), end_of_turn.begin(), end_of_turn.end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// The namespace of the prefix cache. A caller is a digest of fixed length, so no salt of one can
// name the namespace of another.
std::string SessionImpl::CacheSalt(const api::GenerateRequest& request) const {
  if (!config().prefix_cache_per_key || request.caller.empty()) return request.cache_salt;
  return request.caller + "/" + request.cache_salt;
}

absl::StatusOr<std::unique_ptr<Generation>> SessionImpl::Start(
    const api::GenerateRequest& request, const api::FrontPhases& front_phases) {
  api::FrontPhases phases = front_phases;
  if (phases.accepted == Clock::time_point()) phases.accepted = Clock::now();
  auto generation = StartTimed(request, &phases);
  if (!generation.ok() && config().on_finished) {
    const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
    RequestRecord record = RefusalRecord(request.request_id, chat, phases, generation.status());
    record.n = request.n;
    config().on_finished(record);
  }
  return generation;
}

absl::StatusOr<std::unique_ptr<Generation>> SessionImpl::StartTimed(
    const api::GenerateRequest& request, api::FrontPhases* phases) {
  const std::optional<Clock::time_point> deadline = Deadline(request, *phases);
  LH_RETURN_IF_ERROR(CheckBeforePrompt(request, deadline));
  LH_ASSIGN_OR_RETURN(const SparseOptions sparse, ResolveSparse(request.sparse, config().sparse));
  const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
  auto entry = shared_->registry->Add(request.caller, request.request_id);

  const Clock::time_point tokenize_begin = Clock::now();
  LH_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                      Tokenize(request.prompt, request.add_special_tokens));
  LH_ASSIGN_OR_RETURN(const int64_t max_tokens,
                      ResolveMaxTokens(request, static_cast<int64_t>(ids.size())));
  if (entry->cancelled()) return absl::CancelledError("the request was cancelled");

  GenerationParams params;
  params.request_id = request.request_id;
  params.chat = chat;
  params.n = request.n;
  params.prompt_tokens = static_cast<int64_t>(ids.size());
  params.stop = request.stop;
  params.include_stop_in_output = request.include_stop_str_in_output;
  params.n_logprobs = request.sampling.n_logprobs;
  params.n_prompt_logprobs = request.n_prompt_logprobs;
  params.echo_logprobs = request.echo && request.sampling.n_logprobs >= 0;
  params.first_prompt_token = ids.front();
  params.min_tokens = request.sampling.min_tokens;
  params.requested_stop_ids = request.stop_token_ids;
  const std::vector<int32_t> stop_token_ids = StopTokens(request, chat);
  LH_ASSIGN_OR_RETURN(const int32_t n_prompt_logprobs, ResolvePromptLogprobs(request, ids.size()));
  params.sparse_mode = std::string(SparseModeName(sparse.mode));
  if (request.echo) {
    const auto* text = std::get_if<std::string>(&request.prompt);
    params.echo = text != nullptr ? *text : tokenizer().Decode(ids);
    if (params.echo.size() > kMaxEchoBytes) {
      return api::InvalidParam(
          "echo", fmt::format("'echo' repeats prompts of up to {} bytes, got {}", kMaxEchoBytes,
                              params.echo.size()));
    }
  }
  (chat ? phases->template_us : phases->tokenize_us) = MicrosecondsSince(tokenize_begin);
  params.phases = *phases;

  Request submitted;
  submitted.id = request.request_id;
  submitted.prompt = std::move(ids);
  submitted.sampling = ResolveSampling(request.sampling, config().defaults.sampling);
  submitted.max_tokens = max_tokens;
  submitted.n = request.n;
  submitted.stop_token_ids = stop_token_ids;
  submitted.n_prompt_logprobs = n_prompt_logprobs;
  submitted.sparse = sparse;
  submitted.cache_salt = CacheSalt(request);
  submitted.priority = request.priority;
  submitted.deadline = deadline;
  submitted.report_progress = request.return_progress;
  submitted.accepted = phases->accepted;
  auto stream = engine_->Submit(std::move(submitted));
  if (!stream.ok()) {
    return absl::IsOutOfRange(stream.status())
               ? api::WithParam(stream.status(), chat ? "messages" : "prompt")
               : stream.status();
  }
  return std::make_unique<GenerationImpl>(shared_, std::move(params), *std::move(stream),
                                          std::move(entry));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::Create(const SessionConfig& config,
                                                         std::unique_ptr<Engine> engine) {
  LH_ASSIGN_OR_RETURN(auto tokenizer, LoadTokenizer(config.model_dir, config.tokenizer_threads));
  if (tokenizer->vocab_size() > engine->shape().vocab_size) {
    // Ids above the embedding table would be refused one request at a time; say it once instead.
    return absl::InvalidArgumentError(fmt::format(
        "{}: the tokenizer has {} tokens but the model only {}; the files do not belong together",
        config.model_dir, tokenizer->vocab_size(), engine->shape().vocab_size));
  }
  LH_ASSIGN_OR_RETURN(auto chat,
                      ChatTemplate::Load(config.model_dir, config.chat_template_file, *tokenizer));
  SessionConfig completed = config;
  if (config.use_generation_config) {
    LH_ASSIGN_OR_RETURN(completed.defaults, ReadGenerationDefaults(config.model_dir));
  }
  return CreateWith(completed, std::move(tokenizer), std::move(chat), std::move(engine));
}

std::unique_ptr<Session> Session::CreateWith(const SessionConfig& config,
                                             std::unique_ptr<Tokenizer> tokenizer,
                                             std::unique_ptr<const ChatTemplate> chat,
                                             std::unique_ptr<Engine> engine) {
  return std::make_unique<SessionImpl>(config, std::move(tokenizer), std::move(chat),
                                       std::move(engine));
}

}  // namespace longhaul
