#include "engine/prefill_cursor.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace longhaul {

PrefillCursor::PrefillCursor(int64_t prompt_tokens, int64_t epoch_tokens, int32_t n_layers)
    : prompt_tokens_(prompt_tokens), epoch_tokens_(epoch_tokens), n_layers_(n_layers) {
  LH_CHECK(prompt_tokens >= 0 && epoch_tokens > 0 && n_layers > 0);
}

void PrefillCursor::SkipTo(int64_t n_tokens) {
  LH_CHECK(at_border() && position_ <= n_tokens && n_tokens <= prompt_tokens_);
  start_ = position_ = n_tokens;
}

void PrefillCursor::GoByLayer() {
  LH_CHECK(at_border());
  by_layer_ = true;
}

void PrefillCursor::Restart() {
  LH_CHECK(at_border() && !by_layer_);
  start_ = position_ = 0;
}

int64_t PrefillCursor::EpochEnd(int64_t position) const {
  return std::min(prompt_tokens_, (position / epoch_tokens_ + 1) * epoch_tokens_);
}

int32_t PrefillCursor::LayersLeft(int64_t epoch_begin) const {
  if (by_layer_) return n_layers_ - layer_ - (epoch_begin < position_ ? 1 : 0);
  if (epoch_begin < position_) return 0;
  return epoch_begin == position_ ? n_layers_ - layer_ : n_layers_;
}

PrefillCells PrefillCursor::Next() const {
  LH_CHECK(!done());
  return {.begin = position_,
          .end = EpochEnd(position_),
          .layer_begin = layer_,
          .layer_end = by_layer_ ? layer_ + 1 : n_layers_};
}

void PrefillCursor::Complete(const PrefillCells& cells) {
  const PrefillCells next = Next();
  LH_CHECK(cells.begin == next.begin && cells.end == next.end);
  LH_CHECK(cells.layer_begin == next.layer_begin && cells.n_layers() > 0);
  LH_CHECK(cells.layer_end <= next.layer_end);
  if (by_layer_) {
    position_ = cells.end;
    if (position_ == prompt_tokens_ && layer_ + 1 < n_layers_) {
      position_ = start_;
      ++layer_;
    }
    return;
  }
  layer_ = cells.layer_end;
  if (layer_ == n_layers_) {
    layer_ = 0;
    start_ = position_ = cells.end;
  }
}

int64_t PrefillCursor::processed_tokens() const {
  if (by_layer_) {
    return start_ + ((prompt_tokens_ - start_) * layer_ + position_ - start_) / n_layers_;
  }
  return position_ + (EpochEnd(position_) - position_) * layer_ / n_layers_;
}

}  // namespace longhaul
