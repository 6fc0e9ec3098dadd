#include "engine/config.h"

#include <fmt/format.h>

#include "kernels/kv_layout.h"

namespace longhaul {
namespace {

absl::Status CheckRange(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}; it must be in [{}, {}]", name, value, low, high));
}

}  // namespace

absl::Status EngineConfig::Validate() const {
  LH_RETURN_IF_ERROR(CheckRange("max_model_len", max_model_len, 0, int64_t{1} << 30));
  LH_RETURN_IF_ERROR(CheckRange("kv_cache_bytes", kv_cache_bytes, 0, int64_t{1} << 50));
  LH_RETURN_IF_ERROR(CheckRange("epoch_tokens", epoch_tokens, kPageTokens, 1 << 20));
  if (epoch_tokens % kPageTokens != 0) {
    return absl::InvalidArgumentError(
        fmt::format("epoch_tokens is {}; it must be a multiple of the page size {}", epoch_tokens,
                    kPageTokens));
  }
  if (kv_dtype && kv_dtype != DType::kF32 && kv_dtype != DType::kBF16 &&
      kv_dtype != DType::kF8E4M3) {
    return absl::InvalidArgumentError(
        fmt::format("kv_dtype is {}; it must be f32, bf16 or fp8_e4m3", DTypeName(*kv_dtype)));
  }
  LH_RETURN_IF_ERROR(CheckRange("slice_us", slice_us, 1'000, 60'000'000));
  LH_RETURN_IF_ERROR(CheckRange("max_num_seqs", max_num_seqs, 1, 1 << 16));
  LH_RETURN_IF_ERROR(CheckRange("max_prefills", max_prefills, 1, 1024));
  LH_RETURN_IF_ERROR(CheckRange("max_num_queued_reqs", max_num_queued_reqs, 1, 1 << 20));
  LH_RETURN_IF_ERROR(
      CheckRange("max_num_queued_tokens", max_num_queued_tokens, 1, int64_t{1} << 40));
  LH_RETURN_IF_ERROR(CheckRange("retry_keep_us", retry_keep_us, 0, 86'400'000'000));
  if (!(gpu_memory_utilization > 0 && gpu_memory_utilization <= 1)) {
    return absl::InvalidArgumentError(fmt::format(
        "gpu_memory_utilization is {}; it must be above 0, at most 1", gpu_memory_utilization));
  }
  if (!(retry_keep_share >= 0 && retry_keep_share <= 1)) {
    return absl::InvalidArgumentError(
        fmt::format("retry_keep_share is {}; it must be in [0, 1]", retry_keep_share));
  }
  return sparse.Validate();
}

}  // namespace longhaul
