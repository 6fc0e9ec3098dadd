// The scheduler against a fake model, with random arrivals, lengths, policies, priorities, cancels,
// retries, twins, deadlines, choices and step failures in pools that are far too small, in either
// order of prefill. After every step: the plan was legal and not empty, every page is accounted
// for, promised pages are there, nobody got lost or is served too rarely. At the end: everybody
// finished, and every answer equals that of the same request alone in an empty engine, although it
// was cut, mixed, joined and cached otherwise.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/scheduler.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_executor.h"

namespace longhaul {
namespace {

using testing::FakeExecutor;
using testing::FakeModel;

class RecordingSink : public EventSink {
 public:
  void Emit(StreamEvent event) override {
    EXPECT_FALSE(done.has_value()) << "an event after the last one";
    EXPECT_TRUE(accepted || std::holds_alternative<AcceptedEvent>(event) ||
                std::holds_alternative<DoneEvent>(event))
        << "an event before it was accepted";
    if (std::holds_alternative<AcceptedEvent>(event)) {
      EXPECT_FALSE(accepted) << "accepted twice";
      accepted = true;
    } else if (auto* token = std::get_if<TokenEvent>(&event)) {
      if (static_cast<size_t>(token->choice) >= outputs.size()) outputs.resize(token->choice + 1);
      if (token->token >= 0) outputs[token->choice].push_back(token->token);
      n_finished += token->finish.has_value();
    } else if (auto* logprobs = std::get_if<PromptLogprobsEvent>(&event)) {
      EXPECT_TRUE(outputs.empty()) << "of the prompt, after the first token";
      EXPECT_EQ(logprobs->begin, static_cast<int64_t>(prompt.size()) + 1);
      for (const TokenLogprob& token : logprobs->tokens) {
        prompt.push_back({token.token, token.logprob});
      }
    } else if (auto* progress = std::get_if<ProgressEvent>(&event)) {
      EXPECT_LE(last_progress, progress->processed_tokens);
      EXPECT_LE(progress->processed_tokens, progress->total_tokens);
      EXPECT_GE(progress->eta_us, progress->phase == Phase::kQueued ? -1 : 0);
      last_progress = progress->processed_tokens;
      ++n_progress;
    } else if (std::holds_alternative<DoneEvent>(event)) {
      done = std::get<DoneEvent>(std::move(event));
    }
  }
  bool cancelled() const override { return cancel; }

  bool cancel = false;
  bool accepted = false;
  std::vector<std::vector<int32_t>> outputs;
  std::vector<std::pair<int32_t, float>> prompt;  // its tokens but the first, with logprobs
  int n_finished = 0;
  int n_progress = 0;
  int64_t last_progress = 0;
  std::optional<DoneEvent> done;
};

EngineConfig Config(const FakeModel& model) {
  EngineConfig config;
  config.max_model_len = 1 << 20;
  config.epoch_tokens = model.epoch_tokens;
  config.max_prefills = model.max_prefills;
  config.max_num_seqs = 12;
  config.slice_us = 300;
  config.model_digest = 77;
  config.retry_keep_us = 20'000;
  return config;
}

// Runs one request alone, without prefix cache, in one slice per epoch.
std::shared_ptr<RecordingSink> AnswerAlone(const Request& request, FakeModel model) {
  model.n_pages = 512;
  EngineConfig config = Config(model);
  config.enable_prefix_caching = false;
  config.slice_us = 1'000'000'000;
  FakeExecutor executor(model);
  Scheduler scheduler(config, executor.shape(), executor.n_pages());
  auto sink = std::make_shared<RecordingSink>();
  Request copy = request;
  copy.deadline.reset();
  scheduler.Add(std::move(copy), sink, 0);
  for (int64_t now_us = 0; !sink->done.has_value(); ++now_us) {
    absl::StatusOr<StepResult> result = executor.Execute(scheduler.Plan(now_us));
    scheduler.Complete(*result, now_us);
  }
  EXPECT_TRUE(sink->done->status.ok()) << sink->done->status.ToString();
  return sink;
}

struct Scenario {
  uint32_t seed;
  int32_t n_pages;
  int64_t max_prefills;
  bool prefix_caching;
  PrefillOrder order = PrefillOrder::kEpoch;
  int64_t n_priorities = 3;
};

// Whoever prefills gets a slice at least every so many steps. With one priority only: others may
// keep a worse one waiting.
class StarvationWatch {
 public:
  void Note(const StepPlan& plan, int64_t step) {
    for (const PrefillSlice& slice : plan.prefill) {
      const auto [place, is_new] = last_step_.try_emplace(slice.seq_id, step);
      longest_gap_ = std::max(longest_gap_, step - place->second);
      place->second = step;
    }
  }
  int64_t longest_gap() const { return longest_gap_; }

 private:
  std::unordered_map<int64_t, int64_t> last_step_;  // by sequence
  int64_t longest_gap_ = 0;
};

class RandomTraffic : public ::testing::TestWithParam<Scenario> {
 protected:
  struct Submitted {
    Request request;
    std::shared_ptr<RecordingSink> sink;
    bool may_fail = false;
    bool has_deadline = false;
  };

