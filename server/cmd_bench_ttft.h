// `longhaul bench ttft`: time to first token by prompt length and attention policy, in process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/server_config.h"

namespace longhaul {

struct BenchTtftOptions {
  std::vector<int64_t> lengths = {1024, 4096, 16384, 65536, 131072};  // prompt tokens
  std::vector<std::string> modes = {"dense", "sample", "auto"};
  int64_t repeats = 1;    // the median is reported
  std::string text_file;  // prompts are cut out of it; empty: random token ids
  bool json = false;      // a JSON array on standard output instead of the table
};

// Every run is cold (a prefix cache namespace of its own) and prefills one prompt alone. "eta err"
// is the worst error of a predicted time left, over all repeats, from a tenth of the prompt on.
// Exit code as RunGenerate.
int RunBenchTtft(const ServerConfig& config, const BenchTtftOptions& options);

}  // namespace longhaul
