#include "engine/sparse_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/head_budgets.h"
#include "kernels/base/checked_math.h"

namespace longhaul {
namespace {

constexpr std::pair<std::string_view, SparseMode> kModeNames[] = {
    {"dense", SparseMode::kDense},         {"sample", SparseMode::kSample},
    {"adaptive", SparseMode::kSample},     {"paper", SparseMode::kPaper},
    {"streaming", SparseMode::kStreaming}, {"vertical_slash", SparseMode::kVerticalSlash},
    {"auto", SparseMode::kAuto},
};

// As published (arXiv 2406.15486, v2).
constexpr double kPaperRowShare = 0.05;
constexpr double kPaperWindowShare = 0.08;

// MInference as published (arXiv 2407.02490): the last rows vote, and budgets hold at least the
// first columns and the nearest diagonals; of those 100, here two bands of 64.
constexpr int64_t kVerticalSlashRows = 64;
constexpr LocalPattern kVerticalSlashLocal{.sink = 30, .window = 2 * kBandWidth};

// Of mode sample. A row that keeps less is lost: most of what it would read is missing.
constexpr float kLostRow = 0.5f;
// A head that loses rows while this share of them is local gets a budget. Heads of a trained model
// had 0.88 and more, or 0.62 and less.
constexpr float kBudgetRows = 0.8f;

// What such a head keeps: the diagonals that its rows lean to, even by little. They are the same
// for all rows (what a rotary embedding takes for a near distance), so that rows which lose nothing
// show them too: an eighth of all bands kept nine of ten rows that their local keys lost.
HeadBudget LocalHeadBudget(const LocalPattern& local, int64_t n_keys) {
  constexpr int64_t kColumns = 64;
  constexpr int64_t kLeastBands = 16;
  constexpr int64_t kMostBands = 96;  // as many as MInference publishes
  const int64_t n_bands = std::clamp(n_keys / kBandWidth / 8, kLeastBands, kMostBands);
  return {.n_columns = static_cast<int32_t>(local.sink + kColumns),
          .n_bands = static_cast<int32_t>(local.window / kBandWidth + n_bands)};
}

absl::Status OutOfRange(std::string_view field, const std::string& value,
                        std::string_view allowed) {
  return absl::InvalidArgumentError(
      fmt::format("sparse.{} is {}, it must be {}", field, value, allowed));
}

absl::Status CheckInt(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return OutOfRange(field, fmt::format("{}", value), fmt::format("in [{}, {}]", low, high));
}

// Sampled rows of an epoch of n_q tokens: n for a whole one, fewer in proportion for a short one,
// whose pattern serves fewer rows and would otherwise cost as much to choose. At 128K keys choosing
// for 1024 rows took longer than attending.
int64_t RowsOfEpoch(int64_t n, int64_t n_q, int64_t n_least) {
  constexpr int64_t kWholeEpochTokens = 4096;
  return std::min(n, std::max(n_least, CeilDiv(n * n_q, kWholeEpochTokens)));
}

// So few still find what several rows share.
constexpr int64_t kLeastVotingRows = 16;
constexpr int64_t kLeastTailRows = 8;
constexpr int64_t kLeastAuditRows = 8;

// Spreads the bits of x evenly (the finalizer of splitmix64).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// `n_even` rows spread over [0, n_q - n_tail), then the last n_tail rows; ascending and unique.
std::vector<int32_t> VotingRows(int64_t n_q, int64_t n_even, int64_t n_tail) {
  std::vector<int32_t> rows;
  const int64_t n_head = n_q - n_tail;
  for (int64_t i = 0; i < n_even; ++i) {
    rows.push_back(static_cast<int32_t>((2 * i + 1) * n_head / (2 * n_even)));
  }
  for (int64_t i = n_head; i < n_q; ++i) rows.push_back(static_cast<int32_t>(i));
  return rows;
}

// One row drawn from each of n_audit equal strata, moved to the next row that does not vote.
// Equidistant audit rows would always sit beside voting rows and flatter the recall.
std::vector<int32_t> AuditRows(int64_t q_begin, int64_t n_q, int64_t n_audit,
                               const std::vector<int32_t>& voting) {
  std::vector<bool> taken(n_q, false);
  for (int32_t row : voting) taken[row] = true;
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < n_audit; ++i) {
    const int64_t begin = i * n_q / n_audit;
    const int64_t extent = std::max<int64_t>(1, (i + 1) * n_q / n_audit - begin);
    int64_t row = begin + static_cast<int64_t>(
                              Mix(static_cast<uint64_t>(q_begin) ^ Mix(static_cast<uint64_t>(i))) %
                              static_cast<uint64_t>(extent));
    while (taken[row]) row = (row + 1) % n_q;
    taken[row] = true;
    rows.push_back(static_cast<int32_t>(row));
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace

absl::StatusOr<SparseMode> ParseSparseMode(const std::string& name) {
  for (const auto& [known, mode] : kModeNames) {
    if (name == known) return mode;
  }
  return absl::InvalidArgumentError(fmt::format(
      "sparse mode '{}' is unknown; use dense, sample, paper, streaming, vertical_slash or auto",
      name));
}

std::string_view SparseModeName(SparseMode mode) {
  for (const auto& [name, known] : kModeNames) {
    if (mode == known) return name;
  }
  return "?";
}

bool UsesAlpha(SparseMode mode) {
  return mode != SparseMode::kDense && mode != SparseMode::kStreaming &&
         mode != SparseMode::kVerticalSlash;
}

absl::Status SparseOptions::Validate() const {
  // Written so that NaN fails.
  if (!(alpha > 0 && alpha <= 1)) {
    return OutOfRange("alpha", fmt::format("{}", alpha), "above 0 and at most 1");
  }
  if (!(keep_max > 0 && keep_max <= 2)) {
    return OutOfRange("keep_max", fmt::format("{}", keep_max), "above 0 and at most 2");
  }
  if (!(recall_floor >= 0 && recall_floor <= 1)) {
    return OutOfRange("recall_floor", fmt::format("{}", recall_floor), "in [0, 1]");
  }
  LH_RETURN_IF_ERROR(CheckInt("sink", sink, 0, 1 << 16));
  LH_RETURN_IF_ERROR(CheckInt("window", window, 64, 1 << 20));
  if (window % 64 != 0) return OutOfRange("window", fmt::format("{}", window), "a multiple of 64");
  if (stripe_width != 1 && stripe_width != 8 && stripe_width != 16 && stripe_width != 64) {
    return OutOfRange("stripe_width", fmt::format("{}", stripe_width), "1, 8, 16 or 64");
  }
  LH_RETURN_IF_ERROR(CheckInt("sampled_rows", sampled_rows, 1, kMaxRowsOfKind));
  LH_RETURN_IF_ERROR(CheckInt("tail_rows", tail_rows, 0, kMaxRowsOfKind));
  LH_RETURN_IF_ERROR(CheckInt("audit_rows", audit_rows, 1, kMaxRowsOfKind));
  LH_RETURN_IF_ERROR(CheckInt("dense_tail_tokens", dense_tail_tokens, 0, 1 << 16));
  LH_RETURN_IF_ERROR(CheckInt("columns", columns, 0, kMaxBudget));
  LH_RETURN_IF_ERROR(CheckInt("diagonals", diagonals, 0, kMaxBudget));
  return CheckInt("auto_min_keys", auto_min_keys, 0, int64_t{1} << 40);
}

absl::Status SparseOptions::CheckModel(int32_t n_layers, int32_t n_heads) const {
  if (mode != SparseMode::kVerticalSlash || head_budgets == nullptr) return absl::OkStatus();
  if (head_budgets->n_layers == n_layers && head_budgets->n_heads == n_heads) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(fmt::format(
      "the pattern file has {} layers with {} heads, the model has {} with {}; use the file of "
      "this model",
      head_budgets->n_layers, head_budgets->n_heads, n_layers, n_heads));
}

std::string SparseOptions::CacheKey() const {
  if (mode == SparseMode::kDense) return "dense";
  // Hexadecimal floats: exact. Options that the mode does not read are included all the same; at
  // worst two requests that could share a prefix do not.
  return fmt::format(
      "{} alpha={:a} sink={} window={} stripe={} rows={}+{}+{} keep={:a} floor={:a} "
      "tail={} auto={} columns={} diagonals={} budgets={:x}",
      SparseModeName(mode), alpha, sink, window, stripe_width, sampled_rows, tail_rows, audit_rows,
      keep_max, recall_floor, dense_tail_tokens, auto_min_keys, columns, diagonals,
      head_budgets == nullptr ? 0 : head_budgets->digest);
}

EpochPolicy ResolveEpoch(const SparseOptions& options, int64_t q_begin, int64_t n_q) {
  EpochPolicy policy;
  const int64_t q_end = q_begin + n_q;
  const SparseMode mode = options.mode;
  if (mode == SparseMode::kDense) return policy;
  if (UsesAlpha(mode) && options.alpha >= 1) return policy;
  if (mode == SparseMode::kAuto && q_end <= options.auto_min_keys) return policy;

  int64_t n_even = options.sampled_rows;
  int64_t n_tail = options.tail_rows;
  int64_t n_audit = options.audit_rows;
  int64_t n_enough = 0;
  policy.local = {.sink = options.sink, .window = options.window};
  switch (mode) {
    case SparseMode::kPaper: {
      // No sink: where there is one, the columns find it.
      const auto window =
          static_cast<int64_t>(std::ceil(kPaperWindowShare * static_cast<double>(q_end)));
      policy.local = {.sink = 0, .window = RoundUp(window, kBandWidth)};
      policy.scope = MassScope::kAll;
      policy.sample = true;
      n_even = static_cast<int64_t>(std::ceil(kPaperRowShare * static_cast<double>(n_q)));
      n_tail = 0;
      break;
    }
    case SparseMode::kStreaming:
      n_even = 1;  // nothing to vote on; the audit rows measure what is lost
      n_tail = 0;
      break;
    case SparseMode::kVerticalSlash:
      policy.local = kVerticalSlashLocal;
      policy.scope = MassScope::kAll;
      policy.sample = policy.bands = policy.fixed_budgets = true;
      policy.budget = MakeHeadBudget(options.columns, options.diagonals);
      policy.head_budgets = options.head_budgets;
      n_even = 0;
      n_tail = kVerticalSlashRows;
      break;
    default:
      n_enough = n_even + n_tail + n_audit;
      n_even = RowsOfEpoch(n_even, n_q, kLeastVotingRows);
      n_tail = RowsOfEpoch(n_tail, n_q, kLeastTailRows);
      n_audit = RowsOfEpoch(n_audit, n_q, kLeastAuditRows);
      policy.sample = true;
      policy.bands = true;
      policy.keep_max = options.keep_max;
      policy.recall_floor = options.recall_floor;
      policy.recall_target = options.alpha;
      policy.lost_row = kLostRow;
      if (options.stripe_width == 1) {  // columns of a budget are single keys
        policy.budget_rows = kBudgetRows;
        policy.budget = LocalHeadBudget(policy.local, q_end);
      }
      break;
  }
  // A few rows, however long the context, cost less than choosing a pattern for them.
  const bool too_small = n_q < std::max(n_enough, n_even + n_tail + n_audit);
  if (too_small || q_end <= policy.local.sink + policy.local.window) return EpochPolicy{};

  policy.dense = false;
  policy.stripe_width = policy.fixed_budgets ? 1 : options.stripe_width;
  policy.rows = VotingRows(n_q, n_even, n_tail);
  policy.n_voting = static_cast<int64_t>(policy.rows.size());
  const std::vector<int32_t> audit = AuditRows(q_begin, n_q, n_audit, policy.rows);
  policy.rows.insert(policy.rows.end(), audit.begin(), audit.end());
  return policy;
}

HeadBudget EpochPolicy::BudgetOf(int32_t layer, int32_t head) const {
  if (head_budgets == nullptr) return budget;
  return head_budgets->budgets[int64_t{layer} * head_budgets->n_heads + head];
}

int64_t MaxEpochRows(int64_t epoch_tokens) {
  const auto paper =
      static_cast<int64_t>(std::ceil(kPaperRowShare * static_cast<double>(epoch_tokens)));
  return std::min(epoch_tokens, std::max(3 * kMaxRowsOfKind, paper + kMaxRowsOfKind));
}

double SparseReport::RecallPercentile(double percentile) const {
  if (n_recalls == 0) return 1.0;
  const double rank = std::max(1.0, std::ceil(percentile / 100.0 * static_cast<double>(n_recalls)));
  int64_t n_below = 0;
  for (size_t cell = 0; cell < recall_histogram.size(); ++cell) {
    n_below += recall_histogram[cell];
    if (static_cast<double>(n_below) >= rank) return static_cast<double>(cell) / 1000.0;
  }
  return 1.0;
}

void SparseReport::AddRecall(float recall) {
  const float clipped = recall >= 0 ? std::min(recall, 1.0f) : 0.0f;  // NaN counts as lost
  ++recall_histogram[static_cast<size_t>(clipped * 1000.0f)];
  recall_sum += clipped;
  recall_min = std::min(recall_min, clipped);
  ++n_recalls;
}

void HeadReport::Merge(const HeadReport& other) {
  kept_pairs += other.kept_pairs;
  causal_pairs += other.causal_pairs;
  n_epochs += other.n_epochs;
  n_streaming += other.n_streaming;
  n_dense += other.n_dense;
  recall_sum += other.recall_sum;
  n_recalls += other.n_recalls;
}

void SparseReport::Merge(const SparseReport& other) {
  kept_pairs += other.kept_pairs;
  causal_pairs += other.causal_pairs;
  n_head_epochs += other.n_head_epochs;
  n_streaming += other.n_streaming;
  n_dense += other.n_dense;
  n_repaired += other.n_repaired;
  for (size_t cell = 0; cell < recall_histogram.size(); ++cell) {
    recall_histogram[cell] += other.recall_histogram[cell];
  }
  recall_sum += other.recall_sum;
  recall_min = std::min(recall_min, other.recall_min);
  n_recalls += other.n_recalls;
  if (heads.size() < other.heads.size()) heads.resize(other.heads.size());
  for (size_t i = 0; i < other.heads.size(); ++i) heads[i].Merge(other.heads[i]);
}

}  // namespace longhaul