  // Usually a new request; sometimes a twin of the last one, or a retry of one that broke off.
  Submitted Next(const FakeModel& model, const std::vector<Submitted>& all) {
    Submitted next{.request = {}, .sink = std::make_shared<RecordingSink>()};
    if (!all.empty() && Draw(8) == 0) {
      next.request = all.back().request;
    } else if (!all.empty() && Draw(8) == 0) {
      next.request = all[Draw(static_cast<int64_t>(all.size()))].request;
    } else {
      next.request = MakeRequest(model);
    }
    next.request.deadline.reset();
    return next;
  }

  // Whatever the state of the scheduler after a step.
  void CheckInvariants(const Scheduler& scheduler, const EngineConfig& config,
                       const std::vector<Submitted>& all) {
    const absl::Status integrity = scheduler.CheckIntegrity();
    ASSERT_TRUE(integrity.ok()) << integrity.ToString();
    const CacheStats cache = scheduler.cache_stats();
    ASSERT_LE(cache.n_pages_used + cache.n_pages_reserved, cache.n_pages_total)
        << "a promise that nothing covers";
    ASSERT_LE(static_cast<double>(cache.n_pages_pinned),
              config.retry_keep_share * static_cast<double>(cache.n_pages_total));
    const auto n_open = std::count_if(
        all.begin(), all.end(), [](const Submitted& one) { return !one.sink->done.has_value(); });
    ASSERT_EQ(scheduler.n_requests(), n_open) << "a request got lost, or ended unheard";
    int64_t n_waiting_tokens = 0;
    for (const Submitted& one : all) {
      if (!one.sink->done) n_waiting_tokens += static_cast<int64_t>(one.request.prompt.size());
    }
    ASSERT_LE(scheduler.n_waiting_tokens(), n_waiting_tokens);
  }

  Request MakeRequest(const FakeModel& model) {
    Request request;
    const int64_t max_tokens_in_pool = model.n_pages * kPageTokens;
    const int64_t n_prompt = 1 + (Draw(4) == 0 ? Draw(max_tokens_in_pool - 70) : Draw(150));
    // A few texts that branch, so that the prefix cache has something to find.
    const int64_t text = Draw(3);
    const int64_t branch = Draw(2) * 128;
    for (int64_t i = 0; i < n_prompt; ++i) {
      request.prompt.push_back(
          static_cast<int32_t>((i * 7 + i / 61 + text + (branch > 0 && i >= branch)) % 61));
    }
    request.n = 1 + static_cast<int32_t>(Draw(6) == 0 ? Draw(4) : 0);
    request.max_tokens = Draw(90);
    request.stop_token_ids = {static_cast<int32_t>(Draw(61))};
    if (Draw(2) == 0) request.stop_token_ids.clear();
    if (n_prompt % 5 == 0) request.n_prompt_logprobs = 0;
    request.sampling.temperature = Draw(2) == 0 ? 0.0f : 1.0f;
    request.sampling.seed = Draw(1000);
    request.sampling.min_tokens = static_cast<int32_t>(Draw(5));
    request.priority = static_cast<int32_t>(Draw(GetParam().n_priorities));
    request.report_progress = Draw(2) == 0;
    SparseOptions sparse;
    sparse.mode = Draw(2) == 0 ? SparseMode::kDense : SparseMode::kSample;
    sparse.dense_tail_tokens = Draw(2) == 0 ? 64 : 0;
    request.sparse = sparse;
    request.cache_salt = Draw(5) == 0 ? "tenant" : "";
    request.accepted = Clock::time_point{};
    while (PagesNeeded(n_prompt, request.max_tokens, request.n) > model.n_pages) {
      request.n = 1;
      request.max_tokens /= 2;
    }
    return request;
  }

