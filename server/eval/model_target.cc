// The model in this process, asked through the engine: token ids, probabilities and the report of
// every head, which the front ends have no place for.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "server/eval/question.h"
#include "server/eval/target.h"
#include "server/open_session.h"

namespace longhaul::eval {
namespace {

// Names, sizes and times of the folder's files: what changes when the model does.
std::string FolderState(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::string> files;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (!entry->is_regular_file(error) || error) continue;
    files.push_back(fmt::format("{} {} {}", entry->path().filename().string(),
                                entry->file_size(error),
                                entry->last_write_time(error).time_since_epoch().count()));
  }
  std::sort(files.begin(), files.end());
  return fmt::format("{}\n{}", fs::weakly_canonical(folder, error).string(),
                     fmt::join(files, "\n"));
}

class ModelTargetImpl final : public ModelTarget {
 public:
  ModelTargetImpl(const ServerConfig& config, std::unique_ptr<Session> session)
      : session_(std::move(session)) {
    const ModelShape& shape = session_->engine().shape();
    info_.target = config.model;
    info_.model = config.ServedModelName();
    info_.state = fmt::format("{}\nepoch {} dtype {} quantization {} kv cache {} backend {}",
                              FolderState(config.model), config.epoch_tokens, config.dtype,
                              config.quantization, config.kv_cache_dtype, config.backend);
    info_.n_layers = shape.n_layers;
    info_.n_heads = shape.n_heads;
  }

  const TargetInfo& info() const override { return info_; }
  int64_t max_model_len() const override { return session_->engine().max_model_len(); }
  absl::Status CheckPolicy(const Policy& policy) const override { return Options(policy).status(); }
  std::string PolicyState(const Policy& policy) const override {
    const auto options = Options(policy);
    return options.ok() ? options->CacheKey() : "";
  }
  absl::StatusOr<int64_t> CountTokens(const std::string& text) override {
    LH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, Encode(text));
    return static_cast<int64_t>(ids.size());
  }
  absl::StatusOr<int64_t> CountEnglish() override { return CountTokens(std::string(kEnglish)); }
  absl::StatusOr<std::vector<int32_t>> Encode(const std::string& text) const override {
    return session_->tokenizer().Encode(text, /*add_bos=*/true, SpecialTokens::kText);
  }
  absl::StatusOr<Reply> Ask(const std::string& prompt, const Policy& policy,
                            int64_t max_tokens) override {
    Request request;
    LH_ASSIGN_OR_RETURN(request.prompt, Encode(prompt));
    request.max_tokens = max_tokens;
    request.stop_token_ids = session_->tokenizer().eos_ids();
    LH_ASSIGN_OR_RETURN(PromptScores scores, Run(std::move(request), policy, 0));
    return std::move(scores.reply);
  }
  absl::StatusOr<Reply> AskTokens(std::vector<int32_t> prompt, const Policy& policy,
                                  int64_t max_tokens) override {
    Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    LH_ASSIGN_OR_RETURN(PromptScores scores, Run(std::move(request), policy, 0));
    return std::move(scores.reply);
  }
  absl::StatusOr<PromptScores> Score(std::vector<int32_t> prompt, const Policy& policy,
                                     int32_t n_top, int64_t n_last) override {
    Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = 0;
    request.n_prompt_logprobs = n_top;
    return Run(std::move(request), policy, n_last);
  }

 private:
  absl::StatusOr<SparseOptions> Options(const Policy& policy) const {
    return ResolvePolicy(policy, session_->config().sparse);
  }

  absl::StatusOr<PromptScores> Run(Request request, const Policy& policy, int64_t n_last) {
    LH_ASSIGN_OR_RETURN(request.sparse, Options(policy));
    const auto n_prompt = static_cast<int64_t>(request.prompt.size());
    request.id = "eval";
    request.sampling.temperature = 0;
    request.cache_salt = fmt::format("eval-{}", n_asked_++);
    request.report_progress = true;
    request.report_heads = true;
    const std::vector<int32_t> stops = request.stop_token_ids;
    LH_ASSIGN_OR_RETURN(TokenStream stream, session_->engine().Submit(std::move(request)));
    PromptScores scores;
    for (;;) {
      std::optional<StreamEvent> event = stream.Next(std::chrono::seconds(1));
      if (!event) continue;
      if (const auto* progress = std::get_if<ProgressEvent>(&*event)) {
        Progress(static_cast<double>(progress->processed_tokens) /
                 static_cast<double>(std::max<int64_t>(progress->total_tokens, 1)));
      } else if (const auto* logprobs = std::get_if<PromptLogprobsEvent>(&*event)) {
        Take(*logprobs, n_prompt - n_last, &scores);
      } else if (const auto* token = std::get_if<TokenEvent>(&*event)) {
        const bool stop = std::find(stops.begin(), stops.end(), token->token) != stops.end();
        if (token->token >= 0 && !stop) scores.reply.tokens.push_back(token->token);
      } else if (auto* done = std::get_if<DoneEvent>(&*event)) {
        LH_RETURN_IF_ERROR(done->status);
        Finish(*done, &scores.reply);
        return scores;
      }
    }
  }

  static void Take(const PromptLogprobsEvent& event, int64_t top_from, PromptScores* scores) {
    for (size_t i = 0; i < event.tokens.size(); ++i) {
      scores->logprobs.push_back(event.tokens[i].logprob);
      if (event.begin + static_cast<int64_t>(i) < top_from) continue;
      const auto top = event.top.begin() + static_cast<std::ptrdiff_t>(i) * event.n_top;
      scores->top.emplace_back(top, top + event.n_top);
    }
  }

  void Finish(DoneEvent& done, Reply* reply) const {
    reply->text = session_->tokenizer().Decode(reply->tokens);
    reply->prompt_tokens = done.prompt_tokens;
    reply->ttft_s = static_cast<double>(done.queue_us + done.prefill_us) * 1e-6;
    reply->density = done.sparse.Density();
    reply->recall_mean = done.sparse.RecallMean();
    reply->sparse = std::move(done.sparse);
  }

  const std::unique_ptr<Session> session_;
  TargetInfo info_;
  int64_t n_asked_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ModelTarget>> ModelTarget::Open(const ServerConfig& config) {
  LH_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, OpenSession(config));
  return std::make_unique<ModelTargetImpl>(config, std::move(session));
}

}  // namespace longhaul::eval
