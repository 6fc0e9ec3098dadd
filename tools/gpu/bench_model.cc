// Times a model of the shape of Llama-3-8B with random weights on the GPU: prefill to the first
// token and decode, through the engine's transformer. One JSON object per line on stdout.
//   gpu_bench_model [--tokens N] [--kv bf16|fp8] [--budgets FILE] [--smoke]
// --tokens (524288): prompts of 32768 tokens and their doubles up to it; with --kv fp8, which is
// there for what bf16 cannot hold, of N alone.
// --budgets: what each head keeps under `vertical_slash`, a JSON file as MInference publishes for
// this model; else 1000 columns and 6096 diagonals of every head, the budget it gives most often.
// --smoke: a small model and short prompts, to see that it runs.
//
// Random weights attend to nothing in particular, so no sparse policy could be told from another by
// what it finds: `streaming` shows the time of a prefill with the least attention, `dense` the
// most, `vertical_slash` that of fixed budgets. `ttft_phases` is a second run in which every op is
// waited for: where the time goes, not how long it takes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/head_budgets.h"
#include "engine/model/model_config.h"
#include "engine/model/transformer.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/base/checked_math.h"
#include "server/profiling_backend.h"
#include "tools/gpu/bench_memory.h"

namespace longhaul {
namespace {

struct Sizes {
  const char* config;  // config.json
  int64_t epoch_tokens;
  int64_t first_tokens;      // of the shortest prompt
  int64_t max_dense_tokens;  // beyond, dense prefill takes minutes
  std::vector<int64_t> decode_tokens;
};

const Sizes kLlama8B = {.config = R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 3580165449.0, "max_position_embeddings": 1048576,
    "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false})",
                        .epoch_tokens = 8192,
                        .first_tokens = 32768,
                        .max_dense_tokens = 131072,
                        .decode_tokens = {1024, 131072, 1048576}};
const Sizes kSmoke = {.config = R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96,
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
    "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false})",
                      .epoch_tokens = 128,
                      .first_tokens = 256,
                      .max_dense_tokens = 256,
                      .decode_tokens = {64, 256}};

struct Options {
  Sizes sizes = kLlama8B;
  int64_t max_tokens = 524288;
  DType kv_dtype = DType::kBF16;
  std::shared_ptr<const HeadBudgets> budgets;  // null: the same for every head
};

using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

// Random weights: every matrix of a shape has the same values, made once.
class RandomModel {
 public:
  RandomModel(const ModelConfig& config, Backend& backend) : backend_(backend) {
    const ModelShape& s = config.shape;
    const int64_t e = s.hidden_size;
    const int64_t qkv = int64_t{s.n_heads + 2 * s.n_kv_heads} * s.head_dim;
    weights.layers.resize(s.n_layers);
    for (LayerWeights& layer : weights.layers) {
      layer.input_norm = Ones(e);
      layer.post_norm = Ones(e);
      layer.qkv = Matrix(qkv, e);
      layer.o = Matrix(e, int64_t{s.n_heads} * s.head_dim);
      layer.feed_forward.gate_up = Matrix(2 * int64_t{config.intermediate_size}, e);
      layer.feed_forward.down = Matrix(e, config.intermediate_size);
    }
    weights.final_norm = Ones(e);
    weights.lm_head = Matrix(s.vocab_size, e);
    const TensorView table = Values(s.vocab_size, e);
    weights.embedding = TensorView(Keep(table.data(), static_cast<int64_t>(table.NumBytes())),
                                   DType::kBF16, {s.vocab_size, e});
  }

  ModelWeights weights;

 private:
  TensorView Values(int64_t n_out, int64_t n_in) {
    if (static_cast<int64_t>(values_.size()) < n_out * n_in) {
      std::mt19937 rng(5);
      std::normal_distribution<float> normal(0, 0.02f);
      values_.resize(n_out * n_in);
      // A block of random numbers again and again: 500 M draws would take half a minute.
      const size_t n_drawn = std::min<size_t>(values_.size(), 1 << 22);
      for (size_t i = 0; i < values_.size(); ++i) {
        values_[i] = i < n_drawn ? ToBF16(normal(rng)) : values_[i - n_drawn];
      }
    }
    return TensorView(values_.data(), DType::kBF16, {n_out, n_in});
  }
  std::unique_ptr<LinearWeight> Matrix(int64_t n_out, int64_t n_in) {
    return Must(backend_.PrepareLinear(Values(n_out, n_in), WeightFormat::kBF16));
  }
  void* Keep(const void* from, int64_t n_bytes) {
    weights.buffers.push_back(Must(backend_.Allocate(n_bytes)));
    backend_.Upload(from, weights.buffers.back().data(), n_bytes);
    return weights.buffers.back().data();
  }
  TensorView Ones(int64_t n) {
    const std::vector<float> ones(n, 1.0f);
    return TensorView(Keep(ones.data(), n * static_cast<int64_t>(sizeof(float))), DType::kF32, {n});
  }

