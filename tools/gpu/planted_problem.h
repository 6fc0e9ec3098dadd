// A long context with the structure that trained models show, for benchmarks of attention: noise,
// and planted in it a sink (the first 64 keys) and stripes (2 of 100 keys, other ones in each kv
// head) that every query of the head looks at, and for each row the keys of its own block of 64.
// Scores of planted pairs are about 12, those of others about 0.
//
// The keys are written by the backend's own RopeKvWrite, so the cache may have any type that the
// backend knows. Owns its memory; used by one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/step_plan.h"
#include "kernels/backend.h"

namespace longhaul {

class PlantedProblem {
 public:
  // Ends the process when the backend has too little memory. max_tokens: a multiple of
  // chunk_tokens, which is a multiple of 64: how many tokens are written at a time.
  PlantedProblem(Backend& backend, const ModelShape& shape, DType kv_dtype, int64_t max_tokens,
                 int64_t chunk_tokens);

  // The first n tokens.
  KvView Kv(int64_t n) const;
  const KvLayout& layout() const { return layout_; }
  std::byte* pool() const { return static_cast<std::byte*>(pool_.data()); }

  // Queries [n_rows, H, D] of the rows that end with token `end`, in memory of the backend: one set
  // at a time, n_rows <= chunk_tokens.
  TensorView Queries(int64_t end, int64_t n_rows);

 private:
  void WriteChunk(int64_t begin);
  // Random numbers, the same for the same `at`.
  const float* Noise(int64_t at) const;

  Backend& backend_;
  const ModelShape shape_;
  const KvLayout layout_;
  const int64_t chunk_tokens_;
  std::vector<float> noise_;
  std::vector<BF16> staged_;  // on the host, on its way to the backend
  Buffer pool_;
  Buffer pages_;    // [max_tokens / 64] i32, in no order, as after hours of service
  Buffer queries_;  // [chunk_tokens, H, D]
};

}  // namespace longhaul
