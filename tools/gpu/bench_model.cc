// Times a model of the shape of Llama-3-8B with random weights on the GPU: prefill to the first
// token and decode, through the engine's transformer. One JSON object per line on stdout.
//   gpu_bench_model [MAX_TOKENS [N_LAYERS [KV_DTYPE]]]     default 524288 32 bf16
// Prompts of 32768 tokens and their doubles; with fp8 for KV_DTYPE, which is there for what bf16
// cannot hold, of MAX_TOKENS alone.
// Random weights attend to nothing in particular, so no sparse policy could be told from another by
// what it finds: `streaming` shows the time of a prefill with the least attention, `dense` the
// most, `vertical_slash` that of a fixed budget: the one that MInference publishes most often for
// this model (1000 columns, 6096 diagonals of each head). `ttft_phases` is a second run in which
// every op is waited for: where the time goes, not how long it takes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/transformer.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/base/checked_math.h"
#include "server/profiling_backend.h"

namespace longhaul {
namespace {

constexpr int64_t kEpoch = 8192;
constexpr int64_t kMaxDenseTokens = 131072;  // beyond, dense prefill takes minutes
constexpr const char* kConfig = R"({{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
  "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": {},
  "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
  "rms_norm_eps": 1e-5, "rope_theta": 3580165449.0, "max_position_embeddings": 1048576,
  "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false}})";

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    fmt::print(stderr, "{}\n", value.status().ToString());
    std::exit(1);
  }
  return *std::move(value);
}

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
  Bench(const ModelConfig& config, Backend& backend, const KvLayout& layout, int64_t max_tokens)
      : config_(config),
        backend_(backend),
        model_(config, backend),
        layout_(layout),
        pool_(Must(backend.Allocate((max_tokens / kPageTokens + 1) * layout_.PageBytes()))),
        hidden_(Must(backend.Allocate(kEpoch * config.shape.hidden_size * 4))),
        logits_(Must(backend.Allocate(int64_t{config.shape.vocab_size} * 4))),
        arena_(Must(backend.Allocate(Transformer::WorkspaceBytes(
            config, backend.activation_dtype(), kEpoch, max_tokens + kPageTokens, 1)))),
        profiling_(backend),
        transformer_(config, model_.weights, backend, layout_, pool_.data()),
        profiled_transformer_(config, model_.weights, profiling_, layout_, pool_.data()),
        pages_(max_tokens / kPageTokens + 1),
        tokens_(max_tokens) {
    std::iota(pages_.begin(), pages_.end(), 0);
    std::mt19937 rng(9);
    for (int32_t& token : tokens_) {
      token = static_cast<int32_t>(rng() % static_cast<uint32_t>(config.shape.vocab_size));
    }
  }

  void Prefill(int64_t n, SparseMode mode) {
    SparseReport report;
    const double s = RunPrefill(n, mode, transformer_, report);
    const MemoryInfo memory = backend_.Memory();
    fmt::print(R"({{"bench": "ttft", "tokens": {}, "mode": "{}", "s": {:.3f}, )"
               R"("tokens_per_s": {:.0f}, "density": {:.4f}, "used_gib": {:.1f}}})"
               "\n",
               n, SparseModeName(mode), s, static_cast<double>(n) / s, report.Density(),
               static_cast<double>(memory.total_bytes - memory.available_bytes) / (1 << 30));
  }

  void PrefillPhases(int64_t n, SparseMode mode) {
    profiling_.TakeProfile();
    SparseReport report;
    const double s = RunPrefill(n, mode, profiled_transformer_, report);
    const OpProfile ops = profiling_.TakeProfile();
    const double known_s = ops.linear_s + ops.AttentionSeconds() + ops.SelectionSeconds();
    fmt::print(R"({{"bench": "ttft_phases", "tokens": {}, "mode": "{}", "s": {:.3f}, )"
               R"("linear_s": {:.3f}, "dense_s": {:.3f}, "sparse_s": {:.3f}, "rows_s": {:.3f}, )"
               R"("mass_s": {:.3f}, "select_s": {:.3f}, "rest_s": {:.3f}}})"
               "\n",
               n, SparseModeName(mode), s, ops.linear_s, ops.dense_s, ops.sparse_s, ops.rows_s,
               ops.mass_s, ops.select_s, s - known_s);
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
    for (int i = 0; i < 3; ++i) step();  // chooses algorithms, records
    const auto start = SteadyClock::now();
    for (int i = 0; i < kSteps; ++i) step();
    const double s = SecondsSince(start) / kSteps;
    fmt::print(R"({{"bench": "decode_model", "tokens": {}, "graph": {}, "ms": {:.3f}, )"
               R"("tokens_per_s": {:.1f}}})"
               "\n",
               n, replay, s * 1e3, 1 / s);
  }

 private:
  double RunPrefill(int64_t n, SparseMode mode, Transformer& transformer, SparseReport& report) {
    SparseOptions options;
    options.mode = mode;
    SparseState state;
    state.alpha.assign(int64_t{config_.shape.n_layers} * config_.shape.n_heads, options.alpha);
    backend_.Synchronize();
    const auto start = SteadyClock::now();
    for (int64_t begin = 0; begin < n; begin += kEpoch) {
      const int64_t end = std::min(begin + kEpoch, n);
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

  const ModelConfig& config_;
  Backend& backend_;
  const RandomModel model_;
  const KvLayout layout_;
  const Buffer pool_, hidden_, logits_;
  Arena arena_;
  ProfilingBackend profiling_;
  Transformer transformer_;
  Transformer profiled_transformer_;
  std::vector<int32_t> pages_;
  std::vector<int32_t> tokens_;
};

void Run(int64_t max_tokens, int64_t n_layers, DType kv_dtype) {
  ModelConfig config = Must(ParseModelConfig(fmt::format(kConfig, n_layers), "config.json"));
  config.rope.context_tokens = max_tokens;
  const std::unique_ptr<Backend> backend = Must(CreateCudaBackend());
  fmt::print(stderr, "{}\n", backend->Description());
  const KvLayout layout{.n_layers = config.shape.n_layers,
                        .n_kv_heads = config.shape.n_kv_heads,
                        .head_dim = config.shape.head_dim,
                        .dtype = kv_dtype};
  if (const absl::Status status = backend->CheckKvLayout(layout); !status.ok()) {
    fmt::print(stderr, "{}\n", status.ToString());
    std::exit(1);
  }
  Bench bench(config, *backend, layout, max_tokens);
  bench.Prefill(kEpoch, SparseMode::kDense);  // chooses the algorithms of the GEMMs
  for (int64_t n = kv_dtype == DType::kBF16 ? 32768 : max_tokens; n <= max_tokens; n *= 2) {
    if (n <= kMaxDenseTokens) bench.Prefill(n, SparseMode::kDense);
    for (const SparseMode mode :
         {SparseMode::kSample, SparseMode::kVerticalSlash, SparseMode::kStreaming}) {
      bench.Prefill(n, mode);
    }
    if (n == kMaxDenseTokens || n == max_tokens) {
      bench.PrefillPhases(n, SparseMode::kSample);
      bench.PrefillPhases(n, SparseMode::kVerticalSlash);
    }
  }
  for (int64_t n : {int64_t{1024}, int64_t{131072}, int64_t{1048576}}) {
    if (n > max_tokens) break;
    bench.Decode(n, /*replay=*/false);
    bench.Decode(n, /*replay=*/true);
  }
}

}  // namespace
}  // namespace longhaul

int main(int argc, char** argv) {
  const int64_t max_tokens = argc > 1 ? std::atoll(argv[1]) : 524288;
  const int64_t n_layers = argc > 2 ? std::atoll(argv[2]) : 32;
  const std::string kv_dtype = argc > 3 ? argv[3] : "bf16";
  if (argc > 4 || max_tokens < 8192 || max_tokens % 64 != 0 || n_layers < 1 ||
      (kv_dtype != "bf16" && kv_dtype != "fp8")) {
    fmt::print(stderr,
               "usage: {} [MAX_TOKENS, a multiple of 64 from 8192 on [N_LAYERS [bf16|fp8]]]\n",
               argv[0]);
    return 2;
  }
  longhaul::Run(max_tokens, n_layers,
                kv_dtype == "fp8" ? longhaul::DType::kF8E4M3 : longhaul::DType::kBF16);
  return 0;
}