  Backend& backend_;
  std::vector<BF16> values_;
};

class Bench {
 public:
  Bench(const Options& options, const ModelConfig& config, Backend& backend, const KvLayout& layout)
      : options_(options),
        config_(config),
        backend_(backend),
        model_(config, backend),
        layout_(layout),
        pages_(options.max_tokens / kPageTokens + 1),
        pool_(Must(backend.Allocate(static_cast<int64_t>(pages_.size()) * layout_.PageBytes()))),
        hidden_(Must(backend.Allocate(EpochTokens() * config.shape.hidden_size * 4))),
        logits_(Must(backend.Allocate(int64_t{config.shape.vocab_size} * 4))),
        arena_(Must(backend.Allocate(
            Transformer::WorkspaceBytes(config, backend.activation_dtype(), EpochTokens(),
                                        options.max_tokens + kPageTokens, 1)))),
        profiling_(backend),
        transformer_(config, model_.weights, backend, layout_, pool_.data()),
        profiled_transformer_(config, model_.weights, profiling_, layout_, pool_.data()),
        tokens_(options.max_tokens) {
    std::iota(pages_.begin(), pages_.end(), 0);
    std::mt19937 rng(9);
    for (int32_t& token : tokens_) {
      token = static_cast<int32_t>(rng() % static_cast<uint32_t>(config.shape.vocab_size));
    }
  }

  void Prefill(int64_t n, SparseMode mode) {
    SparseReport report;
    const double s = RunPrefill(n, mode, transformer_, report);
    fmt::print(R"({{"bench": "ttft", "kv": "{}", "tokens": {}, "mode": "{}", "budgets": "{}", )"
               R"("s": {:.3f}, "tokens_per_s": {:.0f}, "density": {:.4f}, "used_gib": {:.1f}}})"
               "\n",
               DTypeName(options_.kv_dtype), n, SparseModeName(mode), BudgetsName(mode), s,
               static_cast<double>(n) / s, report.Density(), UsedBytes() / (1 << 30));
  }

  void PrefillPhases(int64_t n, SparseMode mode) {
    profiling_.TakeProfile();
    SparseReport report;
    const double s = RunPrefill(n, mode, profiled_transformer_, report);
    const OpProfile ops = profiling_.TakeProfile();
    const double known_s = ops.linear_s + ops.AttentionSeconds() + ops.SelectionSeconds();
    fmt::print(R"({{"bench": "ttft_phases", "kv": "{}", "tokens": {}, "mode": "{}", "s": {:.3f}, )"
               R"("linear_s": {:.3f}, "dense_s": {:.3f}, "sparse_s": {:.3f}, "rows_s": {:.3f}, )"
               R"("mass_s": {:.3f}, "select_s": {:.3f}, "rest_s": {:.3f}}})"
               "\n",
               DTypeName(options_.kv_dtype), n, SparseModeName(mode), s, ops.linear_s, ops.dense_s,
               ops.sparse_s, ops.rows_s, ops.mass_s, ops.select_s, s - known_s);
  }

  void Decode(int64_t n, bool replay) {
    constexpr int kSteps = 16;
    const DecodeRow row{.token = 1, .position = n - 1, .pages = pages_};
    const auto step = [&] {
      if (replay) {
        transformer_.ReplayDecode({&row, 1}, Logits(), arena_);
      } else {
        transformer_.Decode({&row, 1}, Logits(), arena_);
      }
      backend_.Synchronize();
    };
    const double used_before = UsedBytes();
    for (int i = 0; i < 3; ++i) step();  // chooses algorithms, records
    const double recorded_bytes = replay ? UsedBytes() - used_before : 0;
    const auto start = SteadyClock::now();
    for (int i = 0; i < kSteps; ++i) step();
    const double s = SecondsSince(start) / kSteps;
    fmt::print(R"({{"bench": "decode_model", "kv": "{}", "tokens": {}, "graph": {}, "ms": {:.3f}, )"
               R"("tokens_per_s": {:.1f}, "graph_mib": {:.1f}}})"
               "\n",
               DTypeName(options_.kv_dtype), n, replay, s * 1e3, 1 / s, recorded_bytes / (1 << 20));
  }

 private:
  int64_t EpochTokens() const { return options_.sizes.epoch_tokens; }
  // Of the device, by whomever.
  double UsedBytes() const {
    const MemoryInfo memory = backend_.Memory();
    return static_cast<double>(memory.total_bytes - memory.available_bytes);
  }
  const char* BudgetsName(SparseMode mode) const {
    if (mode != SparseMode::kVerticalSlash) return "";
    return options_.budgets == nullptr ? "1000+6096" : "file";
  }

