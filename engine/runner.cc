#include "engine/runner.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "engine/logprobs.h"
#include "engine/memory_plan.h"
#include "engine/model/mapped_file.h"
#include "engine/model/model_config.h"
#include "engine/model/safetensors.h"
#include "engine/model/transformer.h"
#include "engine/model/weights.h"
#include "engine/recorded_steps.h"
#include "engine/request.h"
#include "kernels/base/arena.h"
#include "kernels/base/checked_math.h"
#include "kernels/host_memory.h"

namespace longhaul {
namespace {

int64_t MicrosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count();
}

// Rows of the logits buffer: one per row of the batch, one per prompt's end in a step, and behind
// them kLogprobRows for the logits of a prompt's own tokens, which are looked at and overwritten.
constexpr int64_t kLogprobRows = 64;
int64_t NStepLogitRows(const EngineConfig& config) {
  return config.max_num_seqs + config.max_prefills + 1;
}
int64_t NLogitRows(const EngineConfig& config) { return NStepLogitRows(config) + kLogprobRows; }

class Runner final : public Executor {
 public:
  // Memory that lives as long as the runner, allocated before it is made.
  struct Memory {
    Buffer kv_pool;
    Buffer workspace;
    Buffer hidden;       // [max_prefills, epoch_tokens, E] f32
    Buffer layer_store;  // [max_model_len, E] f32 with PrefillOrder::kLayer, else empty
    Buffer logits;       // [NLogitRows, V] f32
    Buffer host_logits;  // the same on the host, of a backend whose memory the host cannot read
  };

  Runner(std::unique_ptr<Backend> backend, std::unique_ptr<const ModelConfig> model,
         std::unique_ptr<const ModelWeights> weights, const EngineConfig& config,
         const KvLayout& layout, Memory memory)
      : backend_(std::move(backend)),
        model_(std::move(model)),
        weights_(std::move(weights)),
        config_(config),
        layout_(layout),
        kv_pool_(std::move(memory.kv_pool)),
        hidden_(std::move(memory.hidden)),
        layer_store_(std::move(memory.layer_store)),
        logits_(std::move(memory.logits)),
        host_logits_(std::move(memory.host_logits)),
        arena_(std::move(memory.workspace)),
        transformer_(*model_, *weights_, *backend_, layout_, kv_pool_.data()) {}

  const ModelShape& shape() const override { return model_->shape; }
  int32_t n_pages() const override {
    return static_cast<int32_t>(static_cast<int64_t>(kv_pool_.n_bytes()) / layout_.PageBytes());
  }

  absl::StatusOr<StepResult> Execute(const StepPlan& plan) override {
    LH_RETURN_IF_ERROR(CheckPlan(plan));
    CopyPages(plan.copies);
    StepResult result;
    n_logits_used_ = 0;
    if (!plan.decode.empty()) Decode(plan.decode, result);
    for (const PrefillSlice& slice : plan.prefill) result.slices.push_back(Prefill(slice));
    return result;
  }

 private:
  absl::Status CheckPlan(const StepPlan& plan) const {
    const int64_t n_rows = static_cast<int64_t>(plan.decode.size());
    const int64_t n_finals = std::count_if(plan.prefill.begin(), plan.prefill.end(),
                                           [this](const auto& slice) { return IsFinal(slice); });
    if (n_rows > config_.max_num_seqs || n_finals > config_.max_prefills + 1) {
      return absl::InternalError(
          fmt::format("a step of {} decode rows and {} prompts' ends exceeds "
                      "the {} and {} this runner was made for",
                      n_rows, n_finals, config_.max_num_seqs, config_.max_prefills + 1));
    }
    for (const PrefillSlice& s : plan.prefill) {
      LH_CHECK(0 <= s.begin && s.begin < s.end && s.end <= s.prompt_tokens);
      LH_CHECK(s.end - s.begin <= config_.epoch_tokens && s.end <= config_.max_model_len);
      LH_CHECK(static_cast<int64_t>(s.tokens.size()) == s.end - s.begin);
      LH_CHECK(static_cast<int64_t>(s.pages.size()) >= CeilDiv(s.end, kPageTokens));
      LH_CHECK(0 <= s.layer_begin && s.layer_begin < s.layer_end);
      LH_CHECK(s.layer_end <= model_->shape.n_layers);
      LH_CHECK(0 <= s.hidden_slot && s.hidden_slot <= config_.max_prefills);
      LH_CHECK(s.hidden_slot < config_.max_prefills || layer_store_.n_bytes() > 0);
      LH_CHECK(s.sparse != nullptr && s.sparse_state != nullptr);
      LH_CHECK(s.logprob_tokens.empty() || s.layer_end == model_->shape.n_layers);
      LH_CHECK(s.logprob_tokens.size() <= s.tokens.size());
    }
    for (const DecodeRow& row : plan.decode) {
      LH_CHECK(0 <= row.position && row.position < config_.max_model_len);
      LH_CHECK(static_cast<int64_t>(row.pages.size()) >= row.position / kPageTokens + 1);
    }
    return absl::OkStatus();
  }

