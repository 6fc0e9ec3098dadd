// FakeExecutor: an Executor whose "model" is integer arithmetic, to test scheduler and engine
// without one. Test code only; same thread rules as any executor.
//
// Keys and values are 64-bit hashes that depend on exactly what real ones depend on: the tokens
// before, the layer, under a sparse policy also on the whole epoch, the carried state and whether
// the row is one of the last of the prompt. Every row reads every earlier page, so a wrong, stale
// or overwritten page changes the answer; equal answers mean equal caches. The plan itself is
// checked too: violations() lists what no correct scheduler may do. Time is virtual: a fixed cost
// formula. Slot max_prefills holds a whole prompt, as a map of its epochs.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/sequence.h"
#include "engine/step_plan.h"
#include "fmt/format.h"
#include "kernels/base/checked_math.h"
#include "kernels/draw_token.h"
#include "kernels/kv_layout.h"

namespace longhaul::testing {

inline uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a ^ (b * 0x9e3779b97f4a7c15u + 0x7f4a7c15u + (a << 6) + (a >> 2));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

struct FakeModel {
  ModelShape shape{.n_layers = 3,
                   .n_heads = 2,
                   .n_kv_heads = 1,
                   .head_dim = 8,
                   .hidden_size = 16,
                   .vocab_size = 61,
                   .max_positions = 1 << 20,
                   .n_parameters = 10'000};
  int32_t n_pages = 64;
  int64_t epoch_tokens = 128;
  int64_t max_prefills = 4;
  // Virtual cost of one layer of a slice, and of a decode step.
  double cell_us = 20;
  double token_us = 1;
  double pair_us = 0.002;
  double row_us = 5;
  double kv_share = 0.2;  // of a layer's own costs, for rows that leave it keys and values alone
};

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(FakeModel model)
      : model_(model),
        kv_(static_cast<size_t>(model.n_pages) * model.shape.n_layers * kPageTokens, 0),
        slots_(model.max_prefills) {}

  const ModelShape& shape() const override { return model_.shape; }
  int32_t n_pages() const override { return model_.n_pages; }

  const std::vector<std::string>& violations() const { return violations_; }
  int64_t n_steps() const { return n_steps_; }
  int64_t max_step_us() const { return max_step_us_; }
  int64_t prefilled_tokens() const { return prefilled_tokens_; }
  // The given step (counted from 1) fails; NaN logits in the given step.
  void FailStep(int64_t step) { fail_step_ = step; }
  void NanStep(int64_t step) { nan_step_ = step; }

  absl::StatusOr<StepResult> Execute(const StepPlan& plan) override {
    ++n_steps_;
    CheckSharing(plan);
    for (const PageCopy& copy : plan.copies) {
      for (int32_t layer = 0; layer < model_.shape.n_layers; ++layer) {
        std::copy_n(Cell(copy.src, layer), kPageTokens, Cell(copy.dst, layer));
      }
    }
    StepResult result;
    logits_.clear();
    logits_.reserve(plan.decode.size() + plan.prefill.size());
    int64_t step_us = 0;
    for (const DecodeRow& row : plan.decode) result.decode.push_back(Answer(row));
    if (!plan.decode.empty()) {
      result.decode_us =
          static_cast<int64_t>(100 + model_.row_us * static_cast<double>(plan.decode.size()));
    }
    step_us += result.decode_us;
    for (const PrefillSlice& slice : plan.prefill) {
      result.slices.push_back(Prefill(slice));
      step_us += result.slices.back().elapsed_us;
    }
    max_step_us_ = std::max(max_step_us_, step_us);
    if (n_steps_ == fail_step_) return absl::InternalError("the fake device failed");
    return result;
  }

 private:
  struct Slot {
    int64_t seq_id = -1;
    int64_t begin = 0;
    int64_t end = 0;
    int32_t next_layer = 0;
    std::vector<uint64_t> hidden;
  };

