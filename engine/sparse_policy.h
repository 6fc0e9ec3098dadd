// Which attention a prefill uses: what a request may ask for, and the numbers it resolves to.
// Plain values; the pipeline that acts on them is engine/model/sparse_attention.cc.
// Algorithm: SampleAttention (arXiv 2406.15486), presets described in docs/accuracy.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/args.h"
#include "kernels/base/status.h"

namespace longhaul {

struct HeadBudgets;  // engine/head_budgets.h

enum class SparseMode : uint8_t {
  kDense,          // exact attention
  kSample,         // SampleAttention, preset `adaptive`
  kPaper,          // SampleAttention as published: 5 % of the rows, window of 8 % of the length
  kStreaming,      // sink and window only (A-shape); fast, loses what lies between
  kVerticalSlash,  // MInference: fixed budgets of columns and diagonals, 64 rows choose them
  kAuto,           // sample where its predicted cost is below dense, else dense
};

// "dense", "sample" (or its alias "adaptive"), "paper", "streaming", "vertical_slash", "auto".
absl::StatusOr<SparseMode> ParseSparseMode(const std::string& name);
std::string_view SparseModeName(SparseMode mode);
// Whether the mode keeps a share alpha of the mass; then 1 means dense.
bool UsesAlpha(SparseMode mode);

// What a request, a flag or a config file can set.
struct SparseOptions {
  SparseMode mode = SparseMode::kAuto;
  float alpha = 0.95f;             // target share of softmax mass, (0, 1]; 1 = equal to dense
  int64_t sink = 64;               // keys
  int64_t window = 128;            // keys; a multiple of 64
  int64_t stripe_width = 1;        // 1, 8, 16 or 64 keys
  int64_t sampled_rows = 48;       // equidistant voting rows per 4096 tokens
  int64_t tail_rows = 0;           // voting rows at the end of an epoch of 4096
  int64_t audit_rows = 16;         // rows that never vote and measure recall
  float keep_max = 0.25f;          // a key with this share of any voting row is always kept
  float recall_floor = 0.85f;      // mean audit recall of a head below which its epoch is repaired
  int64_t dense_tail_tokens = 64;  // last rows of a prompt attend to everything
  // mode kAuto: epochs that end at or before this many keys are dense (measured crossover).
  int64_t auto_min_keys = 4096;
  // mode kVerticalSlash: what each head keeps, the most common budget that MInference publishes.
  int64_t columns = 1000;    // keys, at least 30
  int64_t diagonals = 6096;  // in bands of 64, rounded up; at least 2 bands
  std::shared_ptr<const HeadBudgets> head_budgets = nullptr;  // instead, of each head; may be null

  // InvalidArgument naming the field, its value and the allowed range.
  absl::Status Validate() const;
  // InvalidArgument where the budgets are those of a model of other layers or query heads.
  absl::Status CheckModel(int32_t n_layers, int32_t n_heads) const;
  // Text of every value that changes KV content; part of the prefix cache key.
  std::string CacheKey() const;
};

// One epoch's attention, resolved from the options and the position: a pure function of
// (options, q_begin, n_q), so KV depends on the prefix alone.
struct EpochPolicy {
  bool dense = true;
  bool sample = false;  // false and not dense: streaming
  LocalPattern local;
  MassScope scope = MassScope::kRemote;
  bool bands = false;
  float keep_max = 2.0f;
  float dense_cost_fraction = 1.0f;
  float recall_floor = 0;
  float recall_target = 0;    // alpha is steered to it; 0 = it stays as requested
  float lost_row = 0;         // recall below which a sampled row is lost
  std::vector<int32_t> rows;  // [R] row numbers in the epoch: voting rows, then audit rows
  int64_t n_voting = 0;
  int64_t stripe_width = 1;
  bool fixed_budgets = false;  // sampled keys are taken by budgets, not by alpha
  // Where alpha decides, budgets are for heads that lose rows while at least this share of them is
  // local (SelectStreaming); above 1: for none.
  float budget_rows = 2.0f;
  HeadBudget budget;  // of every head, unless:
  std::shared_ptr<const HeadBudgets> head_budgets;

  bool HasBudgets() const { return fixed_budgets || budget_rows <= 1; }
  HeadBudget BudgetOf(int32_t layer, int32_t head) const;
};

EpochPolicy ResolveEpoch(const SparseOptions& options, int64_t q_begin, int64_t n_q);

// Most rows that any valid options sample in an epoch of this many tokens; sizes the workspace.
inline constexpr int64_t kMaxRowsOfKind = 512;  // sampled, tail or audit rows
int64_t MaxEpochRows(int64_t epoch_tokens);

// What is carried from one epoch of a sequence to the next: each head's current alpha (steered
// by the audit). Stored with the prefix cache at epoch borders, so a resumed prompt continues
// identically.
struct SparseState {
  std::vector<float> alpha;  // [n_layers, H]
};

// What one query head of one layer did in the epochs under a sparse policy.
struct HeadReport {
  int64_t kept_pairs = 0;
  int64_t causal_pairs = 0;
  int64_t n_epochs = 0;
  int64_t n_streaming = 0;
  int64_t n_dense = 0;  // by cost or repaired after the audit
  double recall_sum = 0;
  int64_t n_recalls = 0;

  void Merge(const HeadReport& other);
};

// Sums over all sparse epochs of a request; what the user sees.
struct SparseReport {
  int64_t kept_pairs = 0;     // (query, key) pairs attended, all heads and layers
  int64_t causal_pairs = 0;   // pairs of the whole causal triangle of the same rows
  int64_t n_head_epochs = 0;  // (layer, head, epoch) cells seen
  int64_t n_streaming = 0;
  int64_t n_dense = 0;     // of those: chosen dense by cost
  int64_t n_repaired = 0;  // of those: repaired after the audit
  std::vector<int64_t> recall_histogram =
      std::vector<int64_t>(1001, 0);  // of audit recalls, 1/1000
  double recall_sum = 0;
  float recall_min = 1.0f;
  int64_t n_recalls = 0;
  std::vector<HeadReport> heads;  // [n_layers, H], or empty where nobody asked for them

  double Density() const { return causal_pairs == 0 ? 1.0 : double(kept_pairs) / causal_pairs; }
  double RecallMean() const { return n_recalls == 0 ? 1.0 : recall_sum / n_recalls; }
  double RecallPercentile(double percentile) const;  // of 100; lower edge of the histogram cell
  void AddRecall(float recall);
  void Merge(const SparseReport& other);
};

}  // namespace longhaul