  void CopyPages(const std::vector<PageCopy>& copies) {
    if (copies.empty()) return;
    std::vector<int32_t> src, dst;
    for (const PageCopy& copy : copies) {
      src.push_back(copy.src);
      dst.push_back(copy.dst);
    }
    backend_->CopyPages({.pool = static_cast<std::byte*>(kv_pool_.data()),
                         .page_bytes = layout_.PageBytes(),
                         .src = src.data(),
                         .dst = dst.data(),
                         .n = static_cast<int64_t>(copies.size())});
  }

  void Decode(const std::vector<DecodeRow>& rows, StepResult& result) {
    const auto begin = Clock::now();
    const TensorView computed = DecodeLogits(rows);
    DrawTokens(rows, computed);
    for (size_t i = 0; i < rows.size(); ++i) {
      RowResult& answer = result.decode.emplace_back();
      if (rows[i].draw.has_value()) continue;
      const auto row = static_cast<int64_t>(i);
      const TensorView logits = OnHost(computed.Slice(row, row + 1));
      answer.logits = {logits.As<float>(), static_cast<size_t>(logits.dim(1))};
    }
    backend_->Synchronize();
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].draw.has_value()) result.decode[i].token = tokens_[i];
    }
    result.decode_us = MicrosecondsSince(begin);
  }

  // [B, V] f32 of the rows.
  TensorView DecodeLogits(const std::vector<DecodeRow>& rows) {
    const auto n_rows = static_cast<int64_t>(rows.size());
    if (config_.enforce_eager || !transformer_.can_replay()) {
      const TensorView logits = TakeLogits(n_rows);
      transformer_.Decode(rows, logits, arena_);
      return logits;
    }
    LH_CHECK(n_logits_used_ == 0);  // a recording writes where it wrote
    const TensorView logits = TakeLogits(RecordedPlaces(n_rows, config_.max_num_seqs));
    transformer_.ReplayDecode(rows, logits, arena_);
    return logits.Slice(0, n_rows);
  }

  // tokens_ holds them behind the next Synchronize; those of rows that ask for logits mean nothing.
  void DrawTokens(const std::vector<DecodeRow>& rows, TensorView logits) {
    const auto n_rows = static_cast<int64_t>(rows.size());
    const auto has_draw = [](const DecodeRow& row) { return row.draw.has_value(); };
    if (std::none_of(rows.begin(), rows.end(), has_draw)) return;
    std::vector<TokenDraw> draws;
    for (const DecodeRow& row : rows) draws.push_back(row.draw.value_or(TokenDraw{}));
    ArenaScope scope(arena_);
    const auto upload_bytes = n_rows * static_cast<int64_t>(sizeof(TokenDraw));
    void* device_draws = arena_.Allocate(DType::kU8, {upload_bytes}).data();
    auto* device_tokens = arena_.Allocate(DType::kI32, {n_rows}).As<int32_t>();
    backend_->Upload(draws.data(), device_draws, upload_bytes);
    backend_->DrawTokens({.logits = logits,
                          .draws = static_cast<const TokenDraw*>(device_draws),
                          .tokens = device_tokens});
    tokens_.resize(rows.size());
    backend_->Download(device_tokens, tokens_.data(),
                       n_rows * static_cast<int64_t>(sizeof(int32_t)));
  }

  // Its logits are the answer's beginning.
  bool IsFinal(const PrefillSlice& slice) const {
    return slice.end == slice.prompt_tokens && slice.layer_end == model_->shape.n_layers;
  }

  // [end - begin, E] f32, kept from slice to slice.
  TensorView HiddenOf(const PrefillSlice& slice) {
    const int64_t hidden_size = model_->shape.hidden_size;
    const bool whole_prompt = slice.hidden_slot == config_.max_prefills;
    const Buffer& buffer = whole_prompt ? layer_store_ : hidden_;
    const int64_t first_row = whole_prompt ? slice.begin : slice.hidden_slot * config_.epoch_tokens;
    return TensorView(static_cast<float*>(buffer.data()) + first_row * hidden_size, DType::kF32,
                      {slice.end - slice.begin, hidden_size});
  }

  SliceResult Prefill(const PrefillSlice& slice) {
    const auto begin = Clock::now();
    const ModelShape& shape = model_->shape;
    std::vector<float>& alpha = slice.sparse_state->alpha;
    if (alpha.empty()) alpha.assign(int64_t{shape.n_layers} * shape.n_heads, slice.sparse->alpha);

    SliceResult result;
    if (slice.report_heads) {
      result.report.heads.resize(int64_t{shape.n_layers} * shape.n_heads);
    }
    TensorView logits;
    if (IsFinal(slice)) logits = TakeLogits(1);
    const TensorView hidden = HiddenOf(slice);
    transformer_.Prefill(slice, hidden, logits, arena_, result.report);
    if (IsFinal(slice)) {
      result.logits = {OnHost(logits).As<float>(), static_cast<size_t>(logits.dim(1))};
    }
    backend_->Synchronize();
    if (!slice.logprob_tokens.empty()) ReadLogprobs(slice, hidden, result.prompt_logprobs);
    if (slice.border_state != nullptr) {
      std::copy(alpha.begin() + int64_t{slice.layer_begin} * shape.n_heads,
                alpha.begin() + int64_t{slice.layer_end} * shape.n_heads,
                slice.border_state->alpha.begin() + int64_t{slice.layer_begin} * shape.n_heads);
    }
    result.elapsed_us = MicrosecondsSince(begin);
    return result;
  }

  // Of a block of rows at a time, since all logits of an epoch would take gigabytes.
  void ReadLogprobs(const PrefillSlice& slice, TensorView hidden, PromptLogprobsEvent& out) {
    const auto n_tokens = static_cast<int64_t>(slice.logprob_tokens.size());
    out.begin = slice.begin + 1;
    out.n_top = slice.n_top_logprobs;
    out.tokens.reserve(n_tokens);
    out.ranks.reserve(n_tokens);
    out.top.reserve(n_tokens * out.n_top);
    for (int64_t begin = 0; begin < n_tokens; begin += kLogprobRows) {
      const int64_t end = std::min(begin + kLogprobRows, n_tokens);
      const TensorView computed = LogitRows(NStepLogitRows(config_), end - begin);
      transformer_.Logits(hidden.Slice(begin, end), computed, arena_);
      const TensorView logits = OnHost(computed);
      backend_->Synchronize();
      for (int64_t i = begin; i < end; ++i) {
        AppendPromptToken({logits.Row<float>(i - begin), static_cast<size_t>(logits.dim(1))},
                          slice.logprob_tokens[i], out);
      }
    }
  }

  // The next n rows of the logits buffer: [n, V] f32, valid until the next step.
  TensorView TakeLogits(int64_t n) {
    const int64_t first = n_logits_used_;
    n_logits_used_ += n;
    return LogitRows(first, n);
  }

  TensorView LogitRows(int64_t first, int64_t n) const {
    const int64_t vocab = model_->shape.vocab_size;
    return TensorView(static_cast<float*>(logits_.data()) + first * vocab, DType::kF32, {n, vocab});
  }

  // Rows of the logits buffer where the host reads them, behind the next Synchronize.
  TensorView OnHost(TensorView logits) const {
    if (backend_->is_host()) return logits;
    const int64_t offset = logits.As<float>() - static_cast<const float*>(logits_.data());
    const TensorView copy(static_cast<float*>(host_logits_.data()) + offset, DType::kF32,
                          {logits.dim(0), logits.dim(1)});
    backend_->Download(logits.data(), copy.data(), static_cast<int64_t>(logits.NumBytes()));
    return copy;
  }

  // Declared in the order of need: the backend frees what everybody else holds, so it goes last.
  const std::unique_ptr<Backend> backend_;
  const std::unique_ptr<const ModelConfig> model_;
  const std::unique_ptr<const ModelWeights> weights_;
  const EngineConfig config_;
  const KvLayout layout_;
  const Buffer kv_pool_;
  const Buffer hidden_;
  const Buffer layer_store_;
  const Buffer logits_;
  const Buffer host_logits_;
  Arena arena_;
  Transformer transformer_;
  int64_t n_logits_used_ = 0;
  std::vector<int32_t> tokens_;  // drawn, of the decode rows
};

