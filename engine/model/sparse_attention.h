// Prefill attention of one slice, layer by layer: exact, or SampleAttention (arXiv 2406.15486) with
// its audit and repair. This file is the whole sparse pipeline; the ops it is made of are in
// kernels/args.h, what a request may choose in engine/sparse_policy.h.
//
// Used by the transformer, on the rank thread. Scratch comes from the caller's arena and is linear
// in the number of keys: mass is computed for as many kv heads at a time as fit kMassBytes. The
// host waits for the backend once per slice: a layer's choices, its audit and its repair stay in
// backend memory, and what the report tells is read when all layers ran.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/sparse_policy.h"
#include "engine/step_plan.h"
#include "kernels/backend.h"
#include "kernels/base/arena.h"

namespace longhaul {

// The mass of one range of kv heads, both its sum and its maximum; at least one kv head is taken.
inline constexpr int64_t kMassBytes = int64_t{64} << 20;

// How the rows of an epoch attend, the same in every layer.
struct EpochAttention {
  int64_t n_policy_rows = 0;  // rows [0, n_policy_rows) follow the policy; the rest, the end of the
                              // prompt that produces the answer, is exact
  EpochPolicy policy;
};

EpochAttention PlanEpochAttention(const SparseOptions& options, int64_t begin, int64_t end,
                                  int64_t prompt_tokens);

// What the ops write for the host, an entry for each (layer, head) of a slice: one block of backend
// memory, and its copy on the host.
struct SliceRecords {
  int64_t n_layers = 0;
  int64_t n_heads = 0;  // H
  int64_t n_audit = 0;
  std::byte* block = nullptr;

  int64_t NumBytes() const;
  // All of one layer, counted from the first of the slice.
  int64_t* KeptPairs(int64_t layer) const;  // [H]
  float* Alpha(int64_t layer) const;        // [H] in and out
  float* Recall(int64_t layer) const;       // [H, n_audit]
  int32_t* Kind(int64_t layer) const;       // [H] HeadKind
  uint8_t* Repair(int64_t layer) const;     // [H]
};

class PrefillAttention {
 public:
  struct Slice {
    int64_t q_begin = 0;
    int64_t n_q = 0;  // T
    int32_t layer_begin = 0;
    int32_t layer_end = 0;
    const EpochAttention* epoch = nullptr;
    float* alpha = nullptr;  // host: [layer_end - layer_begin, H], steered by the audit
  };
  struct LayerArgs {
    int32_t layer = 0;
    TensorView q;  // [n, H, D] act, of the slice's n last rows, n <= T
    DualChunkQueries dual = {};
    KvView kv;           // n_tokens = q_begin + T
    int64_t window = 0;  // of this layer's sliding window attention; 0 = none
    TensorView out;      // [n, H, D] act, written
  };

  // Takes its records from the arena: they live as long as this object.
  PrefillAttention(const Slice& slice, const ModelShape& shape, Backend& backend, Arena& arena);

  // Where the layer's sliding window hides keys, rows attend to their window exactly, whatever the
  // policy: it leaves nothing to choose from. So do rows that are not all of the slice's, the read
  // ones of the last layer: the others are not there to choose by.
  void Run(const LayerArgs& args);

  // Once, behind the last layer. Waits for the backend, steers slice.alpha and adds what was done
  // to `report`: pairs of all rows that attended; cells and recalls of the rows under a sparse
  // policy, and to report.heads, [n_layers, H], unless it is empty. A recall is that of the
  // attention used: 1 for the audit rows of dense and of repaired heads.
  void Finish(SparseReport& report);

  // Makes the largest allocations that this class can make, under any options, for arenas in
  // counting mode: those of a slice, which stay, and those of a layer.
  static void CountSlice(const ModelShape& shape, int64_t n_q, Arena& arena);
  static void CountLayer(const ModelShape& shape, int64_t n_q, int64_t n_keys, Arena& arena);

 private:
  void UploadBudgets(const EpochPolicy& policy);
  void Report(int64_t layer, const SliceRecords& records, SparseReport& report) const;

  const Slice slice_;
  const ModelShape& shape_;
  Backend& backend_;
  Arena& arena_;
  SliceRecords records_;           // in backend memory
  int32_t* rows_ = nullptr;        // [R] the policy's
  HeadBudget* budgets_ = nullptr;  // [layers, H] where the policy has any
  std::vector<bool> sampled_;      // [layers] whether the policy ran, and not a window
  int64_t exact_pairs_ = 0;        // of rows that attended exactly, whatever the policy
};

}  // namespace longhaul
