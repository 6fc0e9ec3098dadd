// What /metrics shows, read as Prometheus reads it.
#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace longhaul {
namespace {

struct MetricFamily {
  std::string help, type;
  // By sample name, labels in the order of the text: {"name", "{labels}"} -> value.
  std::map<std::pair<std::string, std::string>, double> samples;
};

double ParseValue(const std::string& text) {
  if (text == "+Inf") return std::numeric_limits<double>::infinity();
  size_t n_chars = 0;
  const double value = std::stod(text, &n_chars);
  EXPECT_EQ(n_chars, text.size()) << text;
  return value;
}

// The text exposition format, version 0.0.4, as strictly as its description.
class Exposition {
 public:
  explicit Exposition(const std::string& text) {
    EXPECT_TRUE(text.empty() || text.back() == '\n');
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) Read(line);
    for (const auto& [name, family] : families_) {
      EXPECT_FALSE(family.help.empty()) << name;
      EXPECT_FALSE(family.type.empty()) << name;
      if (family.type == "histogram") CheckHistogram(name, family);
    }
  }

  bool Has(const std::string& family) const { return families_.contains(family); }
  const MetricFamily& Family(const std::string& name) const {
    static const MetricFamily kNone;
    const auto it = families_.find(name);
    EXPECT_NE(it, families_.end()) << name;
    return it == families_.end() ? kNone : it->second;
  }
  // The sum over the samples of `name` whose labels contain `label`.
  double Value(const std::string& name, const std::string& label = "") const {
    double sum = 0;
    int n_found = 0;
    for (const auto& [family_name, family] : families_) {
      for (const auto& [key, value] : family.samples) {
        if (key.first != name || key.second.find(label) == std::string::npos) continue;
        sum += value;
        ++n_found;
      }
    }
    EXPECT_GT(n_found, 0) << name << " " << label;
    return sum;
  }
  std::set<std::string> Names() const {
    std::set<std::string> names;
    for (const auto& [name, family] : families_) names.insert(name);
    return names;
  }

