// StepPlan: one step of work as plain integers, made by the scheduler, executed by every rank.
// Executor: what the engine needs from the model side; the real one is engine/runner.h, the tests
// of the scheduler use a fake. One coarse virtual call per step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.h"
#include "engine/sparse_policy.h"
#include "kernels/args.h"
#include "kernels/base/status.h"

namespace longhaul {

// One sequence generates one token: feed `token` at `position`, get logits for position + 1.
struct DecodeRow {
  int64_t seq_id = 0;
  int32_t token = 0;
  int64_t position = 0;
  std::span<const int32_t> pages;  // [position / 64 + 1] in token order; the last one is writable
  // The logits are wanted for nothing but this: the executor may answer with the token alone.
  std::optional<TokenDraw> draw{};
};

// Layers [layer_begin, layer_end) of one epoch of one prompt. Layer 0 starts from `tokens`; a later
// layer continues from the hidden state that the previous slice of the same epoch left in the slot.
struct PrefillSlice {
  int64_t seq_id = 0;
  int64_t begin = 0;  // token positions [begin, end); end is on the epoch grid or the
  int64_t end = 0;    // end of the prompt
  int32_t layer_begin = 0;
  int32_t layer_end = 0;
  int64_t prompt_tokens = 0;        // length of the whole prompt
  std::span<const int32_t> tokens;  // [end - begin]
  std::span<const int32_t> pages;   // [ceil(end / 64)]
  int32_t hidden_slot = 0;          // in [0, max_prefills): holds [epoch_tokens, E] while paused;
                                    // max_prefills: the store of the one prompt that goes layer by
                                    // layer, [max_model_len, E], rows are positions
  const SparseOptions* sparse = nullptr;
  SparseState* sparse_state = nullptr;  // of the sequence; updated
  // The tokens whose logprobs are wanted: [begin + 1, end + 1) without what is behind the prompt.
  // Only of a slice that reaches the last layer; empty: none.
  std::span<const int32_t> logprob_tokens{};
  int32_t n_top_logprobs = 0;           // and of so many likeliest ones
  bool report_heads = false;            // SliceResult.report.heads
  SparseState* border_state = nullptr;  // if set, [n_layers, H]: gets the slice's layers as they
                                        // are behind this epoch, before the next slice changes them

  // Of the slice's rows, so many last ones are read behind the last layer. There the others leave
  // their keys and values and go no further.
  int64_t NReadRows() const {
    if (!logprob_tokens.empty()) return end - begin;
    return end == prompt_tokens ? 1 : 0;
  }
};

struct PageCopy {
  int32_t src = 0;
  int32_t dst = 0;
};

struct StepPlan {
  std::vector<PageCopy> copies;       // executed first
  std::vector<DecodeRow> decode;      // all in one batch
  std::vector<PrefillSlice> prefill;  // in order
  bool empty() const { return copies.empty() && decode.empty() && prefill.empty(); }
};

struct SliceResult {
  int64_t elapsed_us = 0;
  SparseReport report;            // of this slice alone
  std::span<const float> logits;  // [V] of the prompt's last token, when end == prompt_tokens and
                                  // layer_end == n_layers; else empty
  PromptLogprobsEvent prompt_logprobs;  // of the slice's logprob_tokens
};

// The answer to a decode row: logits [V], or without them the token of its draw (kBrokenLogits of
// kernels/draw_token.h where there is none).
struct RowResult {
  std::span<const float> logits;
  int32_t token = 0;
};

struct StepResult {
  int64_t decode_us = 0;
  std::vector<RowResult> decode;    // per decode row
  std::vector<SliceResult> slices;  // per prefill slice
};

// What the scheduler must know of the model.
struct ModelShape {
  int32_t n_layers = 0;
  int32_t n_heads = 0;  // query heads
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t hidden_size = 0;
  int32_t vocab_size = 0;
  int64_t max_positions = 0;  // context length of the checkpoint
  int64_t n_parameters = 0;
};

class Executor {
 public:
  virtual ~Executor() = default;
  virtual const ModelShape& shape() const = 0;
  virtual int32_t n_pages() const = 0;  // of the KV pool
  // Spans in the result stay valid until the next call. A status that is not OK is fatal to the
  // requests of this step, not to the engine.
  virtual absl::StatusOr<StepResult> Execute(const StepPlan& plan) = 0;
};

}  // namespace longhaul
