// The engine on the real executor and a tiny model. What a request answers is a function of the
// request: not of how its prefill was cut into slices, of the order of epochs and layers, of who
// else runs, or of what was cached. Equal bits: tokens, and every log probability they were drawn
// from.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/tiny_model.h"

namespace longhaul {
namespace {

using testing::RandomTokens;

constexpr int64_t kEpoch = 128;
constexpr int64_t kPrompt = 4 * kEpoch + 30;
constexpr int32_t kLayers = 2;
constexpr int32_t kVocabulary = 64;

// Counts what the scheduler asks of the real executor.
class CountingExecutor : public Executor {
 public:
  struct Counts {
    int64_t n_slices = 0;
    int64_t n_whole_epochs = 0;  // slices of all layers
    int64_t n_by_layer = 0;      // slices out of the layer store
    int64_t n_mixed_steps = 0;   // decode rows and slices
    int64_t n_tokens = 0;        // at the first layer
  };

  CountingExecutor(std::unique_ptr<Executor> inner, int64_t max_prefills,
                   std::shared_ptr<Counts> counts)
      : inner_(std::move(inner)), max_prefills_(max_prefills), counts_(std::move(counts)) {}
  const ModelShape& shape() const override { return inner_->shape(); }
  int32_t n_pages() const override { return inner_->n_pages(); }
  absl::StatusOr<StepResult> Execute(const StepPlan& plan) override {
    counts_->n_mixed_steps += !plan.decode.empty() && !plan.prefill.empty();
    for (const PrefillSlice& slice : plan.prefill) {
      ++counts_->n_slices;
      counts_->n_whole_epochs += slice.layer_end - slice.layer_begin == kLayers;
      counts_->n_by_layer += slice.hidden_slot == max_prefills_;
      if (slice.layer_begin == 0) counts_->n_tokens += slice.end - slice.begin;
    }
    absl::StatusOr<StepResult> result = inner_->Execute(plan);
    if (!result.ok()) return result;
    // As slow as a model that slices are cut for.
    for (size_t i = 0; i < plan.prefill.size(); ++i) {
      const PrefillSlice& slice = plan.prefill[i];
      result->slices[i].elapsed_us += 1'000 * (slice.layer_end - slice.layer_begin);
    }
    return result;
  }

