// `longhaul bench linear`: how fast linear layers are in each weight format, beside this machine's
// measured peaks: many rows against its matrix products, few rows against its memory. Prints a
// table, or JSON. The command line is parsed by the caller.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul {

struct BenchLinearOptions {
  std::vector<std::string> shapes = {"3072x2048", "2048x2048", "16384x2048",
                                     "2048x8192"};  // outputs x inputs
  std::vector<int64_t> rows = {1, 8, 512, 4096};
  int n_threads = 0;  // 0 = all processors
  bool json = false;  // one JSON object on stdout, no table
};

// Returns the exit code; what went wrong is on stderr.
int RunBenchLinear(const BenchLinearOptions& options);

}  // namespace longhaul
