#include "engine/self_measure.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "kernels/base/checked_math.h"
#include "kernels/kv_layout.h"
#include "spdlog/spdlog.h"

namespace longhaul {
namespace {

// Long enough that attention shows beside the rest, short enough for the budget.
constexpr int64_t kFarTokens = 16'384;
constexpr int64_t kSparseFarTokens = 65'536;
constexpr int64_t kMaxDecodeRows = 8;
constexpr int32_t kMaxLayers = 2;

// Every step is a sequence of its own.
class Measurement {
 public:
  Measurement(const EngineConfig& config, Executor& executor, CostModel& model)
      : config_(config), executor_(executor), shape_(executor.shape()), model_(model) {}

  absl::Status Run() {
    const SparseOptions dense{.mode = SparseMode::kDense};
    // Caches, threads and memory are cold the first time; its time is not learned.
    LH_RETURN_IF_ERROR(Prefill(dense, 0, kPageTokens, /*learn=*/false));
    LH_RETURN_IF_ERROR(Prefill(dense, 0, kPageTokens));
    LH_RETURN_IF_ERROR(Decode(1, 1));
    LH_RETURN_IF_ERROR(Decode(kMaxDecodeRows, kPageTokens));
    LH_RETURN_IF_ERROR(Decode(1, kFarTokens));
    LH_RETURN_IF_ERROR(Prefill(dense, 0, config_.epoch_tokens / 4));
    LH_RETURN_IF_ERROR(Prefill(dense, 0, config_.epoch_tokens));
    LH_RETURN_IF_ERROR(Prefill(dense, kFarTokens, kPageTokens));
    SparseOptions sparse = config_.sparse;
    if (sparse.mode == SparseMode::kDense) sparse = SparseOptions();
    sparse.mode = SparseMode::kSample;
    // Keys that nobody wrote are all alike and would be kept all: a small share of them is asked
    // for, and nothing is repaired, so that the sparse kernels are what runs.
    sparse.keep_max = 2;
    sparse.recall_floor = 0;
    for (int64_t begin : {kFarTokens, kSparseFarTokens}) {
      const auto local_keys = static_cast<float>(sparse.sink + sparse.window);
      sparse.alpha = std::min(0.5f, 1.2f * local_keys / static_cast<float>(begin) + 0.01f);
      LH_RETURN_IF_ERROR(Prefill(sparse, begin, config_.epoch_tokens));
    }
    return Prefill(dense, kFarTokens, config_.epoch_tokens);
  }

  int64_t spent_us() const { return spent_us_; }

 private:
  int32_t n_layers() const { return std::min(kMaxLayers, shape_.n_layers); }
  bool Fits(double predicted_us) const {
    return !model_.learned() || static_cast<double>(spent_us_) + predicted_us < kSelfMeasureUs;
  }

  PrefillWork WorkOf(const SparseOptions& options, int64_t begin, int64_t end,
                     int64_t prompt_tokens) const {
    const PrefillWork layer =
        CostModel::EpochWork(options, DensityModel(options), begin, end, prompt_tokens);
    if (n_layers() < shape_.n_layers) return layer * n_layers();
    PrefillWork work = layer * (n_layers() - 1);
    work += CostModel::LastLayerWork(shape_, begin, end, prompt_tokens);
    return work;
  }

  // The last `n_last` pages are distinct ones from `first` on, to be written. Those before are
  // only read, and may be any from `others` on, again and again.
  std::vector<int32_t> Pages(int64_t n, int64_t n_last, int64_t first, int64_t others) const {
    std::vector<int32_t> pages(n);
    for (int64_t i = 0; i < n - n_last; ++i) {
      pages[i] = static_cast<int32_t>(others + i % (executor_.n_pages() - others));
    }
    for (int64_t i = 0; i < n_last; ++i) {
      pages[n - n_last + i] = static_cast<int32_t>(first + i);
    }
    return pages;
  }