// The frequencies of a rope type that depends on the length are those of max_model_len.
absl::Status CompleteMaxModelLen(ModelConfig& model, EngineConfig& config) {
  const ModelShape& shape = model.shape;
  if (config.max_model_len > shape.max_positions) {
    return absl::InvalidArgumentError(
        fmt::format("max_model_len {} exceeds the {} positions that config.json of this model "
                    "allows (max_position_embeddings, the rope scaling)",
                    config.max_model_len, shape.max_positions));
  }
  if (config.max_model_len == 0) config.max_model_len = model.default_context_tokens;
  model.rope.context_tokens = config.max_model_len;
  return absl::OkStatus();
}

// Of a KV cache that nobody chose a type for. A checkpoint may keep a few tensors, norms as a rule,
// in another type than the rest, which its matrices are.
DType KvDTypeFor(const Checkpoint& checkpoint) {
  size_t n_bytes = 0, n_bf16_bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    n_bytes += tensor.data.size();
    if (tensor.dtype == "BF16") n_bf16_bytes += tensor.data.size();
  }
  return n_bf16_bytes > n_bytes / 2 ? DType::kBF16 : DType::kF32;
}

// Of the weights and the format they are computed in, of config.json as it is, of the rotation it
// resolved to, and of the type that keys and values are stored in: any change changes the KV.
uint64_t ModelDigest(const ModelSource& source, const EngineConfig& config, const RopeConfig& rope,
                     DType kv_dtype) {
  uint64_t digest = XXH3_64bits_withSeed(&source.config_hash, sizeof(source.config_hash),
                                         source.checkpoint.Digest());
  const std::optional<WeightFormat> format = config.weight_format;
  const std::array<int32_t, 2> tags = {format ? 1 + static_cast<int32_t>(*format) : 0,
                                       static_cast<int32_t>(kv_dtype)};
  digest = XXH3_64bits_withSeed(tags.data(), sizeof(tags), digest);
  const std::vector<double> frequencies = InverseFrequencies(rope);
  return XXH3_64bits_withSeed(frequencies.data(), frequencies.size() * sizeof(double), digest);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Executor>> LoadRunner(const std::string& model_dir,
                                                     std::unique_ptr<Backend> backend,
                                                     EngineConfig& config, MemoryPlan* plan) {
  LH_RETURN_IF_ERROR(config.Validate());
  ModelSource source;
  LH_ASSIGN_OR_RETURN(source.config, LoadModelConfig(model_dir));
  LH_ASSIGN_OR_RETURN(const MappedFile config_json, MappedFile::Open(model_dir + "/config.json"));
  source.config_hash = XXH3_64bits(config_json.bytes().data(), config_json.bytes().size());
  LH_ASSIGN_OR_RETURN(source.checkpoint, Checkpoint::Open(model_dir));
  return LoadRunner(source, std::move(backend), config, plan);
}

absl::StatusOr<std::unique_ptr<Executor>> LoadRunner(const ModelSource& source,
                                                     std::unique_ptr<Backend> backend,
                                                     EngineConfig& config, MemoryPlan* plan) {
  LH_RETURN_IF_ERROR(config.Validate());
  auto model = std::make_unique<ModelConfig>(source.config);
  ModelShape& shape = model->shape;
  LH_RETURN_IF_ERROR(CompleteMaxModelLen(*model, config));
  if (!config.kv_dtype) config.kv_dtype = KvDTypeFor(source.checkpoint);
  if (!backend->is_host() && config.kv_dtype == DType::kF32) {
    spdlog::info("KV cache: {}, the type of this backend", DTypeName(backend->activation_dtype()));
    config.kv_dtype = backend->activation_dtype();
  }
  const KvLayout layout{.n_layers = shape.n_layers,
                        .n_kv_heads = shape.n_kv_heads,
                        .head_dim = shape.head_dim,
                        .dtype = *config.kv_dtype};

  LH_RETURN_IF_ERROR(backend->CheckKvLayout(layout));
  LH_RETURN_IF_ERROR(config.sparse.CheckModel(shape.n_layers, shape.n_heads));

  // Sizes first: what cannot fit is refused before gigabytes of weights were read.
  const int64_t usable_bytes = UsableBytes(config, *backend);
  MemoryPlan sizes;
  const int64_t logit_bytes =
      NLogitRows(config) * shape.vocab_size * static_cast<int64_t>(sizeof(float));
  const int64_t arena_bytes =
      Transformer::WorkspaceBytes(*model, backend->activation_dtype(), config.epoch_tokens,
                                  config.max_model_len, config.max_num_seqs);
  sizes.workspace_bytes = arena_bytes + logit_bytes;
  sizes.hidden_bytes = config.max_prefills * config.epoch_tokens * shape.hidden_size *
                       static_cast<int64_t>(sizeof(float));
  if (config.prefill_order == PrefillOrder::kLayer) {
    sizes.layer_store_bytes =
        config.max_model_len * shape.hidden_size * static_cast<int64_t>(sizeof(float));
  }
  if (backend->has_replay()) sizes.recorded = CountRecordedSteps(config, *model);
  LH_RETURN_IF_ERROR(PlanKvPool(config, layout, *backend, usable_bytes, sizes));

  config.model_digest = ModelDigest(source, config, model->rope, layout.dtype);
  LH_ASSIGN_OR_RETURN(ModelWeights loaded, LoadWeights(source.checkpoint, *model, *backend,
                                                       {.format = config.weight_format,
                                                        .cache_dir = config.weight_cache_dir}));
  auto weights = std::make_unique<ModelWeights>(std::move(loaded));
  shape.n_parameters = weights->n_parameters;
  sizes.weight_bytes = weights->n_bytes;
  LH_RETURN_IF_ERROR(PlanKvPool(config, layout, *backend, usable_bytes, sizes));

  Runner::Memory memory;
  LH_ASSIGN_OR_RETURN(memory.kv_pool, backend->Allocate(sizes.kv_pool_bytes));
  LH_ASSIGN_OR_RETURN(memory.workspace, backend->Allocate(arena_bytes));
  LH_ASSIGN_OR_RETURN(memory.hidden, backend->Allocate(sizes.hidden_bytes));
  if (sizes.layer_store_bytes > 0) {
    LH_ASSIGN_OR_RETURN(memory.layer_store, backend->Allocate(sizes.layer_store_bytes));
  }
  LH_ASSIGN_OR_RETURN(memory.logits, backend->Allocate(logit_bytes));
  if (!backend->is_host()) {
    LH_ASSIGN_OR_RETURN(memory.host_logits, AllocateHost(logit_bytes));
  }
  LogMemoryPlan(*model, config, sizes, layout, backend->Description());
  if (plan != nullptr) *plan = sizes;
  return std::make_unique<Runner>(std::move(backend), std::move(model), std::move(weights), config,
                                  layout, std::move(memory));
}

}  // namespace longhaul