 private:
  void Read(const std::string& line) {
    static const std::regex kComment(R"(# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+))");
    static const std::regex kSample(
        R"re(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\["\\n])*",?)*\})? (\S+))re");
    std::smatch match;
    if (std::regex_match(line, match, kComment)) {
      current_ = match[2];
      std::string& field = match[1] == "HELP" ? families_[current_].help : families_[current_].type;
      EXPECT_TRUE(field.empty()) << "twice: " << line;
      EXPECT_TRUE(families_[current_].samples.empty()) << "after its samples: " << line;
      field = match[3];
      return;
    }
    ASSERT_TRUE(std::regex_match(line, match, kSample)) << line;
    const std::string name = match[1];
    MetricFamily& family = families_[current_];
    std::string base = name;
    if (family.type == "histogram") {
      for (const char* suffix : {"_bucket", "_sum", "_count"}) {
        if (name == current_ + suffix) base = current_;
      }
    }
    EXPECT_EQ(base, current_) << "outside of its family: " << line;
    if (family.type == "counter") {
      EXPECT_TRUE(name.ends_with("_total")) << name;
    }
    EXPECT_TRUE(family.samples.try_emplace({name, match[2]}, ParseValue(match[3])).second)
        << "twice: " << line;
  }

  static void CheckHistogram(const std::string& name, const MetricFamily& family) {
    static const std::regex kBound(R"re(,?le="([^"]+)")re");
    std::map<std::string, std::map<double, double>> buckets;  // labels without le -> bound -> count
    for (const auto& [key, value] : family.samples) {
      if (key.first != name + "_bucket") continue;
      std::smatch match;
      ASSERT_TRUE(std::regex_search(key.second, match, kBound)) << key.second;
      const std::string labels = std::regex_replace(key.second, kBound, "");
      EXPECT_TRUE(buckets[labels].emplace(ParseValue(match[1]), value).second) << key.second;
    }
    EXPECT_FALSE(buckets.empty()) << name;
    for (const auto& [labels, counts] : buckets) {
      double before = 0;
      for (const auto& [bound, count] : counts) {
        EXPECT_GE(count, before) << name << labels << " at " << bound;
        before = count;
      }
      EXPECT_EQ(counts.rbegin()->first, std::numeric_limits<double>::infinity()) << name;
      const auto total = family.samples.find({name + "_count", labels});
      ASSERT_NE(total, family.samples.end()) << name << labels;
      EXPECT_EQ(total->second, before) << name << labels;
      EXPECT_TRUE(family.samples.contains({name + "_sum", labels})) << name << labels;
    }
  }

  std::string current_;
  std::map<std::string, MetricFamily> families_;
};

RequestRecord Finished() {
  RequestRecord record;
  record.n = 2;
  record.finished = {FinishReason::kStop, FinishReason::kLength};
  record.e2e_s = 130;
  record.token_gaps_s = {0.01, 0.02, 0.03, 0.04};
  api::Summary& summary = record.summary;
  summary.usage = {.prompt_tokens = 1'000'000, .cached_tokens = 64, .completion_tokens = 6};
  summary.timings = {.read = 1'000'000,
                     .parse = 2'000'000,
                     .template_ = 0,
                     .tokenize = 3'000'000,
                     .queue = 4'000'000,
                     .prefill = 100'000'000,
                     .ttft = 120'000'000,
                     .decode = 10'000'000};
  summary.sparse.causal_pairs = 100;
  summary.sparse.kept_pairs = 25;
  summary.sparse.n_recalls = 2;
  summary.sparse.recall_sum = 1.9;
  summary.sparse.n_repaired = 3;
  return record;
}

TEST(Metrics, EveryFamilyIsWellFormedBeforeTheFirstRequest) {
  Metrics metrics("model \"quoted\"\\");
  const Exposition text(metrics.Render({}));
  // What vLLM's dashboards and autoscalers look for.
  for (const char* name : {"vllm:num_requests_running",
                           "vllm:num_requests_waiting",
                           "vllm:kv_cache_usage_perc",
                           "vllm:prefix_cache_queries_total",
                           "vllm:prefix_cache_hits_total",
                           "vllm:num_preemptions_total",
                           "vllm:prompt_tokens_total",
                           "vllm:generation_tokens_total",
                           "vllm:request_success_total",
                           "vllm:time_to_first_token_seconds",
                           "vllm:inter_token_latency_seconds",
                           "vllm:time_per_output_token_seconds",
                           "vllm:request_time_per_output_token_seconds",
                           "vllm:e2e_request_latency_seconds",
                           "vllm:request_queue_time_seconds",
                           "vllm:request_prefill_time_seconds",
                           "vllm:request_decode_time_seconds",
                           "vllm:request_inference_time_seconds",
                           "vllm:request_prompt_tokens",
                           "vllm:request_generation_tokens"}) {
    EXPECT_TRUE(text.Has(name)) << name;
  }
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    EXPECT_EQ(text.Value("vllm:request_success_total", reason), 0);
  }
  for (const char* reason : kRefusalReasons) {
    EXPECT_EQ(text.Value("longhaul:requests_refused_total", reason), 0);
  }
  EXPECT_EQ(text.Value("vllm:kv_cache_usage_perc"), 0) << "an empty pool is not 0/0";
}

TEST(Metrics, AFinishedRequest) {
  Metrics metrics("m");
  metrics.OnRequest(Finished());
  const Exposition text(metrics.Render({}));
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_sum"), 120);
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_bucket", "le=\"80\""), 0);
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_bucket", "le=\"160\""), 1);
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_bucket", "le=\"3600\""), 1);
  EXPECT_EQ(text.Value("vllm:e2e_request_latency_seconds_sum"), 130);
  EXPECT_EQ(text.Value("vllm:request_queue_time_seconds_sum"), 4);
  EXPECT_EQ(text.Value("vllm:request_prefill_time_seconds_sum"), 100);
  EXPECT_EQ(text.Value("vllm:request_decode_time_seconds_sum"), 10);
  EXPECT_EQ(text.Value("vllm:request_inference_time_seconds_sum"), 110);
  EXPECT_EQ(text.Value("vllm:inter_token_latency_seconds_count"), 4);
  EXPECT_EQ(text.Value("vllm:time_per_output_token_seconds_count"), 4);
  EXPECT_EQ(text.Value("vllm:request_time_per_output_token_seconds_sum"), 5) << "3 tokens, 2 gaps";
  EXPECT_EQ(text.Value("vllm:request_prompt_tokens_sum"), 1'000'000);
  EXPECT_EQ(text.Value("vllm:request_generation_tokens_sum"), 6);
  EXPECT_EQ(text.Value("vllm:request_success_total", "\"stop\""), 1);
  EXPECT_EQ(text.Value("vllm:request_success_total", "\"length\""), 1);
  const std::map<std::string, double> phases = {{"read", 1},     {"parse", 2}, {"template", 0},
                                                {"tokenize", 3}, {"queue", 4}, {"prefill", 100},
                                                {"decode", 10}};
  for (const auto& [phase, seconds] : phases) {
    EXPECT_EQ(text.Value("longhaul:phase_seconds_sum", "\"" + phase + "\""), seconds) << phase;
  }
  EXPECT_EQ(text.Value("longhaul:attention_density_sum"), 0.25);
  EXPECT_EQ(text.Value("longhaul:recall_sum"), 0.95);
  EXPECT_EQ(text.Value("longhaul:repaired_head_epochs_total"), 3);
}

