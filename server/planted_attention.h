// Queries, keys and values with a planted attention pattern, for `longhaul bench attention`: random
// data attends to everything alike, so that no sparse method could choose anything.
//
// Every query head attends to a sink (the first keys), to its neighbourhood (a share that falls
// with the distance), and, unless it streams, to its own random set of stripes: `density` of all
// keys, about 95 % of the row's mass. Logits carry noise on top. Deterministic. No thread safety.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/kv_layout.h"

namespace longhaul {

struct PlantedShape {
  int64_t n_keys = 0;
  int64_t n_rows = 0;  // queries of the last n_rows positions
  int32_t n_heads = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim = 0;  // at least 32
  DType kv_dtype = DType::kF32;
  double density = 0.08;    // stripe keys of a sparse head, share of all keys
  int32_t n_streaming = 0;  // of the query heads of each kv head, the first ones
};

class PlantedAttention {
 public:
  // ResourceExhausted when the keys and values do not fit into memory.
  static absl::StatusOr<PlantedAttention> Make(const PlantedShape& shape, Backend& backend);

  // Queries of positions [begin, end), which must be among the last n_rows.
  TensorView Queries(int64_t begin, int64_t end) const;  // [end - begin, H, D] f32
  // Keys and values [0, n_tokens).
  KvView Kv(int64_t n_tokens) const;

 private:
  explicit PlantedAttention(const PlantedShape& shape) : shape_(shape) {}
  void FillKeys();
  void FillQueries();

  PlantedShape shape_;
  KvLayout layout_;
  Buffer pool_;
  Buffer queries_;  // [n_rows, H, D] f32
  std::vector<int32_t> pages_;
};

}  // namespace longhaul