  double RunPrefill(int64_t n, SparseMode mode, Transformer& transformer, SparseReport& report) {
    SparseOptions options;
    options.mode = mode;
    options.head_budgets = options_.budgets;
    SparseState state;
    state.alpha.assign(int64_t{config_.shape.n_layers} * config_.shape.n_heads, options.alpha);
    backend_.Synchronize();
    const auto start = SteadyClock::now();
    for (int64_t begin = 0; begin < n; begin += EpochTokens()) {
      const int64_t end = std::min(begin + EpochTokens(), n);
      PrefillSlice slice;
      slice.begin = begin;
      slice.end = end;
      slice.layer_end = config_.shape.n_layers;
      slice.prompt_tokens = n;
      slice.tokens = std::span(tokens_).subspan(begin, end - begin);
      slice.pages = pages_;
      slice.sparse = &options;
      slice.sparse_state = &state;
      const TensorView hidden(hidden_.data(), DType::kF32,
                              {end - begin, config_.shape.hidden_size});
      transformer.Prefill(slice, hidden, end == n ? Logits() : TensorView(), arena_, report);
    }
    backend_.Synchronize();
    return SecondsSince(start);
  }

  TensorView Logits() const {
    return TensorView(logits_.data(), DType::kF32, {1, config_.shape.vocab_size});
  }

  const Options& options_;
  const ModelConfig& config_;
  Backend& backend_;
  const RandomModel model_;
  const KvLayout layout_;
  std::vector<int32_t> pages_;
  const Buffer pool_, hidden_, logits_;
  Arena arena_;
  ProfilingBackend profiling_;
  Transformer transformer_;
  Transformer profiled_transformer_;
  std::vector<int32_t> tokens_;
};

void Run(const Options& options) {
  const Sizes& sizes = options.sizes;
  ModelConfig config = Must(ParseModelConfig(sizes.config, "config.json"));
  config.rope.context_tokens = options.max_tokens;
  if (options.budgets != nullptr) {
    MustBeOk(SparseOptions{.mode = SparseMode::kVerticalSlash, .head_budgets = options.budgets}
                 .CheckModel(config.shape.n_layers, config.shape.n_heads));
  }
  const std::unique_ptr<Backend> backend = Must(CreateCudaBackend());
  fmt::print(stderr, "{}\n", backend->Description());
  const KvLayout layout{.n_layers = config.shape.n_layers,
                        .n_kv_heads = config.shape.n_kv_heads,
                        .head_dim = config.shape.head_dim,
                        .dtype = options.kv_dtype};
  MustBeOk(backend->CheckKvLayout(layout));
  Bench bench(options, config, *backend, layout);
  bench.Prefill(sizes.epoch_tokens, SparseMode::kDense);  // chooses the algorithms of the GEMMs
  const bool one_length = options.kv_dtype != DType::kBF16;
  for (int64_t n = one_length ? options.max_tokens : sizes.first_tokens; n <= options.max_tokens;
       n *= 2) {
    if (n <= sizes.max_dense_tokens) bench.Prefill(n, SparseMode::kDense);
    for (const SparseMode mode :
         {SparseMode::kSample, SparseMode::kVerticalSlash, SparseMode::kStreaming}) {
      bench.Prefill(n, mode);
    }
    if (n == sizes.max_dense_tokens || n == options.max_tokens) {
      bench.PrefillPhases(n, SparseMode::kSample);
      bench.PrefillPhases(n, SparseMode::kVerticalSlash);
    }
  }
  for (int64_t n : sizes.decode_tokens) {
    if (n > options.max_tokens) break;
    bench.Decode(n, /*replay=*/false);
    bench.Decode(n, /*replay=*/true);
  }
}

// False where an argument is not one.
bool ParseOptions(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--smoke") {
      options.sizes = kSmoke;
      options.max_tokens = kSmoke.first_tokens;
      continue;
    }
    if (++i == argc) return false;
    const std::string value = argv[i];
    if (name == "--tokens") {
      options.max_tokens = std::atoll(value.c_str());
    } else if (name == "--kv" && (value == "bf16" || value == "fp8")) {
      options.kv_dtype = value == "fp8" ? DType::kF8E4M3 : DType::kBF16;
    } else if (name == "--budgets") {
      options.budgets = Must(ReadHeadBudgets(value));
    } else {
      return false;
    }
  }
  return options.max_tokens >= options.sizes.first_tokens && options.max_tokens % kPageTokens == 0;
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  longhaul::Options options;
  if (!longhaul::ParseOptions(argc, argv, options)) {
    fmt::print(stderr,
               "usage: {} [--smoke] [--tokens N] [--kv bf16|fp8] [--budgets FILE]\n"
               "N: a multiple of 64, at least {}\n",
               argv[0], options.sizes.first_tokens);
    return 2;
  }
  longhaul::Run(options);
  return 0;
}