  void Violation(std::string text) {
    if (violations_.size() < 20) violations_.push_back(std::move(text));
  }
  void Expect(bool condition, int64_t seq_id, const char* what) {
    if (!condition) Violation(fmt::format("step {}, sequence {}: {}", n_steps_, seq_id, what));
  }

  // [64] of one page and layer.
  uint64_t* Cell(int32_t page, int32_t layer) {
    return &kv_[(static_cast<size_t>(page) * model_.shape.n_layers + layer) * kPageTokens];
  }

  // A page that is written in this step occurs once in it, except as the source of a copy, which
  // comes first.
  void CheckSharing(const StepPlan& plan) {
    std::map<std::pair<int32_t, int64_t>, bool> seen;  // (page, sequence of a slice)
    std::unordered_map<int32_t, int> n_uses;
    for (const DecodeRow& row : plan.decode) {
      Expect(static_cast<int64_t>(row.pages.size()) == row.position / kPageTokens + 1, row.seq_id,
             "decode row with a wrong number of pages");
      for (int32_t page : row.pages) ++n_uses[page];
    }
    for (const PrefillSlice& slice : plan.prefill) {
      Expect(static_cast<int64_t>(slice.pages.size()) == CeilDiv(slice.end, kPageTokens),
             slice.seq_id, "slice with a wrong number of pages");
      for (int32_t page : slice.pages) {
        if (!std::exchange(seen[{page, slice.seq_id}], true)) ++n_uses[page];
      }
    }
    for (const auto& [page, n] : n_uses) {
      if (page < 0 || page >= model_.n_pages) Violation("page id outside the pool");
    }
    for (const DecodeRow& row : plan.decode) {
      Expect(n_uses[row.pages.back()] == 1, row.seq_id, "decode writes to a shared page");
    }
    for (const PrefillSlice& slice : plan.prefill) {
      for (int64_t i = slice.begin / kPageTokens; i < CeilDiv(slice.end, kPageTokens); ++i) {
        Expect(n_uses[slice.pages[i]] == 1, slice.seq_id, "prefill writes to a shared page");
      }
    }
    for (const PageCopy& copy : plan.copies) {
      Expect(n_uses[copy.dst] <= 1, -1, "a copy goes to a shared page");
    }
  }

  std::span<const float> Logits(uint64_t hidden) {
    std::vector<float>& logits = logits_.emplace_back(model_.shape.vocab_size);
    for (int32_t v = 0; v < model_.shape.vocab_size; ++v) {
      logits[v] = static_cast<float>(Mix(hidden, v) % 1000) * 0.004f;
    }
    if (n_steps_ == nan_step_) logits[3] = std::numeric_limits<float>::quiet_NaN();
    return logits;
  }

  // Sum over the keys before `n`, in an order-sensitive way.
  uint64_t SumKeys(std::span<const int32_t> pages, int32_t layer, int64_t n) {
    uint64_t sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      sum += Mix(Cell(pages[j / kPageTokens], layer)[j % kPageTokens], j);
    }
    return sum;
  }

  // A draw is done in every second step, as an executor may or may not.
  RowResult Answer(const DecodeRow& row) {
    const std::span<const float> logits = Decode(row);
    if (!row.draw.has_value() || n_steps_ % 2 == 0) return {.logits = logits};
    std::vector<uint32_t> scratch;
    return {.logits = {}, .token = DrawToken(logits, *row.draw, scratch)};
  }

  std::span<const float> Decode(const DecodeRow& row) {
    const auto known = next_position_.find(row.seq_id);
    if (known != next_position_.end()) {
      Expect(known->second == row.position, row.seq_id, "decode position is not the next one");
    }
    next_position_[row.seq_id] = row.position + 1;
    uint64_t hidden = Mix(row.token, row.position);
    for (int32_t layer = 0; layer < model_.shape.n_layers; ++layer) {
      const uint64_t key = Mix(hidden, layer);
      Cell(row.pages.back(), layer)[row.position % kPageTokens] = key;
      const uint64_t sum = SumKeys(row.pages, layer, row.position) + Mix(key, row.position);
      hidden = Mix(hidden, sum);
    }
    return Logits(hidden);
  }

