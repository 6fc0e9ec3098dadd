// EvalTarget: what an evaluation asks: a model in this process, or a server. Answers one prompt at
// a time, each from a cold prefix cache. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "server/eval/options.h"
#include "server/eval/policy.h"
#include "server/server_config.h"

namespace longhaul::eval {

struct Reply {
  std::string text;
  std::vector<int32_t> tokens;  // of the answer; empty where the target tells only text
  int64_t prompt_tokens = 0;
  double ttft_s = 0;
  // The prefill. A server tells no histogram and no heads.
  double density = 1;
  double recall_mean = 1;
  SparseReport sparse;
};

// How likely the model found the tokens of a prompt, given those before them.
struct PromptScores {
  Reply reply;
  std::vector<float> logprobs;  // [n - 1] of the second token on
  // [n_last][n_top] of the last tokens' places, likeliest first.
  std::vector<std::vector<TokenLogprob>> top;
};

struct TargetInfo {
  std::string target;  // model folder or URL
  std::string model;   // its name
  std::string state;   // text of everything else that changes answers, for the digest of results
  int32_t n_layers = 0, n_heads = 0;  // 0 = not known
};

class EvalTarget {
 public:
  virtual ~EvalTarget() = default;
  virtual const TargetInfo& info() const = 0;
  // Prompt and answer together; 0 = not known.
  virtual int64_t max_model_len() const = 0;
  // InvalidArgument: the target cannot be asked for this policy.
  virtual absl::Status CheckPolicy(const Policy& policy) const = 0;
  // Text of everything that the policy means at this target, for the digest of results.
  virtual std::string PolicyState(const Policy& policy) const = 0;
  // Of a prompt of this text; a server's are estimated from a first prompt.
  virtual absl::StatusOr<int64_t> CountTokens(const std::string& text) = 0;
  // Tokens of kEnglish (server/eval/question.h).
  virtual absl::StatusOr<int64_t> CountEnglish() = 0;
  // Greedy.
  virtual absl::StatusOr<Reply> Ask(const std::string& prompt, const Policy& policy,
                                    int64_t max_tokens) = 0;

  // The share of the prompt under way that is computed, now and then. May be empty.
  void SetProgress(std::function<void(double)> on_progress) {
    on_progress_ = std::move(on_progress);
  }

 protected:
  void Progress(double share) const {
    if (on_progress_) on_progress_(share);
  }

 private:
  std::function<void(double)> on_progress_;
};

// In process: also what needs token ids and their probabilities.
class ModelTarget : public EvalTarget {
 public:
  // Loads the model; errors of OpenSession.
  static absl::StatusOr<std::unique_ptr<ModelTarget>> Open(const ServerConfig& config);

  // Of a text, with the beginning-of-text token if the model has one.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(const std::string& text) const = 0;
  // Greedy, exactly max_tokens: no token ends the answer.
  virtual absl::StatusOr<Reply> AskTokens(std::vector<int32_t> prompt, const Policy& policy,
                                          int64_t max_tokens) = 0;
  // n_top likeliest tokens at the last n_last places; no answer is generated.
  virtual absl::StatusOr<PromptScores> Score(std::vector<int32_t> prompt, const Policy& policy,
                                             int32_t n_top, int64_t n_last) = 0;
};

// A server with OpenAI's completions. Waits for its first answer; errors of the first requests.
absl::StatusOr<std::unique_ptr<EvalTarget>> OpenUrlTarget(const EvalOptions& options,
                                                          const std::string& model);

}  // namespace longhaul::eval
