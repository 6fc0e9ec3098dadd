#include "server/eval/calibration_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "kernels/base/check.h"
#include "server/eval/calibration_report.h"
#include "server/eval/measure.h"
#include "server/eval/policy.h"
#include "server/load/progress_bar.h"

namespace longhaul::eval {
namespace {

constexpr int kPromptsVersion = 1;  // results of another way to cut prompts are not taken over

// Places in Result::values of this command.
enum Value : size_t { kShare, kKl, kNll, kScored, kSeconds, kPlainSeconds, kNumValues };

Policy PolicyOf(const std::string& mode, const Candidate& candidate) {
  if (candidate.IsDense()) return DensePolicy();
  return {.name = CandidateText(candidate),
          .mode = mode,
          .values = {{"alpha", candidate.alpha},
                     {"window", static_cast<double>(candidate.window)},
                     {"rows", static_cast<double>(candidate.rows)}}};
}

// Of a prompt with the tokens behind it that dense generated.
Result ScoredResult(const TopLists& top, PromptScores scores) {
  const Agreement agreement = Compare(top, scores);
  const size_t n_scored = scores.logprobs.size() - top.size();  // the prompt's own
  double nll = 0;
  for (size_t i = 0; i < n_scored; ++i) nll -= scores.logprobs[i];
  const double seconds = scores.reply.ttft_s;
  Result result = ResultOf(std::move(scores.reply));
  result.values = {agreement.share, agreement.kl, nll, static_cast<double>(n_scored), seconds, 0};
  return result;
}

// Over the prompts of one length.
class LengthSums {
 public:
  void Add(const Result& reference, const Result& result) {
    MergeRecalls(result, &recalls_);
    const std::vector<double>& dense = reference.values;
    const std::vector<double>& values = result.values;
    share_ += values[kShare];
    kl_ += values[kKl];
    nll_ += values[kNll];
    dense_nll_ += dense[kNll];
    n_scored_ += values[kScored];
    density_ += result.density;
    // Without what the probabilities of all tokens cost, which is the same under any policy.
    seconds_ += std::max(0.0, values[kSeconds] - (dense[kSeconds] - dense[kPlainSeconds]));
    ++n_;
  }

  LengthMeasure Take(int64_t length_tokens) const {
    const auto n = static_cast<double>(n_);
    return {.length_tokens = length_tokens,
            .n = n_,
            .density = density_ / n,
            .recall_mean = recalls_.RecallMean(),
            .recall_p1 = recalls_.RecallPercentile(1),
            .agreement = share_ / n,
            .kl = kl_ / n,
            .perplexity_rise = std::expm1((nll_ - dense_nll_) / n_scored_),
            .prefill_s = seconds_ / n};
  }

 private:
  SparseReport recalls_;
  double share_ = 0, kl_ = 0, nll_ = 0, dense_nll_ = 0, n_scored_ = 0, density_ = 0, seconds_ = 0;
  int64_t n_ = 0;
};

class Calibrator {
 public:
  Calibrator(const CalibrateOptions& options, const ServerConfig& config, ModelTarget& model,
             ResultStore& store, std::FILE* progress)
      : options_(options), config_(config), model_(model), store_(store), bar_(progress) {}

  absl::StatusOr<Calibration> Run(const std::string& text) {
    LH_RETURN_IF_ERROR(Prepare(text));
    to_do_ = 2 * kDenseCost * WorkOfPart() + kTypicalTrials * kSparseCost * WorkOfPart();
    bar_.Begin(fmt::format("prompts in each half of the text: {}", NumPrompts()),
               [this] { return std::min((done_ + under_way_ * weight_) / to_do_, kMostDone); });
    model_.SetProgress([this](double share) {
      under_way_ = share;
      bar_.Redraw();
    });
    auto calibration =
        SearchCalibration(Space(), options_.target,
                          [this](const Candidate& c, TextPart part) { return Measure(c, part); });
    model_.SetProgress(nullptr);
    bar_.Clear();
    return calibration;
  }

 private:
  // For the forecast. A dense prompt is computed twice, with and without probabilities; what a
  // sparse one costs beside it is a guess, and so is the number of candidates.
  static constexpr double kDenseCost = 2, kSparseCost = 0.4, kMostDone = 0.99;

