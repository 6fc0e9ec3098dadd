#include "server/eval/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "server/eval/haystack.h"
#include "server/eval/make_report.h"
#include "server/eval/measure.h"
#include "server/eval/question.h"
#include "server/eval/work_left.h"
#include "server/load/progress_bar.h"

namespace longhaul::eval {
namespace {

constexpr int kPromptsVersion = 3;  // of wording and scores: results of others are not taken over
constexpr int64_t kMaxAnswerTokens = 128;

std::vector<TaskSpec> MakeSpecs(const EvalOptions& options) {
  std::vector<TaskSpec> specs;
  for (const std::string& suite : options.suites) {
    const std::vector<double> depths =
        suite == "needle" ? options.depths : std::vector<double>{-1.0};
    for (const int64_t length : options.lengths) {
      for (const std::string& task : TasksOf(suite)) {
        for (const double depth : depths) {
          for (int64_t i = 0; i < options.samples; ++i) {
            specs.push_back({suite, task, length, depth, i});
          }
        }
      }
    }
  }
  return specs;
}

class Evaluation {
 public:
  Evaluation(const EvalOptions& options, EvalTarget& target, ModelTarget* model, ResultStore& store,
             std::FILE* progress)
      : options_(options), target_(target), model_(model), store_(store), bar_(progress) {}

  absl::StatusOr<EvalReport> Run() {
    LH_RETURN_IF_ERROR(Prepare());
    const std::vector<TaskSpec> specs = MakeSpecs(options_);
    CountWork(specs);
    bar_.Begin(fmt::format("{} prompts, {} of them known already", specs.size() * policies_.size(),
                           n_known_),
               [this] { return ShareDone(); });
    target_.SetProgress([this](double share) {
      current_ = share;
      bar_.Redraw();
    });
    const absl::Status status = MeasureAll(specs);
    target_.SetProgress(nullptr);
    bar_.Clear();
    LH_RETURN_IF_ERROR(status);
    std::vector<Measured> measured;
    for (const TaskSpec& spec : specs) {
      measured.push_back({.spec = spec, .results = {}});
      for (const Policy& policy : policies_) {
        measured.back().results.push_back(store_.Find(KeyOf(spec, policy)));
      }
    }
    return MakeReport(options_, target_.info(), measured);
  }

 private:
  absl::Status Prepare();
  absl::Status PrepareDocument();
  void CountWork(const std::vector<TaskSpec>& specs);
  absl::Status MeasureAll(const std::vector<TaskSpec>& specs);
  absl::StatusOr<Result> Measure(const TaskSpec& spec, const Policy& policy);
  absl::StatusOr<Result> MeasureQuestion(const TaskSpec& spec, const Policy& policy);
  absl::StatusOr<Result> MeasurePerplexity(const TaskSpec& spec, const Policy& policy);
  absl::StatusOr<Result> MeasureAgreement(const TaskSpec& spec, const Policy& policy);
  absl::StatusOr<Result> MeasureReference(const TaskSpec& spec);

  std::string KeyOf(const TaskSpec& spec, const Policy& policy) const {
    return DigestOf(fmt::format("{}\n{} {} {} {} {}\n{}", state_, spec.suite, spec.task,
                                spec.length_tokens, spec.depth, spec.index,
                                target_.PolicyState(policy)));
  }
  // Tokens [0, n) of the document that begins at a place of this sample's own.
  std::vector<int32_t> Document(const TaskSpec& spec, int64_t n) const;

