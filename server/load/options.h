// What `longhaul bench load` was asked for; filled by the command line, const afterwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::load {

struct LoadOptions {
  std::string url = "http://127.0.0.1:8000";
  std::string api_key;
  std::string model;  // "" = the first that /v1/models names
  bool chat = false;
  std::string sparse_mode;             // our extension; "" = the server's default
  std::string extra_body;              // JSON object merged into every request
  std::vector<std::string> scenarios;  // empty = all

  int64_t short_tokens = 256;  // of short prompts
  int64_t short_output = 16;   // tokens of their answers
  int64_t long_tokens = 131072;
  double utilisation = 0.5;  // of the server by short requests
  double seconds = 30;       // of a window under load
  int64_t parallel = 4;      // long prompts at once
  int64_t parallel_tokens = 65536;
  int64_t cancels = 5;
  int64_t retries = 3;
  int64_t new_tokens = 1024;        // after a prompt that is known
  int64_t body_bytes = 27'000'000;  // of the health scenario
  int64_t streams = 32;
  int64_t stream_output = 64;
  double slice_ms = 250;    // of the server: its --slice-ms, part of the bounds
  double timeout_s = 3600;  // of one request
  uint64_t seed = 1;

  std::string json_path;  // "" = none
  std::string svg_path;
};

// Names in the order in which they run.
const std::vector<std::string>& ScenarioNames();

// InvalidArgument names the flag, the value and what is allowed.
absl::Status CheckOptions(const LoadOptions& options);

}  // namespace longhaul::load
