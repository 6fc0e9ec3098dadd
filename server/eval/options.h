// What `longhaul eval` was asked for; filled by the command line, const afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::eval {

struct EvalOptions {
  std::vector<std::string> suites = {"needle"};
  std::vector<std::string> policies = {"dense", "sample"};
  std::vector<int64_t> lengths = {4096, 16384};          // prompt tokens
  std::vector<double> depths = {0, 0.25, 0.5, 0.75, 1};  // of suite needle
  int64_t samples = 2;  // prompts of each task and length, and of each depth
  uint64_t seed = 1;
  std::string text_file;  // what prompts are filled with; "" = built-in sentences
  std::string url;        // of an OpenAI-compatible server; "" = in process
  std::string api_key;
  double timeout_s = 3600;  // of one request to it
  std::string out_dir;      // where results are kept, so that a run can go on; "" = nowhere
  std::string json_path;    // "" = none
  std::string html_path;    // "" = none
};

// "needle", "ruler", "passage", "ppl", "agreement".
const std::vector<std::string>& SuiteNames();

// InvalidArgument names the flag, the value and what is allowed.
absl::Status CheckOptions(const EvalOptions& options);

}  // namespace longhaul::eval
