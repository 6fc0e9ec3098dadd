#include "engine/head_budgets.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/checked_math.h"
#include "kernels/base/json_depth.h"

namespace longhaul {
namespace {

using Json = nlohmann::json;

// The largest published file, of 80 layers with 64 heads, has 0.3 MB.
constexpr int64_t kMaxFileBytes = 16 << 20;
constexpr int kMaxDepth = 4;
constexpr size_t kMaxLayers = 1024;
constexpr size_t kMaxHeads = 1024;

absl::Status Bad(size_t layer, size_t head, const std::string& what) {
  return absl::InvalidArgumentError(fmt::format("layer {}, head {}: {}", layer, head, what));
}

absl::StatusOr<int64_t> ReadCount(const Json& value, size_t layer, size_t head,
                                  std::string_view name) {
  if (value.is_number_integer()) {
    const auto count = value.is_number_unsigned() && value.get<uint64_t>() > kMaxBudget
                           ? kMaxBudget + 1
                           : value.get<int64_t>();
    if (count >= 0 && count <= kMaxBudget) return count;
  }
  return Bad(layer, head,
             fmt::format("the number of {} must be an integer in [0, {}]", name, kMaxBudget));
}

absl::StatusOr<HeadBudget> ReadEntry(const Json& entry, size_t layer, size_t head) {
  if (!entry.is_array() || entry.size() < 3 || !entry[0].is_string()) {
    return Bad(layer, head, "must be [pattern, columns, diagonals, score]");
  }
  const auto& pattern = entry[0].get_ref<const std::string&>();
  const bool by_place = pattern == "stream_llm";
  if (!by_place && pattern != "vertical_and_slash") {
    return Bad(layer, head,
               fmt::format("pattern '{}' is not supported; use vertical_and_slash or stream_llm",
                           pattern.substr(0, 40)));
  }
  LH_ASSIGN_OR_RETURN(const int64_t n_columns, ReadCount(entry[1], layer, head, "columns"));
  LH_ASSIGN_OR_RETURN(const int64_t n_diagonals, ReadCount(entry[2], layer, head, "diagonals"));
  HeadBudget budget = MakeHeadBudget(n_columns, n_diagonals);
  budget.by_place = by_place ? 1 : 0;
  return budget;
}

absl::Status ReadLayer(const Json& heads, size_t layer, HeadBudgets& out) {
  const auto n_heads = static_cast<size_t>(out.n_heads);
  if (!heads.is_object() || heads.size() != n_heads) {
    return absl::InvalidArgumentError(fmt::format(
        "layer {} must be an object with one entry for each of {} heads", layer, n_heads));
  }
  for (size_t head = 0; head < n_heads; ++head) {
    const auto entry = heads.find(std::to_string(head));
    if (entry == heads.end()) return Bad(layer, head, "is missing");
    LH_ASSIGN_OR_RETURN(const HeadBudget budget, ReadEntry(*entry, layer, head));
    out.budgets.push_back(budget);
  }
  return absl::OkStatus();
}

}  // namespace

HeadBudget MakeHeadBudget(int64_t n_columns, int64_t n_diagonals) {
  return {.n_columns = static_cast<int32_t>(n_columns),
          .n_bands = static_cast<int32_t>(CeilDiv(n_diagonals, kBandWidth))};
}

absl::StatusOr<HeadBudgets> ParseHeadBudgets(std::string_view text) {
  if (!JsonDepthWithin(text, kMaxDepth)) {
    return absl::InvalidArgumentError("is nested too deeply for a list of layers");
  }
  const Json layers = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (layers.is_discarded()) return absl::InvalidArgumentError("is not valid JSON");
  if (!layers.is_array() || layers.empty() || layers.size() > kMaxLayers ||
      !layers[0].is_object() || layers[0].empty() || layers[0].size() > kMaxHeads) {
    return absl::InvalidArgumentError(
        fmt::format("must be a list of 1 to {} layers, each an object of 1 to {} heads", kMaxLayers,
                    kMaxHeads));
  }
  HeadBudgets out{.n_layers = static_cast<int32_t>(layers.size()),
                  .n_heads = static_cast<int32_t>(layers[0].size()),
                  .budgets = {},
                  .digest = 0};
  out.budgets.reserve(layers.size() * layers[0].size());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    LH_RETURN_IF_ERROR(ReadLayer(layers[layer], layer, out));
  }
  out.digest = XXH3_64bits_withSeed(out.budgets.data(), out.budgets.size() * sizeof(HeadBudget),
                                    static_cast<uint64_t>(out.n_heads));
  return out;
}

absl::StatusOr<std::shared_ptr<const HeadBudgets>> ReadHeadBudgets(const std::string& path) {
  const auto named = [&](const absl::Status& status) {
    return absl::Status(status.code(),
                        fmt::format("pattern file {}: {}", path, std::string(status.message())));
  };
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t n_bytes = file ? static_cast<int64_t>(file.tellg()) : -1;
  if (n_bytes < 0) return named(absl::NotFoundError("cannot be opened"));
  if (n_bytes > kMaxFileBytes) {
    return named(absl::InvalidArgumentError(
        fmt::format("has {} bytes; at most {} are read", n_bytes, kMaxFileBytes)));
  }
  std::string text(n_bytes, '\0');
  file.seekg(0);
  if (!file.read(text.data(), n_bytes)) return named(absl::DataLossError("cannot be read"));
  absl::StatusOr<HeadBudgets> budgets = ParseHeadBudgets(text);
  if (!budgets.ok()) return named(budgets.status());
  return std::make_shared<const HeadBudgets>(*std::move(budgets));
}

}  // namespace longhaul
