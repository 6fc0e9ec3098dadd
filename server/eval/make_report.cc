#include "server/eval/make_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "server/eval/run.h"
#include "server/eval/targets.h"
#include "server/version.h"

namespace longhaul::eval {
namespace {

using nlohmann::json;

constexpr const char* kUnitNames[] = {"share", "perplexity", "nats"};

// Sums of results that become one EvalScore, in the order in which they first came.
class Scores {
 public:
  void Add(EvalScore kind, double weighted_sum, double weight) {
    const auto key =
        std::make_tuple(kind.suite, kind.task, kind.length_tokens, kind.depth, kind.bucket_begin);
    auto [at, is_new] = index_.try_emplace(key, sums_.size());
    if (is_new) sums_.push_back({std::move(kind), 0, 0});
    Sum& sum = sums_[at->second];
    sum.value += weighted_sum;
    sum.weight += weight;
    ++sum.score.n;
  }

  std::vector<EvalScore> Take() {
    std::vector<EvalScore> scores;
    for (Sum& sum : sums_) {
      const double mean = sum.weight > 0 ? sum.value / sum.weight : 0;
      sum.score.score = sum.score.unit == Unit::kPerplexity ? std::exp(mean) : mean;
      scores.push_back(std::move(sum.score));
    }
    return scores;
  }

 private:
  struct Sum {
    EvalScore score;
    double value, weight;
  };
  std::map<std::tuple<std::string, std::string, int64_t, double, int64_t>, size_t> index_;
  std::vector<Sum> sums_;
};

void AddScores(const TaskSpec& spec, const Result& result, Scores* scores) {
  EvalScore score;
  score.suite = spec.suite;
  score.task = spec.task;
  score.length_tokens = spec.length_tokens;
  score.depth = spec.depth;
  if (spec.suite == "ppl") {
    score.unit = Unit::kPerplexity;
    double sum = 0, n = 0;
    for (size_t b = 0; 2 * b + 1 < result.values.size(); ++b) {
      sum += result.values[2 * b];
      n += result.values[2 * b + 1];
    }
    scores->Add(score, sum, n);
    for (int64_t b = 0; b < static_cast<int64_t>(result.values.size()) / 2; ++b) {
      score.bucket_begin = b * spec.length_tokens / kPerplexityBuckets;
      score.bucket_end = (b + 1) * spec.length_tokens / kPerplexityBuckets;
      scores->Add(score, result.values[static_cast<size_t>(2 * b)],
                  result.values[static_cast<size_t>(2 * b + 1)]);
    }
    return;
  }
  if (result.values.empty()) return;
  scores->Add(score, result.values[0], 1);
  if (spec.suite == "agreement" && result.values.size() > 1) {
    score.task = "kl";
    score.unit = Unit::kNats;
    scores->Add(score, result.values[1], 1);
  }
}

// Of many prefills: the engine's own sums, over several requests.
struct PrefillSums {
  SparseReport sparse;  // recalls and heads
  std::vector<double> ttfts_s;
  double density = 0, recall_mean = 0;
  int64_t n = 0;

