// Transformer: the forward pass of a decoder over a paged KV cache, for every family of the table.
// Borrows config, weights, backend and pool, which outlive it; used from the rank thread only. It
// owns no tensor: every activation is bump-allocated in the caller's arena, so a step allocates
// nothing from the device. It does not sample, and does not know requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/model/sparse_attention.h"
#include "engine/model/weights.h"
#include "engine/step_plan.h"
#include "kernels/backend.h"
#include "kernels/base/arena.h"

namespace longhaul {

class Transformer {
 public:
  Transformer(const ModelConfig& config, const ModelWeights& weights, Backend& backend,
              const KvLayout& layout, void* kv_pool);

  // Runs the slice's layers. `hidden` [T, E] f32 enters with the state after layer_begin layers
  // (not read when that is 0) and leaves with the state after layer_end: behind the last layer only
  // in the slice's NReadRows() last rows. `logits` [1, V] f32 of the last row is written unless it
  // is empty; only for slices that reach the last layer, with a row that is read. The slice's
  // sparse_state must be complete, [n_layers, H].
  void Prefill(const PrefillSlice& slice, TensorView hidden, TensorView logits, Arena& arena,
               SparseReport& report);

  // One token of each row's sequence through all layers. logits: [B, V] f32, written.
  void Decode(std::span<const DecodeRow> rows, TensorView logits, Arena& arena);
  // The same through Backend::Replay, with logits.dim(0) as the key: of a step of that many places,
  // recorded once, for can_replay(). Logits of places behind the rows are undefined. The arena must
  // stand where it stood, and `logits`, in every call of a key.
  void ReplayDecode(std::span<const DecodeRow> rows, TensorView logits, Arena& arena);
  // Whether every op of a decode step can be recorded: experts make the host wait.
  bool can_replay() const { return backend_.has_replay() && config_.experts.max_experts == 0; }

  // hidden: [n, E] f32, rows that passed all layers, not modified. logits: [n, V] f32, written.
  void Logits(TensorView hidden, TensorView logits, Arena& arena);

  // Arena bytes of the largest step: epochs of epoch_tokens at up to max_tokens context, batches of
  // max_decode_rows. Linear in each.
  static int64_t WorkspaceBytes(const ModelConfig& config, DType activations, int64_t epoch_tokens,
                                int64_t max_tokens, int64_t max_decode_rows);

 private:
  // Of dual chunk attention, in backend memory: positions in whose place the rows' queries are
  // rotated. All null: plain attention.
  struct DualPositions {
    const int64_t* own = nullptr;    // [T] of keys, too
    const int64_t* next = nullptr;   // [T]
    const int64_t* far = nullptr;    // [T]
    const float* q_scale = nullptr;  // [T]
  };

  // Token rows that pass the layers together: an epoch of one prompt, or one row of each decoding
  // sequence. kvs_ holds their sequences, kvs_copy a copy of it.
  struct Batch {
    const int32_t* token_ids = nullptr;  // [T] in backend memory
    const int64_t* positions = nullptr;  // [T] in backend memory
    DualPositions dual;
    int64_t rows_per_kv = 0;           // T for an epoch, 1 when decoding
    int64_t n_read = 0;                // rows, the last ones, that pass all of the last layer
    const KvView* kvs_copy = nullptr;  // in backend memory
    int32_t layer_begin = 0;
    int32_t layer_end = 0;
    PrefillAttention* prefill = nullptr;  // null when decoding
  };

  // Uploads what a decode step of n_places reads; fills kvs_. page_capacity: room for page numbers.
  Batch UploadDecode(std::span<const DecodeRow> rows, int64_t n_places, int64_t page_capacity,
                     Arena& arena);
  // x: [T, E] f32, the residual stream. Logits of the last logits.dim(0) rows.
  void Forward(const Batch& batch, TensorView x, TensorView logits, Arena& arena);
  // x += what the layer's feed-forward network, or its mixture of experts, makes of its norm.
  // normed: [T, E] act, scratch.
  void FeedForward(const LayerWeights& weights, TensorView normed, TensorView x, Arena& arena);
  // x += the mixture of experts of normed: [T, E] act.
  void Experts(const LayerWeights& weights, TensorView normed, TensorView x, Arena& arena);
  void Attend(const Batch& batch, int32_t layer, TensorView q, const DualChunkQueries& dual,
              TensorView out);
  void RopeTable(const int64_t* positions, TensorView cos_sin);
  // Of positions_.
  DualPositions UploadDualPositions(Arena& arena);
  // A copy of `values` in backend memory, of this step.
  template <typename T>
  T* UploadArray(std::span<const T> values, Arena& arena);

  const ModelConfig& config_;
  const ModelWeights& weights_;
  Backend& backend_;
  const KvLayout layout_;
  void* const kv_pool_;
  const std::vector<double> inv_freq_;  // [P]
  std::vector<int64_t> positions_;      // of the batch
  std::vector<KvView> kvs_;             // sequences of the batch, at the layer being computed
};

}  // namespace longhaul
