// `longhaul generate`: one prompt from the command line, through the same session as the servers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "server/server_config.h"

namespace longhaul {

struct GenerateOptions {
  std::string prompt;       // text; or
  std::string prompt_file;  // a path, "-" = standard input
  int64_t max_tokens = 128;
  double temperature = 0;
  std::optional<uint64_t> seed;
  bool json = false;  // one JSON object on standard output instead of text and table
};

// Answer to standard output; progress, phases and errors to standard error. Exit code: 0 done,
// 1 failed, 2 unusable arguments.
int RunGenerate(const ServerConfig& config, const GenerateOptions& options);

}  // namespace longhaul
