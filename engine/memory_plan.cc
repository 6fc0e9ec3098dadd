#include "engine/memory_plan.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <limits>

#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

// Share of the available memory that the KV pool takes when nobody says how much, and how many
// sequences of the full length it is at most meant for.
constexpr double kAutoKvShare = 0.4;
constexpr int64_t kAutoKvSequences = 8;

double GiB(int64_t n_bytes) { return static_cast<double>(n_bytes) / (int64_t{1} << 30); }

absl::Status DoesNotFit(const MemoryPlan& plan, const Backend& backend, int64_t usable_bytes) {
  std::string layer_store;
  if (plan.layer_store_bytes > 0) {
    layer_store = fmt::format(
        ", or prefill by epoch: the store of a whole prompt that goes layer by layer takes {:.2f} "
        "GiB of them",
        GiB(plan.layer_store_bytes));
  }
  return absl::ResourceExhaustedError(fmt::format(
      "a KV cache of {:.2f} GiB does not fit: with {:.2f} GiB of weights, {:.2f} GiB of workspace "
      "and recorded steps and {:.2f} GiB of hidden states it exceeds the {:.2f} GiB of this {}; "
      "lower the KV cache memory{}",
      GiB(plan.kv_pool_bytes), GiB(plan.weight_bytes),
      GiB(plan.workspace_bytes + plan.recorded.n_bytes),
      GiB(plan.hidden_bytes + plan.layer_store_bytes), GiB(usable_bytes),
      backend.is_host() ? "machine" : "GPU that may be used (--gpu-memory-utilization)",
      layer_store));
}

// Pages of the KV pool when nobody says how many.
int64_t AutoPages(const EngineConfig& config, int64_t page_bytes, const Backend& backend,
                  int64_t left_bytes) {
  if (!backend.is_host()) return left_bytes / page_bytes;
  const int64_t n_sequences = std::min(config.max_num_seqs, kAutoKvSequences);
  const double share = kAutoKvShare * static_cast<double>(backend.Memory().available_bytes);
  return std::min(n_sequences * CeilDiv(config.max_model_len, kPageTokens),
                  static_cast<int64_t>(share / static_cast<double>(page_bytes)));
}

}  // namespace

int64_t UsableBytes(const EngineConfig& config, const Backend& backend) {
  const MemoryInfo memory = backend.Memory();
  if (backend.is_host()) return memory.total_bytes;
  const auto share =
      static_cast<int64_t>(config.gpu_memory_utilization * static_cast<double>(memory.total_bytes));
  return share - (memory.total_bytes - memory.available_bytes);
}

absl::Status PlanKvPool(const EngineConfig& config, const KvLayout& layout, const Backend& backend,
                        int64_t usable_bytes, MemoryPlan& plan) {
  const int64_t page_bytes = layout.PageBytes();
  const int64_t others = plan.weight_bytes + plan.workspace_bytes + plan.hidden_bytes +
                         plan.layer_store_bytes + plan.recorded.n_bytes;
  const int64_t left = std::max<int64_t>(usable_bytes - std::min(others, usable_bytes), 0);
  int64_t n_pages = config.kv_cache_bytes / page_bytes;
  if (config.kv_cache_bytes == 0) n_pages = AutoPages(config, page_bytes, backend, left);
  n_pages = std::min<int64_t>(n_pages, std::numeric_limits<int32_t>::max());  // page ids are int32
  plan.kv_pool_bytes =
      CheckedMul(n_pages, page_bytes).value_or(std::numeric_limits<int64_t>::max());
  if (n_pages == 0 && config.kv_cache_bytes == 0) {
    plan.kv_pool_bytes = page_bytes;
    return DoesNotFit(plan, backend, usable_bytes);
  }
  if (n_pages == 0) {
    return absl::InvalidArgumentError(fmt::format(
        "the KV cache is smaller than one page of this model ({} bytes); raise the KV cache memory",
        page_bytes));
  }
  if (plan.kv_pool_bytes > left) return DoesNotFit(plan, backend, usable_bytes);
  if (!backend.is_host()) {
    plan.reserve_bytes = backend.Memory().total_bytes - others - plan.kv_pool_bytes;
  }
  return absl::OkStatus();
}

void LogMemoryPlan(const ModelConfig& model, const EngineConfig& config, const MemoryPlan& plan,
                   const KvLayout& layout, const std::string& backend) {
  const ModelShape& s = model.shape;
  spdlog::info(
      "model   {}: {} layers, {} heads ({} kv) of {}, hidden {}, vocabulary {}, {:.1f} M "
      "parameters",
      model.family->name, s.n_layers, s.n_heads, s.n_kv_heads, s.head_dim, s.hidden_size,
      s.vocab_size, static_cast<double>(s.n_parameters) / 1e6);
  spdlog::info("backend {}", backend);
  spdlog::info("memory  weights       {:9.3f} GiB", GiB(plan.weight_bytes));
  spdlog::info("memory  KV cache      {:9.3f} GiB  {} tokens in pages of {} bytes, {}",
               GiB(plan.kv_pool_bytes), plan.kv_pool_bytes / layout.PageBytes() * kPageTokens,
               layout.PageBytes(), DTypeName(layout.dtype));
  spdlog::info("memory  workspace     {:9.3f} GiB  at most, for {} tokens",
               GiB(plan.workspace_bytes), config.max_model_len);
  spdlog::info("memory  hidden states {:9.3f} GiB  {} slots of {} tokens", GiB(plan.hidden_bytes),
               config.max_prefills, config.epoch_tokens);
  if (plan.layer_store_bytes > 0) {
    spdlog::info("memory  layer store   {:9.3f} GiB  one prompt of {} tokens, layer by layer",
                 GiB(plan.layer_store_bytes), config.max_model_len);
  }
  if (plan.recorded.n_recordings > 0) {
    spdlog::info("memory  recorded steps{:9.3f} GiB  reckoned for {} sizes of decode steps",
                 GiB(plan.recorded.n_bytes), plan.recorded.n_recordings);
  }
  if (plan.reserve_bytes > 0) {
    spdlog::info("memory  reserve       {:9.3f} GiB  driver, cuBLAS, kernels' scratch, others",
                 GiB(plan.reserve_bytes));
  }
  const int64_t pool_tokens = plan.kv_pool_bytes / layout.PageBytes() * kPageTokens;
  if (pool_tokens < config.max_model_len) {
    spdlog::warn(
        "the KV cache holds {} tokens, less than max_model_len {}: longer prompts are refused",
        pool_tokens, config.max_model_len);
  }
}

}  // namespace longhaul