  absl::Status Prepare(const std::string& text);
  absl::StatusOr<std::vector<LengthMeasure>> Measure(const Candidate& candidate, TextPart part);
  absl::StatusOr<const Result*> MeasureDense(int64_t begin, int64_t length);
  absl::StatusOr<const Result*> MeasureSparse(int64_t begin, int64_t length, const Result& dense,
                                              const Candidate& candidate);

  SearchSpace Space() const {
    const int64_t shortest = *std::min_element(options_.lengths.begin(), options_.lengths.end());
    return {.start = {.alpha = config_.sparse_alpha,
                      .window = config_.sparse_window,
                      .rows = config_.sparse_rows},
            .max_window = shortest / 2};
  }
  size_t NumPrompts() const {
    return options_.lengths.size() * static_cast<size_t>(options_.samples);
  }
  std::string KeyOf(int64_t begin, int64_t length, const std::string& what) const {
    return DigestOf(fmt::format("{}\n{} {}\n{}", state_, begin, length, what));
  }
  std::vector<int32_t> Prompt(int64_t begin, int64_t length) const {
    const auto first = text_.begin() + begin;
    std::vector<int32_t> ids(first, first + (length - kContinuedTokens));
    ids[0] = text_[0];  // the beginning of text, where the model has one
    return ids;
  }

  // Longer prompts take longer, per token too.
  static double WorkOf(int64_t length) {
    const auto n = static_cast<double>(length);
    return n * (1 + n / 65536);
  }
  double WorkOfPart() const {
    double work = 0;
    for (const int64_t length : options_.lengths) {
      work += WorkOf(length) * static_cast<double>(options_.samples);
    }
    return work;
  }
  // A run of that much work, or what came of it earlier.
  const Result* Begin(const std::string& key, double work) {
    const Result* known = store_.Find(key);
    if (known != nullptr && known->values.size() == kNumValues) {
      if (seen_.insert(key).second) to_do_ = std::max(to_do_ - work, done_ + 1);
      return known;
    }
    seen_.insert(key);
    weight_ = work;
    return nullptr;
  }
  absl::StatusOr<const Result*> Finish(const std::string& key, Result result) {
    LH_RETURN_IF_ERROR(store_.Add(key, std::move(result)));
    done_ += std::exchange(weight_, 0);
    under_way_ = 0;
    bar_.Redraw();
    return store_.Find(key);
  }