  // Of the time that all of it takes, as far as that is known.
  double ShareDone() const {
    const double spent_s = SecondsSince(begin_);
    const std::optional<double> left_s = left_.Seconds();
    if (!left_s) return 0;
    return spent_s / (spent_s + std::max(0.0, *left_s - current_ * current_prompt_s_));
  }
  static double SecondsSince(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  const EvalOptions& options_;
  EvalTarget& target_;
  ModelTarget* const model_;
  ResultStore& store_;
  load::ProgressBar bar_;
  std::vector<Policy> policies_;
  std::optional<Haystack> haystack_;
  Wording wording_ = Wording::kWords;
  std::vector<int32_t> document_;  // tokens of all of the text, for ppl and agreement
  std::string state_;              // text of what all results depend on
  std::optional<std::pair<std::string, Question>> question_;  // of the last spec, by its name
  std::chrono::steady_clock::time_point begin_;
  WorkLeft left_;
  double current_ = 0, current_prompt_s_ = 0;  // the share of the prompt under way, and all of it
  int64_t n_known_ = 0;
};

absl::Status Evaluation::Prepare() {
  for (const std::string& text : options_.policies) {
    LH_ASSIGN_OR_RETURN(Policy policy, ParsePolicy(text));
    LH_RETURN_IF_ERROR(target_.CheckPolicy(policy));
    policies_.push_back(std::move(policy));
  }
  const int64_t longest = *std::max_element(options_.lengths.begin(), options_.lengths.end());
  const int64_t room = target_.max_model_len() - kMaxAnswerTokens;
  if (target_.max_model_len() > 0 && longest > room) {
    return absl::InvalidArgumentError(fmt::format(
        "--lengths: prompts of {} tokens do not fit: the model takes {}, and {} are kept for the "
        "answer",
        longest, target_.max_model_len(), kMaxAnswerTokens));
  }
  if (options_.text_file.empty()) {
    haystack_ = Haystack::BuiltIn(longest);
  } else {
    LH_ASSIGN_OR_RETURN(haystack_, Haystack::FromFile(options_.text_file));
  }
  LH_ASSIGN_OR_RETURN(const int64_t n_english, target_.CountEnglish());
  if (static_cast<double>(n_english) > kMostTokensPerWord * kEnglishWords) {
    wording_ = Wording::kCodes;
  }
  state_ =
      fmt::format("prompts {}\nseed {} samples {}\ntext {}\n{}", kPromptsVersion, options_.seed,
                  options_.samples, DigestOf(haystack_->text()), target_.info().state);
  return PrepareDocument();
}

absl::Status Evaluation::PrepareDocument() {
  const auto wanted = [this](const char* suite) {
    return std::find(options_.suites.begin(), options_.suites.end(), suite) !=
           options_.suites.end();
  };
  if (!wanted("ppl") && !wanted("agreement")) return absl::OkStatus();
  if (model_ == nullptr) {
    return absl::InvalidArgumentError("suites ppl and agreement need a model folder: --model");
  }
  LH_ASSIGN_OR_RETURN(document_, model_->Encode(haystack_->text()));
  const int64_t longest = *std::max_element(options_.lengths.begin(), options_.lengths.end());
  if (static_cast<int64_t>(document_.size()) >= longest) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "--text has {} tokens, and suites ppl and agreement read {} in a row; give a longer text or "
      "smaller --lengths",
      document_.size(), longest));
}

void Evaluation::CountWork(const std::vector<TaskSpec>& specs) {
  for (const TaskSpec& spec : specs) {
    for (size_t p = 0; p < policies_.size(); ++p) {
      if (store_.Find(KeyOf(spec, policies_[p])) != nullptr) {
        ++n_known_;
      } else {
        left_.Add(p, spec.length_tokens);
      }
    }
  }
}

absl::Status Evaluation::MeasureAll(const std::vector<TaskSpec>& specs) {
  begin_ = std::chrono::steady_clock::now();
  for (const TaskSpec& spec : specs) {
    for (size_t p = 0; p < policies_.size(); ++p) {
      const Policy& policy = policies_[p];
      const std::string key = KeyOf(spec, policy);
      if (store_.Find(key) != nullptr) continue;
      bar_.SetLabel(fmt::format("{}, {} tokens", spec.suite, spec.length_tokens));
      const auto begin = std::chrono::steady_clock::now();
      current_prompt_s_ = left_.PromptSeconds(p, spec.length_tokens).value_or(0);
      auto result = Measure(spec, policy);
      if (!result.ok()) {
        return absl::Status(
            result.status().code(),
            fmt::format("{}, {} tokens, policy {}: {}", spec.suite, spec.length_tokens, policy.name,
                        std::string(result.status().message())));
      }
      LH_RETURN_IF_ERROR(store_.Add(key, *std::move(result)));
      left_.Done(p, spec.length_tokens, SecondsSince(begin));
      current_ = 0;
      bar_.Redraw();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Result> Evaluation::Measure(const TaskSpec& spec, const Policy& policy) {
  if (spec.suite == "ppl") return MeasurePerplexity(spec, policy);
  if (spec.suite == "agreement") return MeasureAgreement(spec, policy);
  return MeasureQuestion(spec, policy);
}

absl::StatusOr<Result> Evaluation::MeasureQuestion(const TaskSpec& spec, const Policy& policy) {
  const std::string name = fmt::format("{} {} {} {} {}", spec.suite, spec.task, spec.length_tokens,
                                       spec.depth, spec.index);
  if (!question_ || question_->first != name) {
    const TokenCounter count = [this](const std::string& text) {
      return target_.CountTokens(text);
    };
    LH_ASSIGN_OR_RETURN(Question question,
                        MakeQuestion(spec, options_.seed, *haystack_, count, wording_));
    question_.emplace(name, std::move(question));
  }
  const Question& question = question_->second;
  LH_ASSIGN_OR_RETURN(Reply reply, target_.Ask(question.prompt, policy, question.max_tokens));
  const double score = ScoreAnswer(question, reply.text);
  Result result = ResultOf(std::move(reply));
  result.values = {score};
  return result;
}

std::vector<int32_t> Evaluation::Document(const TaskSpec& spec, int64_t n) const {
  const auto n_tokens = static_cast<int64_t>(document_.size());
  const int64_t begin = (n_tokens - spec.length_tokens) * spec.index / options_.samples;
  std::vector<int32_t> ids(document_.begin() + begin, document_.begin() + begin + n);
  ids[0] = document_[0];  // the beginning of text, where the model has one
  return ids;
}

absl::StatusOr<Result> Evaluation::MeasurePerplexity(const TaskSpec& spec, const Policy& policy) {
  LH_ASSIGN_OR_RETURN(PromptScores scores,
                      model_->Score(Document(spec, spec.length_tokens), policy, 0, 0));
  Result result = ResultOf(std::move(scores.reply));
  result.ttft_s = 0;  // it held the probabilities of every token
  result.values.assign(2 * kPerplexityBuckets, 0);
  for (size_t i = 0; i < scores.logprobs.size(); ++i) {
    const auto position = static_cast<int64_t>(i) + 1;
    const int64_t bucket = position * kPerplexityBuckets / spec.length_tokens;
    result.values[static_cast<size_t>(2 * bucket)] -= scores.logprobs[i];
    result.values[static_cast<size_t>(2 * bucket + 1)] += 1;
  }
  return result;
}

absl::StatusOr<Result> Evaluation::MeasureReference(const TaskSpec& spec) {
  LH_ASSIGN_OR_RETURN(
      Continuation dense,
      ContinueDense(*model_, Document(spec, spec.length_tokens - kContinuedTokens)));
  Result result;
  result.tokens = std::move(dense.tokens);
  result.top = std::move(dense.top);
  return result;
}

absl::StatusOr<Result> Evaluation::MeasureAgreement(const TaskSpec& spec, const Policy& policy) {
  TaskSpec reference_spec = spec;
  reference_spec.task = "reference";
  const std::string key = KeyOf(reference_spec, DensePolicy());
  if (store_.Find(key) == nullptr) {
    LH_ASSIGN_OR_RETURN(Result reference, MeasureReference(spec));
    LH_RETURN_IF_ERROR(store_.Add(key, std::move(reference)));
  }
  const Result& reference = *store_.Find(key);
  std::vector<int32_t> ids = Document(spec, spec.length_tokens - kContinuedTokens);
  ids.insert(ids.end(), reference.tokens.begin(), reference.tokens.end());
  const auto n_last = static_cast<int64_t>(reference.tokens.size());
  LH_ASSIGN_OR_RETURN(PromptScores scores,
                      model_->Score(std::move(ids), policy, kTopTokens, n_last));
  const Agreement agreement = Compare(reference.top, scores);
  Result result = ResultOf(std::move(scores.reply));
  result.ttft_s = 0;  // it held the probabilities of every token
  result.values = {agreement.share, agreement.kl};
  return result;
}

}  // namespace

absl::StatusOr<EvalReport> RunEval(const EvalOptions& options, EvalTarget& target,
                                   ModelTarget* model, ResultStore& store, std::FILE* progress) {
  return Evaluation(options, target, model, store, progress).Run();
}

}  // namespace longhaul::eval