  // n_tokens at `begin` or at the last border of an epoch before it that this configuration has.
  absl::Status Prefill(const SparseOptions& options, int64_t begin, int64_t n_tokens,
                       bool learn = true) {
    const int64_t epoch = config_.epoch_tokens;
    n_tokens = std::min({n_tokens, epoch, config_.max_model_len});
    begin = std::min(begin, config_.max_model_len - n_tokens) / epoch * epoch;
    const int64_t n_written = CeilDiv(n_tokens, kPageTokens);
    const int64_t n_pages = executor_.n_pages();
    if (n_written > n_pages || (begin > 0 && n_written == n_pages)) return absl::OkStatus();
    const int64_t end = begin + n_tokens;
    // No row counts as the prompt's end where the slice is a whole epoch.
    const int64_t prompt_tokens = n_tokens == epoch ? end + options.dense_tail_tokens + 1 : end;
    PrefillWork work = WorkOf(options, begin, end, prompt_tokens);
    if (!Fits(model_.PrefillUs(work))) return absl::OkStatus();

    const std::vector<int32_t> tokens(n_tokens, 0);
    const std::vector<int32_t> pages = Pages(CeilDiv(end, kPageTokens), n_written, 0, n_written);
    SparseState state;
    state.alpha.assign(int64_t{shape_.n_layers} * shape_.n_heads, options.alpha);
    StepPlan plan;
    plan.prefill.push_back({.seq_id = next_id_--,
                            .begin = begin,
                            .end = end,
                            .layer_begin = 0,
                            .layer_end = n_layers(),
                            .prompt_tokens = prompt_tokens,
                            .tokens = tokens,
                            .pages = pages,
                            .hidden_slot = 0,
                            .sparse = &options,
                            .sparse_state = &state});
    LH_ASSIGN_OR_RETURN(const StepResult result, Execute(plan));
    const SliceResult& slice = result.slices[0];
    spent_us_ += slice.elapsed_us;
    if (work.kept_pairs > 0) {
      work.kept_pairs = static_cast<double>(slice.report.kept_pairs) / shape_.n_heads;
    }
    if (learn) model_.ObservePrefill(work, static_cast<double>(slice.elapsed_us));
    return absl::OkStatus();
  }

  // Each of n_rows sequences sees n_keys keys.
  absl::Status Decode(int64_t n_rows, int64_t n_keys) {
    n_keys = std::min(n_keys, config_.max_model_len);
    const int64_t n_others = n_keys > kPageTokens ? 1 : 0;
    n_rows = std::min<int64_t>({n_rows, config_.max_num_seqs, executor_.n_pages() - n_others});
    if (n_rows < 1) return absl::OkStatus();
    // Nothing is known of decoding yet; it reads the same weights as a very short prompt.
    const double n_cells = shape_.n_layers;
    if (!Fits(model_.PrefillUs({.cells = n_cells, .tokens = n_cells}))) return absl::OkStatus();

    std::vector<std::vector<int32_t>> pages;
    for (int64_t row = 0; row < n_rows; ++row) {
      pages.push_back(Pages(CeilDiv(n_keys, kPageTokens), 1, row, n_rows));
    }
    StepPlan plan;
    for (int64_t row = 0; row < n_rows; ++row) {
      plan.decode.push_back(
          {.seq_id = next_id_--, .token = 0, .position = n_keys - 1, .pages = pages[row]});
    }
    LH_ASSIGN_OR_RETURN(const StepResult result, Execute(plan));
    spent_us_ += result.decode_us;
    model_.ObserveDecode(n_rows, n_rows * n_keys, static_cast<double>(result.decode_us));
    return absl::OkStatus();
  }

  absl::StatusOr<StepResult> Execute(const StepPlan& plan) {
    absl::StatusOr<StepResult> result = executor_.Execute(plan);
    if (result.ok() && result->decode.size() == plan.decode.size() &&
        result->slices.size() == plan.prefill.size()) {
      return result;
    }
    const absl::Status status =
        result.ok() ? absl::InternalError("the result does not match the plan") : result.status();
    return absl::Status(status.code(), fmt::format("the self-measurement at the start failed: {}",
                                                   std::string(status.message())));
  }

  const EngineConfig& config_;
  Executor& executor_;
  const ModelShape& shape_;
  CostModel& model_;
  int64_t spent_us_ = 0;
  int64_t next_id_ = -1;
};

// Millions per second of something that a model predicts the time of.
double MillionsPerSecond(double n, double us) { return n / std::max(us, 1e-9); }

}  // namespace

absl::Status SelfMeasure(const EngineConfig& config, Executor& executor, CostModel& model) {
  Measurement measurement(config, executor, model);
  LH_RETURN_IF_ERROR(measurement.Run());
  const double n_layers = executor.shape().n_layers;
  const double n_heads = executor.shape().n_heads;
  const double n_tokens = 1'024;
  const PrefillWork brief{.cells = n_layers,
                          .tokens = n_layers * n_tokens,
                          .dense_pairs = n_layers * n_tokens * n_tokens / 2};
  constexpr double kPairs = 1e6;
  spdlog::info(
      "measured in {:.2f} s: prefill of {} tokens {:.0f} tokens/s, attention {:.0f} M pairs/s "
      "dense and {:.0f} sparse, decode step {:.2f} ms of one, {:.2f} ms of {}",
      static_cast<double>(measurement.spent_us()) * 1e-6, n_tokens,
      1e6 * MillionsPerSecond(n_tokens, model.PrefillUs(brief)),
      MillionsPerSecond(kPairs * n_heads, model.PrefillUs({.dense_pairs = kPairs})),
      MillionsPerSecond(kPairs * n_heads, model.PrefillUs({.kept_pairs = kPairs})),
      1e-3 * model.DecodeUs(1, kPageTokens),
      1e-3 * model.DecodeUs(kMaxDecodeRows, kMaxDecodeRows * kPageTokens), kMaxDecodeRows);
  return absl::OkStatus();
}

}  // namespace longhaul