  const CalibrateOptions& options_;
  const ServerConfig& config_;
  ModelTarget& model_;
  ResultStore& store_;
  load::ProgressBar bar_;
  std::vector<int32_t> text_;   // tokens
  std::string state_;           // text of what all results depend on
  std::set<std::string> seen_;  // keys of all results that were asked for
  double to_do_ = 1, done_ = 0, weight_ = 0, under_way_ = 0;
};

absl::Status Calibrator::Prepare(const std::string& text) {
  const int64_t longest = *std::max_element(options_.lengths.begin(), options_.lengths.end());
  if (longest > model_.max_model_len()) {
    return absl::InvalidArgumentError(
        fmt::format("--length: prompts of {} tokens do not fit: the model takes {}", longest,
                    model_.max_model_len()));
  }
  LH_ASSIGN_OR_RETURN(text_, model_.Encode(text));
  const auto n_tokens = static_cast<int64_t>(text_.size());
  const int64_t n_needed = 2 * options_.samples * longest;
  if (n_tokens < n_needed) {
    return absl::InvalidArgumentError(fmt::format(
        "--text: {} has {} tokens, and {} are needed: {} prompts of {} from each of its halves. "
        "Give a longer text, or smaller --length or --samples",
        options_.text_file, n_tokens, n_needed, options_.samples, longest));
  }
  state_ = fmt::format("calibration {}\ntext {}\n{}", kPromptsVersion, DigestOf(text),
                       model_.info().state);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LengthMeasure>> Calibrator::Measure(const Candidate& candidate,
                                                               TextPart part) {
  const auto n_tokens = static_cast<int64_t>(text_.size());
  const char* where = part == TextPart::kHeldOut ? " on held-out text" : "";
  bar_.SetLabel(CandidateText(candidate) + where);
  std::vector<LengthMeasure> measures;
  for (const int64_t length : options_.lengths) {
    LengthSums sums;
    for (const int64_t begin : PromptBegins(n_tokens, length, options_.samples, part)) {
      LH_ASSIGN_OR_RETURN(const Result* dense, MeasureDense(begin, length));
      const Result* result = dense;
      if (!candidate.IsDense()) {
        LH_ASSIGN_OR_RETURN(result, MeasureSparse(begin, length, *dense, candidate));
      }
      sums.Add(*dense, *result);
    }
    measures.push_back(sums.Take(length));
    bar_.Note("  " + MeasureText(options_.target, measures.back()));
  }
  return measures;
}

absl::StatusOr<const Result*> Calibrator::MeasureDense(int64_t begin, int64_t length) {
  const std::string key = KeyOf(begin, length, "dense");
  if (const Result* known = Begin(key, kDenseCost * WorkOf(length))) return known;
  LH_ASSIGN_OR_RETURN(Continuation dense, ContinueDense(model_, Prompt(begin, length)));
  Result result = ScoredResult(dense.top, std::move(dense.scores));
  result.values[kPlainSeconds] = dense.reply.ttft_s;
  result.tokens = std::move(dense.tokens);
  result.top = std::move(dense.top);
  return Finish(key, std::move(result));
}

absl::StatusOr<const Result*> Calibrator::MeasureSparse(int64_t begin, int64_t length,
                                                        const Result& dense,
                                                        const Candidate& candidate) {
  const Policy policy = PolicyOf(config_.sparse_mode, candidate);
  const std::string key = KeyOf(begin, length, model_.PolicyState(policy));
  if (const Result* known = Begin(key, kSparseCost * WorkOf(length))) return known;
  std::vector<int32_t> ids = Prompt(begin, length);
  ids.insert(ids.end(), dense.tokens.begin(), dense.tokens.end());
  const auto n_last = static_cast<int64_t>(dense.tokens.size());
  LH_ASSIGN_OR_RETURN(PromptScores scores,
                      model_.Score(std::move(ids), policy, kTopTokens, n_last));
  return Finish(key, ScoredResult(dense.top, std::move(scores)));
}

}  // namespace

std::vector<int64_t> PromptBegins(int64_t n_tokens, int64_t length_tokens, int64_t n_prompts,
                                  TextPart part) {
  const int64_t half = n_tokens / 2;
  LH_CHECK(n_prompts >= 1 && n_prompts * length_tokens <= half);
  std::vector<int64_t> begins;
  for (int64_t i = 0; i < n_prompts; ++i) {
    const int64_t spread = n_prompts == 1 ? 0 : i * (half - length_tokens) / (n_prompts - 1);
    begins.push_back((part == TextPart::kHeldOut ? half : 0) + spread);
  }
  return begins;
}

absl::Status CheckSpace(const CalibrateOptions& options, const ServerConfig& config) {
  const std::string& mode = config.sparse_mode;
  if (mode != "auto" && mode != "sample" && mode != "adaptive") {
    return absl::InvalidArgumentError(fmt::format(
        "--sparse-mode is {}; calibration searches the settings of auto or sample", mode));
  }
  if (config.sparse_alpha >= 1) {
    return absl::InvalidArgumentError(
        "--sparse-alpha is 1, which is dense; start from less, for example 0.95");
  }
  for (const int64_t length : options.lengths) {
    if (mode == "auto" && length <= config.sparse_auto_min_keys) {
      return absl::InvalidArgumentError(fmt::format(
          "--length {}: mode auto is dense up to {} tokens (--sparse-auto-min-keys); give longer "
          "ones, or --sparse-mode sample",
          length, config.sparse_auto_min_keys));
    }
    if (length / 2 < config.sparse_window) {
      return absl::InvalidArgumentError(fmt::format(
          "--length {} is less than twice the window of {} (--sparse-window) from which the search "
          "starts",
          length, config.sparse_window));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Calibration> RunCalibration(const CalibrateOptions& options,
                                           const ServerConfig& config, const std::string& text,
                                           ModelTarget& model, ResultStore& store,
                                           std::FILE* progress) {
  return Calibrator(options, config, model, store, progress).Run(text);
}

}  // namespace longhaul::eval