TEST(Metrics, ADenseRequestOfOneTokenHasNoGapsAndNoRecall) {
  Metrics metrics("m");
  RequestRecord record = Finished();
  record.n = 1;
  record.summary.usage.completion_tokens = 1;
  record.summary.sparse = {};
  record.token_gaps_s.clear();
  metrics.OnRequest(record);
  const Exposition text(metrics.Render({}));
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_count"), 1);
  EXPECT_EQ(text.Value("vllm:request_time_per_output_token_seconds_count"), 0);
  EXPECT_EQ(text.Value("longhaul:recall_count"), 0);
  EXPECT_EQ(text.Value("longhaul:attention_density_count"), 0);
}

TEST(Metrics, CancelledAndFailedRequestsHaveNoLatencies) {
  Metrics metrics("m");
  RequestRecord record = Finished();
  record.summary.status = absl::CancelledError("");
  metrics.OnRequest(record);
  record.summary.status = absl::InternalError("");
  metrics.OnRequest(record);
  metrics.OnRequest(record);
  const Exposition text(metrics.Render({}));
  EXPECT_EQ(text.Value("longhaul:requests_cancelled_total"), 1);
  EXPECT_EQ(text.Value("longhaul:requests_failed_total"), 2);
  EXPECT_EQ(text.Value("vllm:request_success_total", "\"abort\""), 1);
  EXPECT_EQ(text.Value("vllm:request_success_total", "\"error\""), 2);
  EXPECT_EQ(text.Value("vllm:request_success_total", "\"stop\""), 0);
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_count"), 0);
}

TEST(Metrics, RefusalsByReason) {
  Metrics metrics("m");
  const std::vector<std::pair<absl::Status, std::string>> cases = {
      {absl::ResourceExhaustedError("x"), "queue_full"},
      {absl::DeadlineExceededError("x"), "deadline"},
      {absl::OutOfRangeError("x"), "context_length"},
      {absl::UnauthenticatedError("x"), "unauthorized"},
      {absl::UnavailableError("x"), "unavailable"},
      {absl::CancelledError("x"), "cancelled"},
      {absl::NotFoundError("x"), "invalid"},
      {absl::InternalError("x"), "error"},
  };
  for (const auto& [status, reason] : cases) {
    metrics.OnRequest(RefusalRecord("id", false, {}, status));
    EXPECT_EQ(Exposition(metrics.Render({})).Value("longhaul:requests_refused_total", reason), 1);
  }
  RequestRecord large = RefusalRecord("id", false, {}, absl::InvalidArgumentError(""));
  large.http_status = 413;
  metrics.OnRequest(large);
  const Exposition text(metrics.Render({}));
  EXPECT_EQ(text.Value("longhaul:requests_refused_total", "body_too_large"), 1);
  EXPECT_EQ(text.Value("longhaul:requests_refused_total"), cases.size() + 1);
  EXPECT_EQ(text.Value("longhaul:requests_failed_total"), 0);
  EXPECT_EQ(text.Value("vllm:request_success_total"), 0);
}

TEST(Metrics, Steps) {
  Metrics metrics("m");
  StepRecord step;
  step.elapsed_us = 3'000'000;
  step.predicted_us = 2'000'000;
  step.n_slices = 2;
  step.slices_us = 2'500'000;
  step.n_decode_rows = 4;
  step.decode_us = 500'000;
  metrics.OnStep(step);
  StepRecord decode_only;
  decode_only.elapsed_us = decode_only.decode_us = 1'000'000;
  decode_only.n_decode_rows = 1;  // not predicted
  metrics.OnStep(decode_only);
  StepRecord failed = step;
  failed.failed = true;
  metrics.OnStep(failed);
  const Exposition text(metrics.Render({}));
  EXPECT_EQ(text.Value("longhaul:step_seconds_count"), 3);
  EXPECT_EQ(text.Value("longhaul:slice_seconds_sum"), 2.5);
  EXPECT_EQ(text.Value("longhaul:decode_step_seconds_sum"), 1.5);
  EXPECT_EQ(text.Value("longhaul:step_prediction_ratio_sum"), 1.5);
  EXPECT_EQ(text.Value("longhaul:step_prediction_ratio_count"), 1);
  EXPECT_EQ(text.Value("longhaul:engine_steps_failed_total"), 1);
}