  void Add(const Result& result) {
    MergeRecalls(result, &sparse);
    if (sparse.heads.size() < result.heads.size()) sparse.heads.resize(result.heads.size());
    for (size_t i = 0; i < result.heads.size(); ++i) sparse.heads[i].Merge(result.heads[i]);
    if (result.ttft_s > 0) ttfts_s.push_back(result.ttft_s);
    density += result.density;
    recall_mean += result.recall_mean;
    ++n;
  }
  double Mean(double sum) const { return n == 0 ? 1 : sum / static_cast<double>(n); }
  double RecallMean() const {
    return sparse.n_recalls > 0 ? sparse.RecallMean() : Mean(recall_mean);
  }
  double MedianTtft() {
    if (ttfts_s.empty()) return 0;
    const auto middle = ttfts_s.begin() + static_cast<std::ptrdiff_t>(ttfts_s.size() / 2);
    std::nth_element(ttfts_s.begin(), middle, ttfts_s.end());
    return *middle;
  }
};

std::vector<EvalHead> MakeHeads(const std::vector<HeadReport>& from, int32_t n_heads) {
  std::vector<EvalHead> heads;
  for (size_t i = 0; n_heads > 0 && i < from.size(); ++i) {
    const HeadReport& head = from[i];
    if (head.n_epochs == 0) continue;  // of the last layer, where only rows that are read attend
    heads.push_back({.layer = static_cast<int32_t>(i) / n_heads,
                     .head = static_cast<int32_t>(i) % n_heads,
                     .density = head.causal_pairs == 0 ? 1
                                                       : static_cast<double>(head.kept_pairs) /
                                                             static_cast<double>(head.causal_pairs),
                     .n_epochs = head.n_epochs,
                     .n_streaming = head.n_streaming,
                     .n_sparse = head.n_epochs - head.n_streaming - head.n_dense,
                     .n_dense = head.n_dense,
                     .recall_mean = head.n_recalls == 0
                                        ? 1
                                        : head.recall_sum / static_cast<double>(head.n_recalls)});
  }
  return heads;
}

EvalPolicy MakePolicy(const EvalOptions& options, const TargetInfo& info, size_t p,
                      const std::vector<Measured>& measured) {
  EvalPolicy policy;
  policy.name = options.policies[p];
  Scores scores;
  PrefillSums all;
  std::map<int64_t, PrefillSums> by_length;
  for (const Measured& m : measured) {
    const Result* result = m.results[p];
    if (result == nullptr) continue;
    AddScores(m.spec, *result, &scores);
    policy.samples.push_back({.suite = m.spec.suite,
                              .length_tokens = m.spec.length_tokens,
                              .prompt_tokens = result->prompt_tokens,
                              .ttft_s = result->ttft_s,
                              .density = result->density,
                              .recall_mean = result->recall_mean});
    all.Add(*result);
    by_length[m.spec.length_tokens].Add(*result);
  }
  policy.scores = scores.Take();
  for (const int64_t length : options.lengths) {
    const auto at = by_length.find(length);
    if (at == by_length.end()) continue;
    PrefillSums& sums = at->second;
    policy.lengths.push_back({.length_tokens = length,
                              .n = sums.n,
                              .density = sums.Mean(sums.density),
                              .recall_mean = sums.RecallMean(),
                              .recall_p1 = sums.sparse.RecallPercentile(1),
                              .ttft_median_s = sums.MedianTtft()});
  }
  policy.recall_mean = all.RecallMean();
  policy.recall_p1 = all.sparse.RecallPercentile(1);
  policy.density = all.Mean(all.density);
  if (all.sparse.n_recalls > 0) policy.recall_histogram = all.sparse.recall_histogram;
  policy.heads = MakeHeads(all.sparse.heads, info.n_heads);
  return policy;
}

json HeadsJson(const std::vector<EvalHead>& heads) {
  json array = json::array();
  for (const EvalHead& head : heads) {
    array.push_back({{"layer", head.layer},
                     {"head", head.head},
                     {"density", head.density},
                     {"n_epochs", head.n_epochs},
                     {"n_streaming", head.n_streaming},
                     {"n_sparse", head.n_sparse},
                     {"n_dense", head.n_dense},
                     {"recall_mean", head.recall_mean}});
  }
  return array;
}

json PolicyJson(const EvalPolicy& policy) {
  json scores = json::array(), samples = json::array(), lengths = json::array();
  for (const EvalScore& s : policy.scores) {
    json score = {{"suite", s.suite},
                  {"task", s.task},
                  {"unit", kUnitNames[static_cast<int>(s.unit)]},
                  {"length_tokens", s.length_tokens},
                  {"n", s.n},
                  {"score", s.score}};
    if (s.depth >= 0) score["depth"] = s.depth;
    if (s.bucket_begin >= 0) score["bucket"] = {s.bucket_begin, s.bucket_end};
    scores.push_back(std::move(score));
  }
  for (const EvalSample& s : policy.samples) {
    samples.push_back({{"suite", s.suite},
                       {"length_tokens", s.length_tokens},
                       {"prompt_tokens", s.prompt_tokens},
                       {"ttft_s", s.ttft_s},
                       {"density", s.density},
                       {"recall_mean", s.recall_mean}});
  }
  for (const EvalLength& l : policy.lengths) {
    lengths.push_back({{"length_tokens", l.length_tokens},
                       {"n", l.n},
                       {"density", l.density},
                       {"recall_mean", l.recall_mean},
                       {"recall_p1", l.recall_p1},
                       {"ttft_median_s", l.ttft_median_s}});
  }
  return {{"name", policy.name},
          {"density", policy.density},
          {"recall_mean", policy.recall_mean},
          {"recall_p1", policy.recall_p1},
          {"recall_histogram", policy.recall_histogram},
          {"lengths", std::move(lengths)},
          {"scores", std::move(scores)},
          {"samples", std::move(samples)},
          {"heads", HeadsJson(policy.heads)}};
}

json ChecksJson(const PolicyChecks& checks) {
  json object = {{"policy", checks.policy}, {"length_tokens", checks.length_tokens}};
  for (const Check& check : checks.checks) {
    if (!check.measured) continue;
    json entry = {{"measured", check.measured->value},
                  {check.at_least ? "at_least" : "at_most", check.bound},
                  {"held", !check.Missed()}};
    if (!check.measured->of.empty()) entry["of"] = check.measured->of;
    object[check.name] = std::move(entry);
  }
  return object;
}

}  // namespace

EvalReport MakeReport(const EvalOptions& options, const TargetInfo& info,
                      const std::vector<Measured>& measured) {
  EvalReport report;
  report.target = info.target;
  report.model = info.model;
  report.created = fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(std::time(nullptr)));
  report.version = kVersion;
  report.text = options.text_file;
  report.n_samples = options.samples;
  report.seed = options.seed;
  report.n_layers = info.n_layers;
  report.n_heads = info.n_heads;
  report.suites = options.suites;
  report.lengths = options.lengths;
  report.depths = options.depths;
  for (size_t p = 0; p < options.policies.size(); ++p) {
    report.policies.push_back(MakePolicy(options, info, p, measured));
  }
  return report;
}

std::string ReportJson(const EvalReport& report) {
  json object = {
      {"target", report.target},   {"model", report.model},         {"created", report.created},
      {"version", report.version}, {"text", report.text},           {"samples", report.n_samples},
      {"seed", report.seed},       {"n_layers", report.n_layers},   {"n_heads", report.n_heads},
      {"suites", report.suites},   {"lengths", report.lengths},     {"depths", report.depths},
      {"policies", json::array()}, {"against_dense", json::array()}};
  for (const EvalPolicy& policy : report.policies) {
    object["policies"].push_back(PolicyJson(policy));
  }
  for (const PolicyChecks& checks : CheckAgainstDense(report)) {
    object["against_dense"].push_back(ChecksJson(checks));
  }
  return object.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace longhaul::eval
