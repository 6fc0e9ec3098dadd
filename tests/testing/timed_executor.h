// TimedExecutor: an Executor that computes nothing and takes the time that a machine with given
// coefficients would take, with noise. For tests of predictions, in virtual time. It keeps no keys,
// so prompts may be as long as real ones.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/model/sparse_attention.h"
#include "engine/step_plan.h"

namespace longhaul::testing {

struct TimedMachine {
  ModelShape shape{.n_layers = 4,
                   .n_heads = 8,
                   .n_kv_heads = 2,
                   .head_dim = 64,
                   .hidden_size = 512,
                   .vocab_size = 16,
                   .max_positions = 1 << 20,
                   .n_parameters = 12'000'000};
  int32_t n_pages = 8'192;
  // Of one layer
  double cell_us = 400;
  double token_us = 3;
  double pair_us = 0.0004;          // exact
  double kept_pair_us = 0.0011;     // sparse
  double sampled_pair_us = 0.0005;  // of a sampled row
  double dense_key_us = 0.03;       // per key of an exact pass, whatever the rows
  double remote_share = 0.004;      // of the keys beyond sink and window: what sparse rows keep ...
  double remote_keys = 60;          // ... and a number per row
  double kv_share = 0.2;      // of a layer's own costs, for rows that leave it keys and values
  double layer_spread = 0.6;  // layers keep from 1 - spread to 1 + spread times that
  // Of a decode step
  double step_us = 900;
  double row_us = 50;
  double key_us = 0.02;
  double noise = 0.05;  // relative, evenly distributed
};

class TimedExecutor : public Executor {
 public:
  explicit TimedExecutor(const TimedMachine& machine)
      : machine_(machine), logits_(machine.shape.vocab_size, 0.0f) {}

  const ModelShape& shape() const override { return machine_.shape; }
  int32_t n_pages() const override { return machine_.n_pages; }
  int64_t n_steps() const { return n_steps_; }
  int64_t total_us() const { return total_us_; }

  absl::StatusOr<StepResult> Execute(const StepPlan& plan) override {
    ++n_steps_;
    StepResult result;
    if (!plan.decode.empty()) {
      double us = machine_.step_us;
      for (const DecodeRow& row : plan.decode) {
        us += machine_.row_us + machine_.key_us * static_cast<double>(row.position + 1);
        result.decode.push_back({.logits = logits_});
      }
      result.decode_us = Noisy(us);
    }
    total_us_ += result.decode_us;
    for (const PrefillSlice& slice : plan.prefill) {
      result.slices.push_back(Prefill(slice));
      total_us_ += result.slices.back().elapsed_us;
    }
    return result;
  }

 private:
  int64_t Noisy(double us) {
    const double even = static_cast<double>(random_() % 2001) / 1000.0 - 1.0;
    return std::max<int64_t>(1, std::llround(us * (1.0 + machine_.noise * even)));
  }

  static double Pairs(int64_t begin, int64_t end) {
    return 0.5 * static_cast<double>((end - begin) * (begin + end + 1));
  }

  double KeptPairs(const PrefillSlice& slice, int64_t end, int32_t layer) const {
    const auto local = static_cast<double>(slice.sparse->sink + slice.sparse->window);
    const double place =
        machine_.shape.n_layers < 2 ? 0 : 2.0 * layer / (machine_.shape.n_layers - 1) - 1;
    const double factor = 1.0 + machine_.layer_spread * place;
    double kept = 0;
    for (int64_t row = slice.begin; row < end; ++row) {
      const auto visible = static_cast<double>(row + 1);
      const double remote = std::max(0.0, visible - local);
      kept += visible - remote +
              std::min(remote, factor * (machine_.remote_keys + machine_.remote_share * remote));
    }
    return kept;
  }

  SliceResult Prefill(const PrefillSlice& slice) {
    const EpochAttention epoch =
        PlanEpochAttention(*slice.sparse, slice.begin, slice.end, slice.prompt_tokens);
    const int64_t sparse_end = slice.begin + epoch.n_policy_rows;
    SliceResult result;
    double us = 0;
    double kept = 0;
    int32_t n_whole_layers = slice.layer_end - slice.layer_begin;
    if (slice.layer_end == machine_.shape.n_layers && slice.NReadRows() < slice.end - slice.begin) {
      const bool read = slice.NReadRows() > 0;
      const auto n_read_pairs = static_cast<double>(read ? slice.end : 0);
      us += machine_.cell_us * (read ? 1.0 : machine_.kv_share) +
            machine_.token_us * machine_.kv_share * static_cast<double>(slice.end - slice.begin) +
            (machine_.pair_us + machine_.dense_key_us) * n_read_pairs;
      kept += n_read_pairs;
      --n_whole_layers;
    }
    const double n_last_pairs = kept;
    for (int32_t layer = slice.layer_begin; layer < slice.layer_begin + n_whole_layers; ++layer) {
      us += machine_.cell_us + machine_.token_us * static_cast<double>(slice.end - slice.begin);
      if (epoch.n_policy_rows > 0) {
        const double layer_kept = KeptPairs(slice, sparse_end, layer);
        us += machine_.kept_pair_us * layer_kept +
              machine_.sampled_pair_us * static_cast<double>(epoch.policy.rows.size()) *
                  static_cast<double>(sparse_end);
        kept += layer_kept;
      }
      if (sparse_end < slice.end) {
        us += machine_.pair_us * Pairs(sparse_end, slice.end) +
              machine_.dense_key_us * static_cast<double>(slice.end);
        kept += Pairs(sparse_end, slice.end);
      }
    }
    const double n_heads = machine_.shape.n_heads;
    result.elapsed_us = Noisy(us);
    result.report.kept_pairs = std::llround(n_heads * kept);
    result.report.causal_pairs =
        std::llround(n_heads * (n_whole_layers * Pairs(slice.begin, slice.end) + n_last_pairs));
    if (slice.end == slice.prompt_tokens && slice.layer_end == machine_.shape.n_layers) {
      result.logits = logits_;
    }
    return result;
  }

  const TimedMachine machine_;
  const std::vector<float> logits_;
  std::mt19937_64 random_{11};
  int64_t n_steps_ = 0;
  int64_t total_us_ = 0;
};

}  // namespace longhaul::testing
