// `longhaul bench attention`: how fast the attention kernels are, against this machine's own matrix
// product and against each other, through the same pipeline that serves requests. Prints a table,
// or JSON. The command line is parsed by the caller.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace longhaul {

struct BenchAttentionOptions {
  std::vector<int64_t> lengths = {16384, 131072};  // keys
  std::vector<int64_t> head_dims = {64, 128};
  std::vector<int64_t> epochs = {4096};  // epoch_tokens, one row each
  int32_t n_heads = 8;
  int32_t n_kv_heads = 2;
  DType kv_dtype = DType::kF32;  // or kBF16, kF8E4M3
  double density = 0.08;         // planted stripes of a sparse head
  float alpha = 0.95f;
  BackendKind backend = BackendKind::kCpu;
  int n_threads = 0;  // 0 = all processors
  bool json = false;  // one JSON object on stdout, no table
};

// Returns the exit code; what went wrong is on stderr.
int RunBenchAttention(const BenchAttentionOptions& options);

}  // namespace longhaul