  int64_t Draw(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

  std::mt19937_64 random_;
};

TEST_P(RandomTraffic, EverybodyFinishesWithTheAnswerItHasAlone) {
  const Scenario scenario = GetParam();
  random_.seed(scenario.seed);
  FakeModel model;
  model.n_pages = scenario.n_pages;
  model.max_prefills = scenario.max_prefills;
  EngineConfig config = Config(model);
  config.enable_prefix_caching = scenario.prefix_caching;
  config.prefill_order = scenario.order;
  FakeExecutor executor(model);
  Scheduler scheduler(config, executor.shape(), executor.n_pages());

  std::vector<Submitted> all;
  StarvationWatch watch;
  int64_t now_us = 1'000'000;
  constexpr size_t kRequests = 220;
  for (int64_t step = 0; all.size() < kRequests || !scheduler.idle(); ++step) {
    ASSERT_LT(step, 200'000) << "starvation: " << scheduler.n_waiting() << " still waiting";
    // Arrivals in bursts with pauses between.
    if (all.size() < kRequests && (step / 200) % 3 != 2 && Draw(6) == 0) {
      Submitted one = Next(model, all);
      if (Draw(12) == 0) {  // some of them cannot be met
        one.request.deadline = Clock::time_point(std::chrono::microseconds(now_us + Draw(30'000)));
        one.may_fail = one.has_deadline = true;
      }
      scheduler.Add(one.request, one.sink, now_us);
      all.push_back(std::move(one));
    }
    if (!all.empty() && Draw(120) == 0) {
      Submitted& victim = all[Draw(static_cast<int64_t>(all.size()))];
      victim.may_fail = true;
      victim.sink->cancel = true;
    }
    if (Draw(700) == 0) executor.FailStep(executor.n_steps() + 1);

    const StepPlan& plan = scheduler.Plan(now_us);
    if (plan.empty()) {
      ASSERT_TRUE(scheduler.idle());
      now_us += 100;
      continue;
    }
    ASSERT_LE(static_cast<int64_t>(plan.decode.size()), config.max_num_seqs);
    watch.Note(plan, step);
    absl::StatusOr<StepResult> result = executor.Execute(plan);
    ASSERT_TRUE(executor.violations().empty()) << executor.violations().front();
    if (result.ok()) {
      now_us += result->decode_us;
      for (const SliceResult& slice : result->slices) now_us += slice.elapsed_us;
      scheduler.Complete(*result, now_us);
    } else {
      scheduler.Fail(result.status(), now_us);
    }
    CheckInvariants(scheduler, config, all);
    if (HasFatalFailure()) FAIL() << "after step " << step;
  }
  if (scenario.n_priorities == 1) {
    EXPECT_LT(watch.longest_gap(), 40);
  }

  int64_t n_compared = 0;
  int64_t n_cached = 0;
  int64_t n_refused = 0;
  int64_t n_with_logprobs = 0;
  for (const Submitted& one : all) {
    const RecordingSink& sink = *one.sink;
    ASSERT_TRUE(sink.done.has_value());
    if (!sink.accepted) {
      ++n_refused;
      EXPECT_TRUE(one.has_deadline) << sink.done->status;
      EXPECT_FALSE(sink.done->status.ok());
      EXPECT_EQ(sink.n_progress, 0);
    }
    if (!sink.done->status.ok()) {
      EXPECT_TRUE(one.may_fail || absl::IsInternal(sink.done->status))
          << sink.done->status.ToString();
      continue;
    }
    EXPECT_EQ(sink.n_finished, one.request.n);
    if (one.request.report_progress) {
      EXPECT_GE(sink.n_progress, 2);
    }
    n_cached += sink.done->cached_tokens;
    const std::shared_ptr<const RecordingSink> alone = AnswerAlone(one.request, model);
    EXPECT_EQ(sink.prompt, alone->prompt);
    if (one.request.n_prompt_logprobs >= 0) {
      EXPECT_EQ(sink.prompt.size(), one.request.prompt.size() - 1);
      EXPECT_EQ(sink.done->cached_tokens, 0);
      ++n_with_logprobs;
    }
    EXPECT_EQ(sink.outputs, alone->outputs)
        << "prompt of " << one.request.prompt.size() << " tokens, " << sink.done->cached_tokens
        << " cached, " << SparseModeName(one.request.sparse->mode) << ", n " << one.request.n;
    ++n_compared;
  }
  EXPECT_GT(n_compared, 120);
  EXPECT_GT(n_with_logprobs, 10);
  EXPECT_EQ(scheduler.counters().n_refused_deadline, n_refused);
  if (scenario.prefix_caching && scenario.n_pages >= 24) {
    EXPECT_GT(n_cached, 500);
  }
  if (!scenario.prefix_caching) {
    EXPECT_EQ(n_cached, 0);
  }
  const CacheStats stats = scheduler.cache_stats();
  EXPECT_EQ(stats.n_pages_used, 0);
  EXPECT_EQ(stats.n_pages_reserved, 0);
  EXPECT_EQ(scheduler.n_running(), 0);
}

constexpr PrefillOrder kLayer = PrefillOrder::kLayer;

INSTANTIATE_TEST_SUITE_P(Seeds, RandomTraffic,
                         ::testing::Values(Scenario{1, 24, 4, true}, Scenario{2, 12, 4, true},
                                           Scenario{3, 40, 2, true}, Scenario{4, 24, 1, true},
                                           Scenario{5, 6, 3, true}, Scenario{6, 64, 4, true},
                                           Scenario{7, 24, 4, false}, Scenario{8, 33, 8, true},
                                           Scenario{9, 40, 4, true, kLayer},
                                           Scenario{10, 12, 2, true, kLayer},
                                           Scenario{11, 24, 4, false, kLayer},
                                           Scenario{12, 64, 4, true, PrefillOrder::kEpoch, 1},
                                           Scenario{13, 48, 8, true, kLayer, 1}),
                         [](const auto& info) { return "Seed" + std::to_string(info.param.seed); });

}  // namespace
}  // namespace longhaul
