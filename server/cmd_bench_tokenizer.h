// `longhaul bench tokenizer`: how fast a model's tokenizer encodes English and the inputs that are
// hard for one. Prints a table, or JSON. The command line is parsed by the caller.
#pragma once

#include <string>

namespace longhaul {

struct BenchTokenizerOptions {
  std::string model_dir;
  std::string text_file;  // in place of the built-in English; repeated or cut to `megabytes`
  double megabytes = 5;   // 1e6 bytes; 0.001 .. 256
  int n_threads = 0;      // of the second column; 0 = all processors
  bool json = false;      // one JSON object on stdout, no table
};

// Returns the exit code; what went wrong is on stderr.
int RunBenchTokenizer(const BenchTokenizerOptions& options);

}  // namespace longhaul