TEST(Metrics, StateOfTheEngine) {
  Metrics metrics("m");
  EngineStats stats;
  stats.n_running = 3;
  stats.n_waiting = 4;
  stats.n_waiting_tokens = 5;
  stats.n_pages_total = 100;
  stats.n_pages_used = 20;
  stats.n_pages_reserved = 30;
  stats.n_pages_cached = 7;
  stats.n_pages_pinned = 6;
  stats.n_evictions = 9;
  stats.joined_tokens = 10;
  stats.prefix_queried_tokens = 11;
  stats.prefix_hit_tokens = 12;
  stats.prompt_tokens = 13;
  stats.generation_tokens = 14;
  stats.n_steps = 15;
  (void)metrics.Render({});  // before the model was loaded
  (void)metrics.Render(stats);
  const Exposition text(metrics.Render(stats));  // counters are not added up
  EXPECT_EQ(text.Value("vllm:num_requests_running"), 3);
  EXPECT_EQ(text.Value("vllm:num_requests_waiting"), 4);
  EXPECT_EQ(text.Value("longhaul:waiting_tokens"), 5);
  EXPECT_EQ(text.Value("vllm:kv_cache_usage_perc"), 0.5);
  EXPECT_EQ(text.Value("vllm:cache_config_info", "num_gpu_blocks=\"100\""), 1);
  EXPECT_EQ(text.Value("vllm:cache_config_info", "block_size=\"64\""), 1);
  EXPECT_EQ(text.Value("longhaul:kv_pages"), 100);
  EXPECT_EQ(text.Value("longhaul:kv_pages_used"), 20);
  EXPECT_EQ(text.Value("longhaul:kv_pages_reserved"), 30);
  EXPECT_EQ(text.Value("longhaul:kv_pages_cached"), 7);
  EXPECT_EQ(text.Value("longhaul:kv_pages_pinned"), 6);
  EXPECT_EQ(text.Value("longhaul:kv_pages_evicted_total"), 9);
  EXPECT_EQ(text.Value("longhaul:joined_tokens_total"), 10);
  EXPECT_EQ(text.Value("vllm:prefix_cache_queries_total"), 11);
  EXPECT_EQ(text.Value("vllm:prefix_cache_hits_total"), 12);
  EXPECT_EQ(text.Value("vllm:prompt_tokens_total"), 13);
  EXPECT_EQ(text.Value("vllm:generation_tokens_total"), 14);
  EXPECT_EQ(text.Value("longhaul:engine_steps_total"), 15);
}

// The operator's page names every metric that there is, and none that is not.
TEST(Metrics, AreDocumented) {
  std::ifstream file("docs/operations.md");
  ASSERT_TRUE(file) << "run from the repository root";
  const std::string page((std::istreambuf_iterator<char>(file)), {});
  Metrics metrics("m");
  metrics.OnHttpResponse(200);
  EngineStats stats;
  stats.n_pages_total = 1;
  const std::set<std::string> shown = Exposition(metrics.Render(stats)).Names();
  for (const std::string& name : shown) {
    EXPECT_NE(page.find("`" + name), std::string::npos) << name << " is not in docs/operations.md";
  }
  static const std::regex kName(R"(`((?:vllm|longhaul):[a-z0-9_]+))");
  for (std::sregex_iterator it(page.begin(), page.end(), kName), end; it != end; ++it) {
    EXPECT_TRUE(shown.contains((*it)[1])) << (*it)[1] << " is documented but does not exist";
  }
}

TEST(Metrics, ManyThreads) {
  Metrics metrics("m");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&metrics, t] {
      EngineStats stats;
      for (int i = 0; i < 200; ++i) {
        metrics.OnRequest(Finished());
        metrics.OnStep({.elapsed_us = 1, .predicted_us = 1});
        metrics.OnHttpResponse(200 + t);
        stats.prompt_tokens = i;
        if (i % 50 == 0) (void)metrics.Render(stats);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Exposition text(metrics.Render({}));
  EXPECT_EQ(text.Value("vllm:time_to_first_token_seconds_count"), 800);
  EXPECT_EQ(text.Value("longhaul:step_seconds_count"), 800);
  EXPECT_EQ(text.Value("longhaul:http_responses_total"), 800);
}

}  // namespace
}  // namespace longhaul
