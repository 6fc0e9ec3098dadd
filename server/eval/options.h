// What `longhaul eval` and `longhaul calibrate` were asked for; filled by the command line, const
// afterwards.
#pragma once

#include <cstdint>
#include <limits>
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
  double timeout_s = 3600;    // of one request to it
  std::string out_dir;        // where results are kept, so that a run can go on; "" = nowhere
  std::string json_path;      // "" = none
  std::string html_path;      // "" = none
  std::string markdown_path;  // "" = none
};

// What a sparse prefill may lose against dense, at each length.
struct AccuracyTarget {
  double min_agreement = 0.98;  // share of places with the same likeliest token
  double max_kl = std::numeric_limits<double>::infinity();  // nats; infinity = any
  double max_perplexity_rise = 0.005;
  double min_recall = 0.9;   // mean of the audit rows
  double min_recall_p1 = 0;  // their first percentile
};

struct CalibrateOptions {
  std::string text_file;
  std::vector<int64_t> lengths = {16384};  // prompt tokens
  int64_t samples = 2;                     // prompts of each length, from each half of the text
  AccuracyTarget target;
  std::string out_path = "calibrated.yaml";
  std::string json_path;  // "" = none
  std::string state_dir;  // where results are kept, so that a run can go on; "" = nowhere
};

// "needle", "ruler", "passage", "ppl", "agreement".
const std::vector<std::string>& SuiteNames();

// InvalidArgument names the flag, the value and what is allowed.
absl::Status CheckOptions(const EvalOptions& options);
absl::Status CheckOptions(const CalibrateOptions& options);

}  // namespace longhaul::eval