  void CheckSlice(const PrefillSlice& slice, Slot& slot) {
    const int64_t id = slice.seq_id;
    const int64_t epoch = model_.epoch_tokens;
    Expect(slice.begin < slice.end && slice.end <= slice.prompt_tokens, id, "bad token range");
    Expect(slice.begin / epoch == (slice.end - 1) / epoch, id, "a slice of two epochs");
    Expect(slice.end % epoch == 0 || slice.end == slice.prompt_tokens, id, "epoch cut short");
    Expect(slice.layer_begin < slice.layer_end && slice.layer_end <= model_.shape.n_layers, id,
           "bad layer range");
    Expect(static_cast<int64_t>(slice.tokens.size()) == slice.end - slice.begin, id,
           "wrong number of tokens");
    Expect(static_cast<int64_t>(slice.sparse_state->alpha.size()) ==
               int64_t{model_.shape.n_layers} * model_.shape.n_heads,
           id, "incomplete sparse state");
    if (slice.layer_begin == 0) {
      Expect(slot.seq_id < 0 || slot.next_layer == model_.shape.n_layers ||
                 seen_slots_[id] != slice.hidden_slot || slot.seq_id != id,
             id, "an epoch was abandoned");
      int64_t& done = prefill_end_[id];
      // What was skipped came from the prefix cache.
      Expect(slice.begin >= done, id, "tokens prefilled twice");
      const int64_t grain = IsDensePolicy(*slice.sparse) ? kPageTokens : epoch;
      Expect(slice.begin == done || slice.begin % grain == 0, id, "tokens left out");
      done = slice.end;
      slot =
          Slot{.seq_id = id, .begin = slice.begin, .end = slice.end, .next_layer = 0, .hidden = {}};
      for (size_t i = 0; i < slice.tokens.size(); ++i) {
        slot.hidden.push_back(Mix(slice.tokens[i], slice.begin + static_cast<int64_t>(i)));
      }
      prefilled_tokens_ += slice.end - slice.begin;
    } else {
      Expect(slot.seq_id == id && slot.begin == slice.begin && slot.end == slice.end, id,
             "the hidden state is another one's");
    }
    Expect(slot.next_layer == slice.layer_begin, id, "layers out of order");
    seen_slots_[id] = slice.hidden_slot;
  }

