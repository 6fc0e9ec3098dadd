// `longhaul bench ttft --shape`: prefill and decode of a random-weight model, phase by phase, each
// as a share of what this machine was measured to do in the same run. In process, without server,
// tokenizer or files. The command line is parsed by the caller.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/server_config.h"

namespace longhaul {

struct BenchShapeOptions {
  std::string shape;                        // layers,hidden,heads,kv_heads,head_dim,ffn,vocab
  std::vector<int64_t> lengths;             // prompt tokens
  std::vector<std::string> modes;           // sparse modes
  std::vector<int64_t> decode_depths = {};  // tokens before the decoded ones
  int64_t repeats = 1;                      // of each prefill; the median is reported
  std::optional<double> density = {};       // forced on sparse epochs, in (0, 1]
  bool json = false;                        // one JSON object on stdout, no table
};

// Of config: backend, threads, dtype, quantization, kv-cache-dtype, epoch-tokens and the sparse
// settings. Returns the exit code: 2 for unusable options; what went wrong is on stderr.
int RunBenchShape(const ServerConfig& config, const BenchShapeOptions& options);

}  // namespace longhaul