 private:
  const std::unique_ptr<Executor> inner_;
  const int64_t max_prefills_;
  const std::shared_ptr<Counts> counts_;
};

// One output token with the log probabilities of the likeliest, and its own.
struct Step {
  int32_t choice;
  int32_t token;
  std::vector<std::pair<int32_t, float>> logprobs;
  bool operator==(const Step&) const = default;
};

struct Answer {
  std::vector<Step> steps;
  std::vector<Step> prompt;  // from its second token on; choice: the rank
  int64_t cached_tokens = 0;
};

SparseOptions Policy(SparseMode mode) {
  return {.mode = mode,
          .alpha = 0.6f,
          .sink = 16,
          .window = 64,
          .sampled_rows = 24,
          .tail_rows = 8,
          .audit_rows = 8,
          .dense_tail_tokens = 32};
}

class EngineRunnerTest
    : public ::testing::TestWithParam<std::tuple<const char*, DType, SparseMode>> {
 protected:
  EngineRunnerTest() { testing::WriteTinyModel(dir_); }

  EngineConfig Config() const {
    EngineConfig config;
    config.max_model_len = 2048;
    config.kv_cache_bytes = 8 << 20;
    config.kv_dtype = std::get<1>(GetParam());
    config.epoch_tokens = kEpoch;
    config.slice_us = 60'000'000;
    config.self_measure = false;
    return config;
  }

  std::unique_ptr<Engine> Make(EngineConfig config) {
    auto runner = LoadRunner(dir_.path(), testing::MakeBackend(std::get<0>(GetParam())), config,
                             /*plan=*/nullptr);
    EXPECT_TRUE(runner.ok()) << runner.status();
    counts_ = std::make_shared<CountingExecutor::Counts>();
    auto engine = Engine::Create(config, std::make_unique<CountingExecutor>(
                                             std::move(*runner), config.max_prefills, counts_));
    EXPECT_TRUE(engine.ok()) << engine.status();
    return std::move(*engine);
  }

  static Request MakeRequest(std::vector<int32_t> prompt, int64_t max_tokens = 6) {
    Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.sampling.seed = 9;
    request.sampling.n_logprobs = 8;
    request.sparse = Policy(std::get<2>(GetParam()));
    return request;
  }

  static TokenStream Submit(Engine& engine, Request request) {
    absl::StatusOr<TokenStream> stream = engine.Submit(std::move(request));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return std::move(*stream);
  }

  static Answer Read(TokenStream stream) {
    Answer answer;
    while (std::optional<StreamEvent> event = stream.Next(std::chrono::seconds(60))) {
      if (auto* token = std::get_if<TokenEvent>(&*event)) {
        Step step{.choice = token->choice, .token = token->token, .logprobs = {}};
        step.logprobs.push_back({token->token, token->logprob});
        for (const TokenLogprob& top : token->top_logprobs) {
          step.logprobs.push_back({top.token, top.logprob});
        }
        answer.steps.push_back(std::move(step));
      } else if (auto* prompt = std::get_if<PromptLogprobsEvent>(&*event)) {
        EXPECT_EQ(prompt->begin, static_cast<int64_t>(answer.prompt.size()) + 1);
        AddPrompt(*prompt, answer);
      } else if (auto* done = std::get_if<DoneEvent>(&*event)) {
        EXPECT_TRUE(done->status.ok()) << done->status;
        answer.cached_tokens = done->cached_tokens;
      }
    }
    return answer;
  }

  static void AddPrompt(const PromptLogprobsEvent& event, Answer& answer) {
    ASSERT_EQ(event.ranks.size(), event.tokens.size());
    ASSERT_EQ(event.top.size(), event.tokens.size() * event.n_top);
    for (size_t i = 0; i < event.tokens.size(); ++i) {
      const TokenLogprob& own = event.tokens[i];
      Step step{.choice = event.ranks[i], .token = own.token, .logprobs = {}};
      step.logprobs.push_back({own.token, own.logprob});
      for (int32_t k = 0; k < event.n_top; ++k) {
        const TokenLogprob& top = event.top[i * event.n_top + k];
        step.logprobs.push_back({top.token, top.logprob});
      }
      answer.prompt.push_back(std::move(step));
    }
  }

  static Answer Run(Engine& engine, Request request) {
    return Read(Submit(engine, std::move(request)));
  }

  testing::TempDir dir_;
  std::shared_ptr<CountingExecutor::Counts> counts_;
  const std::vector<int32_t> prompt_ = RandomTokens(kPrompt, kVocabulary, 3);
};

TEST_P(EngineRunnerTest, SlicesAndOrderDoNotChangeABit) {
  std::vector<int32_t> longer_prompt = prompt_;
  for (int32_t token : RandomTokens(150, kVocabulary, 4)) longer_prompt.push_back(token);
  Answer expected, expected_longer;
  {
    const auto engine = Make(Config());
    expected = Run(*engine, MakeRequest(prompt_));
    EXPECT_EQ(counts_->n_slices, 5);
    EXPECT_EQ(counts_->n_whole_epochs, 5) << "all layers of an epoch in one slice";
    ASSERT_EQ(expected.steps.size(), 6u);
  }
  {
    const auto engine = Make(Config());
    expected_longer = Run(*engine, MakeRequest(longer_prompt));
  }
  for (PrefillOrder order : {PrefillOrder::kEpoch, PrefillOrder::kLayer}) {
    EngineConfig config = Config();
    config.slice_us = 1'000;
    config.prefill_order = order;
    const auto engine = Make(config);
    const Answer answer = Run(*engine, MakeRequest(prompt_));
    EXPECT_EQ(answer.steps, expected.steps);
    if (order == PrefillOrder::kLayer) {
      EXPECT_EQ(counts_->n_by_layer, 5 * kLayers);
    } else {
      EXPECT_GT(counts_->n_slices, 5) << "paused between layers";
      EXPECT_EQ(counts_->n_by_layer, 0);
    }
    // What it published, with the sparse state at each border, is what a cold prompt computes.
    const Answer longer = Run(*engine, MakeRequest(longer_prompt));
    EXPECT_GE(longer.cached_tokens, 3 * kEpoch);
    EXPECT_EQ(longer.steps, expected_longer.steps);
    EXPECT_TRUE(engine->CheckIntegrity().ok());
  }
}

TEST_P(EngineRunnerTest, OthersDoNotChangeABit) {
  Answer expected;
  {
    const auto engine = Make(Config());
    expected = Run(*engine, MakeRequest(prompt_));
  }
  for (PrefillOrder order : {PrefillOrder::kEpoch, PrefillOrder::kLayer}) {
    EngineConfig config = Config();
    config.slice_us = 1'000;
    config.prefill_order = order;
    const auto engine = Make(config);
    // Answers under way, other long prompts, short ones, one that is cancelled, and an equal one.
    std::vector<TokenStream> others;
    for (uint32_t seed = 20; seed < 23; ++seed) {
      others.push_back(
          Submit(*engine, MakeRequest(RandomTokens(40, kVocabulary, seed), /*max_tokens=*/50)));
    }
    others.push_back(Submit(*engine, MakeRequest(RandomTokens(300, kVocabulary, 30))));
    TokenStream cancelled = Submit(*engine, MakeRequest(RandomTokens(400, kVocabulary, 31)));
    TokenStream stream = Submit(*engine, MakeRequest(prompt_));
    TokenStream equal = Submit(*engine, MakeRequest(prompt_));
    for (uint32_t seed = 40; seed < 44; ++seed) {
      others.push_back(Submit(*engine, MakeRequest(RandomTokens(50, kVocabulary, seed))));
    }
    cancelled.Cancel();
    EXPECT_EQ(Read(std::move(stream)).steps, expected.steps);
    EXPECT_EQ(Read(std::move(equal)).steps, expected.steps);
    for (TokenStream& other : others) EXPECT_FALSE(Read(std::move(other)).steps.empty());
    EXPECT_GT(counts_->n_mixed_steps, 0);
    EXPECT_TRUE(engine->CheckIntegrity().ok());
  }
}

TEST_P(EngineRunnerTest, ACachedPrefixDoesNotChangeABit) {
  std::vector<int32_t> first = prompt_;
  for (size_t i = 350; i < first.size(); ++i) first[i] = (first[i] + 1) % kVocabulary;
  Answer expected;
  {
    const auto engine = Make(Config());
    expected = Run(*engine, MakeRequest(prompt_));
  }
  const auto engine = Make(Config());
  Run(*engine, MakeRequest(first));
  const int64_t n_before = counts_->n_tokens;
  const Answer cached = Run(*engine, MakeRequest(prompt_));
  // Dense: whole pages up to the first difference. Else whole epochs.
  const bool dense = std::get<2>(GetParam()) == SparseMode::kDense;
  EXPECT_EQ(cached.cached_tokens, dense ? 350 / kPageTokens * kPageTokens : 2 * kEpoch);
  EXPECT_EQ(counts_->n_tokens - n_before, kPrompt - cached.cached_tokens);
  EXPECT_EQ(cached.steps, expected.steps);
  // And once more, now that all of it is known.
  EXPECT_EQ(Run(*engine, MakeRequest(prompt_)).steps, expected.steps);
}

TEST_P(EngineRunnerTest, EqualPromptsAtOnceAreComputedOnce) {
  const auto engine = Make(Config());
  TokenStream a = Submit(*engine, MakeRequest(prompt_));
  TokenStream b = Submit(*engine, MakeRequest(prompt_));
  const Answer answer = Read(std::move(a));
  EXPECT_EQ(Read(std::move(b)).steps, answer.steps);
  // The end of the prompt, which is nobody else's, twice.
  EXPECT_LE(counts_->n_tokens, kPrompt + kEpoch + 30);
}

TEST_P(EngineRunnerTest, ChoicesOfOnePromptAreThoseOfSeparateRequests) {
  Answer together;
  Request request = MakeRequest(prompt_, /*max_tokens=*/20);
  request.n = 3;
  {
    const auto engine = Make(Config());
    together = Run(*engine, request);
    EXPECT_EQ(counts_->n_tokens, kPrompt);
  }
  const auto engine = Make(Config());
  request.n = 1;
  const Answer alone = Run(*engine, request);
  std::vector<Step> first;  // the first choice draws as a single one does
  for (const Step& step : together.steps) {
    if (step.choice == 0) first.push_back(step);
  }
  EXPECT_EQ(first, alone.steps);
  EXPECT_EQ(together.steps.size(), 3u * 20);
}

TEST_P(EngineRunnerTest, LogprobsOfThePromptAreThoseOfEveryPrefix) {
  Request request = MakeRequest(prompt_, /*max_tokens=*/0);
  request.n_prompt_logprobs = 3;
  const auto engine = Make(Config());
  const Answer answer = Run(*engine, request);
  ASSERT_EQ(answer.prompt.size(), prompt_.size() - 1);
  for (size_t i = 0; i < answer.prompt.size(); ++i) {
    const Step& step = answer.prompt[i];
    ASSERT_EQ(step.token, prompt_[i + 1]);
    for (int32_t k = 1; k <= 3; ++k) {  // likeliest first, and the rank is the place among them
      EXPECT_GE(step.logprobs[k].second, step.logprobs[std::min(k + 1, 3)].second);
      EXPECT_EQ(step.choice == k, step.logprobs[k].first == step.token);
    }
  }
  // Published, but not taken by one who needs the logits of what is known.
  EXPECT_EQ(Run(*engine, request).prompt, answer.prompt);
  EXPECT_EQ(Run(*engine, request).cached_tokens, 0);
  EXPECT_GT(Run(*engine, MakeRequest(prompt_)).cached_tokens, 0);
  // What the next token of a shorter prompt is drawn from. Under a sparse policy the last rows of a
  // prompt attend densely, so that its epochs are compared where they are dense: in the first.
  const bool dense = std::get<2>(GetParam()) == SparseMode::kDense;
  const std::vector<int64_t> lengths =
      dense ? std::vector<int64_t>{1, 2, kEpoch, 401} : std::vector<int64_t>{1, 2, 30, 32};
  // A bf16 cache may be multiplied by softmax weights in bf16, rounded against the largest score so
  // far; the sparse kernel takes keys in another order.
  const bool rounds = !dense && std::get<1>(GetParam()) == DType::kBF16;
  const double tolerance = rounds ? 2e-2 : 1e-4;
  for (int64_t n : lengths) {
    Request shorter = MakeRequest({prompt_.begin(), prompt_.begin() + n}, /*max_tokens=*/1);
    shorter.sampling.n_logprobs = 3;
    const Step next = Run(*engine, shorter).steps.at(0);
    for (int32_t k = 1; k <= 3; ++k) {
      EXPECT_EQ(answer.prompt[n - 1].logprobs[k].first, next.logprobs[k].first) << n;
      EXPECT_NEAR(answer.prompt[n - 1].logprobs[k].second, next.logprobs[k].second, tolerance) << n;
    }
  }
  request.prompt.resize(1);
  EXPECT_TRUE(Run(*engine, request).prompt.empty()) << "the first token has nothing before it";
}

TEST_P(EngineRunnerTest, NeitherSlicesNorOthersChangeLogprobsOfThePrompt) {
  Request request = MakeRequest(prompt_);
  request.n_prompt_logprobs = 20;
  Answer expected;
  {
    const auto engine = Make(Config());
    expected = Run(*engine, request);
  }
  for (PrefillOrder order : {PrefillOrder::kEpoch, PrefillOrder::kLayer}) {
    EngineConfig config = Config();
    config.slice_us = 1'000;
    config.prefill_order = order;
    const auto engine = Make(config);
    TokenStream stream = Submit(*engine, request);
    TokenStream equal = Submit(*engine, request);
    TokenStream follower = Submit(*engine, MakeRequest(prompt_));
    TokenStream other = Submit(*engine, MakeRequest(RandomTokens(300, kVocabulary, 30)));
    EXPECT_EQ(Read(std::move(stream)).prompt, expected.prompt);
    EXPECT_EQ(Read(std::move(equal)).prompt, expected.prompt);
    EXPECT_EQ(Read(std::move(follower)).steps, expected.steps);
    EXPECT_FALSE(Read(std::move(other)).steps.empty());
    EXPECT_TRUE(engine->CheckIntegrity().ok());
  }
}

std::string Name(const ::testing::TestParamInfo<EngineRunnerTest::ParamType>& info) {
  const auto& [backend, kv_dtype, mode] = info.param;
  return fmt::format("{}_{}_{}", backend, DTypeName(kv_dtype), SparseModeName(mode));
}

INSTANTIATE_TEST_SUITE_P(Fast, EngineRunnerTest,
                         ::testing::Combine(::testing::Values("cpu"),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::Values(SparseMode::kDense,
                                                              SparseMode::kSample,
                                                              SparseMode::kStreaming)),
                         Name);
// The plain loops are slow.
INSTANTIATE_TEST_SUITE_P(Plain, EngineRunnerTest,
                         ::testing::Values(std::tuple("ref", DType::kF32, SparseMode::kSample),
                                           std::tuple("ref", DType::kBF16, SparseMode::kDense),
                                           std::tuple("ref", DType::kF32, SparseMode::kStreaming)),
                         Name);

}  // namespace
}  // namespace longhaul