  SliceResult Prefill(const PrefillSlice& slice) {
    const bool by_layer = slice.hidden_slot == model_.max_prefills;
    if (by_layer && slice.begin == 0 && slice.layer_begin == 0) whole_prompt_.clear();
    Slot& slot = by_layer ? whole_prompt_[slice.begin] : slots_[slice.hidden_slot];
    CheckSlice(slice, slot);
    const int64_t n_rows = slice.end - slice.begin;
    slot.hidden.resize(n_rows);
    const bool dense = IsDensePolicy(*slice.sparse);
    const int64_t first_tail_row = slice.prompt_tokens - slice.sparse->dense_tail_tokens;
    for (int32_t layer = slice.layer_begin; layer < slice.layer_end; ++layer) {
      float& alpha = slice.sparse_state->alpha[int64_t{layer} * model_.shape.n_heads];
      const int64_t n_passing = layer + 1 == model_.shape.n_layers ? slice.NReadRows() : n_rows;
      const bool sparse = !dense && n_passing == n_rows;
      uint64_t pattern = 0;  // what every sparse row of this epoch depends on
      if (sparse) {
        pattern =
            Mix(static_cast<uint64_t>(alpha * 1e6f), static_cast<uint64_t>(slice.sparse->mode));
        for (uint64_t h : slot.hidden) pattern = Mix(pattern, h);
        alpha *= 0.99f;
      }
      uint64_t sum = SumKeys(slice.pages, layer, slice.begin);
      for (int64_t i = 0; i < n_rows; ++i) {
        const int64_t position = slice.begin + i;
        const uint64_t key = Mix(slot.hidden[i], layer);
        Cell(slice.pages[position / kPageTokens], layer)[position % kPageTokens] = key;
        sum += Mix(key, position);
        if (i < n_rows - n_passing) continue;
        const bool sparse_row = sparse && position < first_tail_row;
        slot.hidden[i] = Mix(slot.hidden[i], sparse_row ? sum ^ pattern : sum);
      }
    }
    slot.next_layer = slice.layer_end;
    if (slice.border_state != nullptr) {
      const int64_t n_heads = model_.shape.n_heads;
      std::copy(slice.sparse_state->alpha.begin() + slice.layer_begin * n_heads,
                slice.sparse_state->alpha.begin() + slice.layer_end * n_heads,
                slice.border_state->alpha.begin() + slice.layer_begin * n_heads);
    }

    SliceResult result;
    const bool last_is_short =
        slice.layer_end == model_.shape.n_layers && slice.NReadRows() < n_rows;
    const double n_layers = slice.layer_end - slice.layer_begin - (last_is_short ? 1 : 0);
    const double pairs = 0.5 * static_cast<double>(n_rows * (slice.begin + slice.end + 1));
    const double own_us = model_.cell_us + model_.token_us * static_cast<double>(n_rows);
    result.elapsed_us = static_cast<int64_t>(n_layers * (own_us + model_.pair_us * pairs) +
                                             (last_is_short ? model_.kv_share * own_us : 0));
    result.report.causal_pairs = static_cast<int64_t>(pairs * n_layers) +
                                 (last_is_short && slice.NReadRows() > 0 ? slice.end : 0);
    result.report.kept_pairs = result.report.causal_pairs / (dense ? 1 : 4);
    AddLogprobs(slice, slot, result.prompt_logprobs);
    if (slice.layer_end == model_.shape.n_layers && slice.end == slice.prompt_tokens) {
      result.logits = Logits(slot.hidden.back());
      slot = Slot();
    }
    return result;
  }

  void AddLogprobs(const PrefillSlice& slice, const Slot& slot, PromptLogprobsEvent& out) {
    const std::span<const int32_t> tokens = slice.logprob_tokens;
    if (tokens.empty()) return;
    Expect(slice.layer_end == model_.shape.n_layers, slice.seq_id,
           "logprobs before the last layer");
    Expect(std::equal(slice.tokens.begin() + 1, slice.tokens.end(), tokens.begin()), slice.seq_id,
           "logprobs of other tokens than the prompt's");
    const bool at_end = slice.end == slice.prompt_tokens;
    Expect(tokens.size() == slice.tokens.size() - (at_end ? 1 : 0), slice.seq_id,
           "logprobs of too few or too many tokens");
    out.begin = slice.begin + 1;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const uint64_t hash = Mix(slot.hidden[i], static_cast<uint64_t>(tokens[i]));
      out.tokens.push_back({tokens[i], -static_cast<float>(hash % 1000)});
      out.ranks.push_back(1);
    }
  }

  const FakeModel model_;
  std::vector<uint64_t> kv_;  // [n_pages, n_layers, 64]
  std::vector<Slot> slots_;
  std::map<int64_t, Slot> whole_prompt_;  // by the begin of the epoch
  std::vector<std::vector<float>> logits_;
  std::unordered_map<int64_t, int64_t> next_position_;  // of decoding sequences
  std::unordered_map<int64_t, int64_t> prefill_end_;
  std::unordered_map<int64_t, int32_t> seen_slots_;
  std::vector<std::string> violations_;
  int64_t n_steps_ = 0;
  int64_t max_step_us_ = 0;
  int64_t prefilled_tokens_ = 0;
  int64_t fail_step_ = -1;
  int64_t nan_step_ = -1;
};

}  // namespace longhaul::testing
