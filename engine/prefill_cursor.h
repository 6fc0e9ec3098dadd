// PrefillCursor: which cells of one prompt's prefill are done and which come next. A cell is one
// epoch at one layer; cell (e, l) needs (e, l - 1) and the keys and values of earlier epochs at l.
// Two orders respect that: all layers of an epoch and then the next epoch (the default), or all
// epochs of a layer and then the next layer.
//
// A value: the scheduler advances the sequence's own one when cells are done, and a copy while it
// plans several slices. Engine thread only. It knows no time, no pages and no sparse state.
#pragma once

#include <cstdint>

namespace longhaul {

// Layers [layer_begin, layer_end) of the epoch [begin, end).
struct PrefillCells {
  int64_t begin = 0;
  int64_t end = 0;
  int32_t layer_begin = 0;
  int32_t layer_end = 0;
  int32_t n_layers() const { return layer_end - layer_begin; }
};

class PrefillCursor {
 public:
  PrefillCursor(int64_t prompt_tokens, int64_t epoch_tokens, int32_t n_layers);

  // Tokens [0, n_tokens) are known from elsewhere. Needs at_border(); never goes back. The first
  // epoch may then begin inside the grid.
  void SkipTo(int64_t n_tokens);
  // From now on layer by layer. Needs at_border().
  void GoByLayer();
  // Back to the first token, nothing known. Needs at_border().
  void Restart();

  bool by_layer() const { return by_layer_; }
  bool done() const { return begin() == prompt_tokens_; }
  // No cell is computed whose epoch is not complete: what others published can be taken over.
  bool at_border() const { return layer_ == 0 && position_ == start_; }
  // Tokens [0, begin) passed all layers.
  int64_t begin() const { return by_layer_ && layer_ + 1 < n_layers_ ? start_ : position_; }
  // End of the epoch that holds `position`.
  int64_t EpochEnd(int64_t position) const;
  // How many layers the epoch that begins at `epoch_begin` still has to pass.
  int32_t LayersLeft(int64_t epoch_begin) const;

  // The cells that may go as the next slice: all layers left of an epoch, or one epoch at one
  // layer. Needs !done().
  PrefillCells Next() const;
  // `cells` are done: what Next said, or the first layers of it.
  void Complete(const PrefillCells& cells);

  // For progress: every layer of a token counts alike. Never falls.
  int64_t processed_tokens() const;

 private:
  int64_t prompt_tokens_;
  int64_t epoch_tokens_;
  int32_t n_layers_;
  bool by_layer_ = false;
  int64_t start_ = 0;     // by epoch: where the epoch under way begins; by layer: the first one
  int64_t position_ = 0;  // the next epoch begins here, at layer_
  int32_t layer_ = 0;
};

}  // namespace longhaul
