#include "server/random_model_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <utility>

#include "engine/runner.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/kv_layout.h"

namespace longhaul {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kWarmSteps = 2;  // of a decode, not measured

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double GiB(int64_t n_bytes) { return static_cast<double>(n_bytes) / (int64_t{1} << 30); }

std::vector<int32_t> RandomTokens(int64_t n, int32_t vocab_size) {
  std::mt19937_64 random(20240615);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

// Before anything is there: weights and KV cache, beside which the rest is small.
absl::Status CheckFits(int64_t weight_bytes, int64_t kv_bytes, const MemoryInfo& memory) {
  const int64_t total = CheckedAdd(weight_bytes, kv_bytes).value_or(INT64_MAX);
  if (total <= memory.available_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(fmt::format(
      "a model of this shape does not fit: {:.2f} GiB of weights and {:.2f} GiB of KV cache exceed "
      "the {:.2f} GiB that are free; take a smaller shape, shorter prompts, or a smaller --dtype "
      "or --quantization",
      GiB(weight_bytes), GiB(kv_bytes), GiB(memory.available_bytes)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RandomModelRun>> RandomModelRun::Create(
    const RandomModelShape& shape, const EngineConfig& engine, int64_t max_tokens,
    std::optional<double> density, std::unique_ptr<Backend> backend) {
  LH_ASSIGN_OR_RETURN(ModelConfig model, RandomModelConfig(shape, max_tokens));
  EngineConfig config = engine;
  if (!config.kv_dtype) config.kv_dtype = DType::kBF16;  // as the engine does for this checkpoint
  if (!backend->is_host() && config.kv_dtype == DType::kF32) {
    config.kv_dtype = backend->activation_dtype();
  }
  const KvLayout layout{.n_layers = model.shape.n_layers,
                        .n_kv_heads = model.shape.n_kv_heads,
                        .head_dim = model.shape.head_dim,
                        .dtype = *config.kv_dtype};
  config.kv_cache_bytes =
      CheckedMul(CeilDiv(max_tokens, kPageTokens), layout.PageBytes()).value_or(INT64_MAX);
  LH_RETURN_IF_ERROR(CheckFits(RandomWeightsBytes(model, config.weight_format),
                               config.kv_cache_bytes, backend->Memory()));
  config.max_model_len = max_tokens;
  config.epoch_tokens = std::min(config.epoch_tokens, RoundUp(max_tokens, kPageTokens));
  config.max_num_seqs = 1;
  config.max_prefills = 1;
  config.prefill_order = PrefillOrder::kEpoch;
  std::unique_ptr<RandomModelRun> run(new RandomModelRun(std::move(backend), config, density));
  LH_RETURN_IF_ERROR(run->Load(RandomModel(std::move(model))));
  return run;
}

// Forcing is outside of the profile: what it costs is no part of the pipeline.
RandomModelRun::RandomModelRun(std::unique_ptr<Backend> backend, const EngineConfig& config,
                               std::optional<double> density)
    : backend_(std::move(backend)),
      profiling_(*backend_),
      forced_(density ? std::make_optional<ForcedDensityBackend>(profiling_, *density)
                      : std::nullopt),
      config_(config),
      pages_(CeilDiv(config.max_model_len, kPageTokens)) {
  std::iota(pages_.begin(), pages_.end(), 0);
}

absl::Status RandomModelRun::Load(const RandomModel& model) {
  Backend& outermost = forced_ ? static_cast<Backend&>(*forced_) : profiling_;
  LH_ASSIGN_OR_RETURN(
      executor_,
      LoadRunner(model.source(), std::make_unique<ForwardingBackend>(outermost), config_, &plan_));
  tokens_ = RandomTokens(config_.max_model_len, executor_->shape().vocab_size);
  return absl::OkStatus();
}

PrefillTiming RandomModelRun::Prefill(int64_t n_tokens, SparseMode mode, const OnEpoch& on_epoch) {
  LH_CHECK(0 < n_tokens && n_tokens <= static_cast<int64_t>(tokens_.size()));
  const ModelShape& shape = executor_->shape();
  SparseOptions options = config_.sparse;
  options.mode = mode;
  SparseState state;
  SparseReport report;
  std::vector<double> epoch_seconds;
  PrefillTiming timing{.n_tokens = n_tokens, .mode = mode};
  profiling_.TakeProfile();
  for (int64_t begin = 0; begin < n_tokens; begin += config_.epoch_tokens) {
    const int64_t end = std::min(begin + config_.epoch_tokens, n_tokens);
    StepPlan plan;
    plan.prefill.push_back({.begin = begin,
                            .end = end,
                            .layer_begin = 0,
                            .layer_end = shape.n_layers,
                            .prompt_tokens = n_tokens,
                            .tokens = std::span(tokens_).subspan(begin, end - begin),
                            .pages = pages_,
                            .sparse = &options,
                            .sparse_state = &state});
    const Clock::time_point start = Clock::now();
    const absl::StatusOr<StepResult> result = executor_->Execute(plan);
    epoch_seconds.push_back(SecondsSince(start));
    LH_CHECK(result.ok());
    report.Merge(result->slices[0].report);
    timing.seconds += epoch_seconds.back();
    if (on_epoch) on_epoch(end, epoch_seconds);
  }
  timing.ops = profiling_.TakeProfile();
  timing.density = report.Density();
  timing.attention_flop = 4.0 * shape.head_dim * static_cast<double>(report.kept_pairs);
  timing.selection_flop = 2.0 * shape.head_dim * static_cast<double>(timing.ops.sampled_scores);
  n_filled_ = std::max(n_filled_, n_tokens);
  return timing;
}

DecodeTiming RandomModelRun::Decode(int64_t depth) {
  LH_CHECK(0 <= depth && depth + kDecodeSteps <= static_cast<int64_t>(tokens_.size()));
  if (n_filled_ < depth) Prefill(depth, SparseMode::kStreaming);
  DecodeTiming timing{.depth = depth, .n_steps = kDecodeSteps - kWarmSteps};
  std::vector<double> seconds;
  for (int64_t step = 0; step < kDecodeSteps; ++step) {
    if (step == kWarmSteps) profiling_.TakeProfile();
    StepPlan plan;
    plan.decode.push_back({.token = tokens_[step], .position = depth + step, .pages = pages_});
    const Clock::time_point start = Clock::now();
    LH_CHECK(executor_->Execute(plan).ok());
    if (step >= kWarmSteps) seconds.push_back(SecondsSince(start));
  }
  timing.ops = profiling_.TakeProfile();
  timing.seconds = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  timing.step_seconds = seconds[seconds.size() / 2];
  return timing;
}

}  // namespace longhaul
