#include "server/random_model_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <utility>

#include "kernels/base/checked_math.h"

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

// Bytes of everything, before anything is there.
struct Sizes {
  int64_t weights = 0;
  int64_t kv_pool = 0;
  int64_t workspace = 0;
  int64_t hidden = 0;
  int64_t logits = 0;

  absl::Status Check(const MemoryInfo& memory) const {
    int64_t total = 0;
    for (int64_t n_bytes : {weights, kv_pool, workspace, hidden, logits}) {
      total = CheckedAdd(total, n_bytes).value_or(INT64_MAX);
    }
    if (total <= memory.available_bytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(fmt::format(
        "a model of this shape does not fit: {:.2f} GiB of weights, {:.2f} GiB of KV cache and "
        "{:.2f} GiB of workspace exceed the {:.2f} GiB that are free; take a smaller shape, "
        "shorter prompts, or a smaller --dtype or --quantization",
        GiB(weights), GiB(kv_pool), GiB(workspace + hidden + logits), GiB(memory.available_bytes)));
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<RandomModelRun>> RandomModelRun::Create(
    const RandomModelShape& shape, const EngineConfig& engine, int64_t max_tokens,
    std::optional<double> density, std::unique_ptr<Backend> backend) {
  EngineConfig config = engine;
  LH_RETURN_IF_ERROR(config.Validate());
  config.epoch_tokens = std::min(config.epoch_tokens, RoundUp(max_tokens, kPageTokens));
  LH_ASSIGN_OR_RETURN(ModelConfig model, RandomModelConfig(shape, max_tokens));
  if (!backend->is_host() && config.kv_dtype == DType::kF32) {
    config.kv_dtype = backend->activation_dtype();
  }
  const KvLayout layout{.n_layers = model.shape.n_layers,
                        .n_kv_heads = model.shape.n_kv_heads,
                        .head_dim = model.shape.head_dim,
                        .dtype = config.kv_dtype};
  LH_RETURN_IF_ERROR(backend->CheckKvLayout(layout));
  constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));
  const Sizes sizes{
      .weights = RandomWeightsBytes(model, config.weight_format),
      .kv_pool =
          CheckedMul(CeilDiv(max_tokens, kPageTokens), layout.PageBytes()).value_or(INT64_MAX),
      .workspace = Transformer::WorkspaceBytes(model, backend->activation_dtype(),
                                               config.epoch_tokens, max_tokens, 1),
      .hidden = config.epoch_tokens * model.shape.hidden_size * kFloatBytes,
      .logits = model.shape.vocab_size * kFloatBytes};
  LH_RETURN_IF_ERROR(sizes.Check(backend->Memory()));

  LH_ASSIGN_OR_RETURN(ModelWeights weights,
                      MakeRandomWeights(model, *backend, config.weight_format));
  Memory memory;
  LH_ASSIGN_OR_RETURN(memory.kv_pool, backend->Allocate(sizes.kv_pool));
  LH_ASSIGN_OR_RETURN(memory.workspace, backend->Allocate(sizes.workspace));
  LH_ASSIGN_OR_RETURN(memory.hidden, backend->Allocate(sizes.hidden));
  LH_ASSIGN_OR_RETURN(memory.logits, backend->Allocate(sizes.logits));
  return std::unique_ptr<RandomModelRun>(
      new RandomModelRun(std::move(backend), std::move(model), std::move(weights), config, layout,
                         max_tokens, density, std::move(memory)));
}

RandomModelRun::RandomModelRun(std::unique_ptr<Backend> backend, ModelConfig model,
                               ModelWeights weights, const EngineConfig& config,
                               const KvLayout& layout, int64_t max_tokens,
                               std::optional<double> density, Memory memory)
    : backend_(std::move(backend)),
      model_(std::move(model)),
      weights_(std::move(weights)),
      config_(config),
      layout_(layout),
      kv_pool_(std::move(memory.kv_pool)),
      hidden_(std::move(memory.hidden)),
      logits_(std::move(memory.logits)),
      arena_(std::move(memory.workspace)),
      profiling_(*backend_),
      forced_(density ? std::make_optional<ForcedDensityBackend>(profiling_, *density)
                      : std::nullopt),
      transformer_(model_, weights_, Outermost(), layout_, kv_pool_.data()),
      tokens_(RandomTokens(max_tokens, model_.shape.vocab_size)),
      pages_(CeilDiv(max_tokens, kPageTokens)) {
  std::iota(pages_.begin(), pages_.end(), 0);
}

// Forcing is outside of the profile: what it costs is no part of the pipeline.
Backend& RandomModelRun::Outermost() {
  if (forced_) return *forced_;
  return profiling_;
}

TensorView RandomModelRun::Logits() const {
  return TensorView(logits_.data(), DType::kF32, {1, model_.shape.vocab_size});
}

PrefillTiming RandomModelRun::Prefill(int64_t n_tokens, SparseMode mode) {
  LH_CHECK(0 < n_tokens && n_tokens <= static_cast<int64_t>(tokens_.size()));
  const ModelShape& shape = model_.shape;
  SparseOptions options = config_.sparse;
  options.mode = mode;
  SparseState state;
  state.alpha.assign(int64_t{shape.n_layers} * shape.n_heads, options.alpha);
  SparseReport report;
  profiling_.TakeProfile();
  const Clock::time_point start = Clock::now();
  for (int64_t begin = 0; begin < n_tokens; begin += config_.epoch_tokens) {
    const int64_t end = std::min(begin + config_.epoch_tokens, n_tokens);
    const TensorView hidden(hidden_.data(), DType::kF32, {end - begin, shape.hidden_size});
    transformer_.Prefill({.begin = begin,
                          .end = end,
                          .layer_begin = 0,
                          .layer_end = shape.n_layers,
                          .prompt_tokens = n_tokens,
                          .tokens = std::span(tokens_).subspan(begin, end - begin),
                          .pages = pages_,
                          .sparse = &options,
                          .sparse_state = &state},
                         hidden, end == n_tokens ? Logits() : TensorView(), arena_, report);
  }
  profiling_.Synchronize();
  PrefillTiming timing{.n_tokens = n_tokens, .mode = mode, .seconds = SecondsSince(start)};
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
    const DecodeRow row{.token = tokens_[step], .position = depth + step, .pages = pages_};
    const Clock::time_point start = Clock::now();
    transformer_.Decode({&row, 1}, Logits(), arena_);
    profiling_.Synchronize();
    if (step >= kWarmSteps) seconds.push_back(SecondsSince(start));
  }
  timing.ops = profiling_.TakeProfile();
  timing.seconds = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  timing.step_seconds = seconds[seconds.size() / 2];
  return timing;
}

}  // namespace longhaul
