#include "server/eval/targets.h"

#include <algorithm>
#include <map>

namespace longhaul::eval {
namespace {

// Mean scores at one length, over prompts.
struct Means {
  std::map<std::string, MeanScore> suites,
      tasks;  // shares, of suites where answers are right or wrong
  std::optional<double> perplexity, agreement;
};

Means MeansOf(const EvalPolicy& policy, int64_t length_tokens) {
  Means means;
  for (const EvalScore& score : policy.scores) {
    if (score.length_tokens != length_tokens || score.bucket_begin >= 0) continue;
    if (score.unit == Unit::kPerplexity) {
      means.perplexity = score.score;
    } else if (score.task == "agreement") {
      means.agreement = score.score;
    } else if (score.unit == Unit::kShare) {
      for (MeanScore* mean : {&means.suites[score.suite], &means.tasks[score.task]}) {
        mean->Add(score);
      }
    }
  }
  return means;
}

std::optional<Measure> WorstLoss(const std::map<std::string, MeanScore>& dense,
                                 const std::map<std::string, MeanScore>& policy) {
  std::optional<Measure> worst;
  for (const auto& [name, mean] : dense) {
    const auto at = policy.find(name);
    if (at == policy.end() || mean.n == 0 || at->second.n == 0) continue;
    const double loss = mean.Value() - at->second.Value();
    if (!worst || loss > worst->value) worst = Measure{loss, name};
  }
  return worst;
}

PolicyChecks CheckPolicy(const Means& dense, const EvalPolicy& policy, const EvalLength& length) {
  const Means means = MeansOf(policy, length.length_tokens);
  std::optional<Measure> perplexity_rise, agreement, recall_mean, recall_p1;
  if (dense.perplexity && means.perplexity) {
    perplexity_rise = Measure{*means.perplexity / *dense.perplexity - 1, ""};
  }
  if (means.agreement) agreement = Measure{*means.agreement, ""};
  if (!policy.recall_histogram.empty()) {
    recall_mean = Measure{length.recall_mean, ""};
    recall_p1 = Measure{length.recall_p1, ""};
  }
  return {
      .policy = policy.name,
      .length_tokens = length.length_tokens,
      .checks = {{"worst_suite_loss", kMaxSuiteLoss, false, WorstLoss(dense.suites, means.suites)},
                 {"worst_task_loss", kMaxTaskLoss, false, WorstLoss(dense.tasks, means.tasks)},
                 {"perplexity_rise", kMaxPerplexityRise, false, perplexity_rise},
                 {"agreement", kMinAgreement, true, agreement},
                 {"recall_mean", kMinRecallMean, true, recall_mean},
                 {"recall_p1", kMinRecallP1, true, recall_p1}}};
}

}  // namespace

std::vector<PolicyChecks> CheckAgainstDense(const EvalReport& report) {
  const auto dense = std::find_if(report.policies.begin(), report.policies.end(),
                                  [](const EvalPolicy& p) { return p.name == "dense"; });
  std::vector<PolicyChecks> all;
  if (dense == report.policies.end() || dense->scores.empty()) return all;
  for (const int64_t length_tokens : report.lengths) {
    const Means means = MeansOf(*dense, length_tokens);
    for (const EvalPolicy& policy : report.policies) {
      if (policy.name == "dense") continue;
      for (const EvalLength& length : policy.lengths) {
        if (length.length_tokens == length_tokens)
          all.push_back(CheckPolicy(means, policy, length));
      }
    }
  }
  return all;
}

}  // namespace longhaul::eval
