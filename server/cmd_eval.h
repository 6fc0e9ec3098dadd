// `longhaul eval`: accuracy beside speed, of any set of attention policies, on a model folder in
// this process or over HTTP on a server.
#pragma once

#include "server/eval/options.h"
#include "server/server_config.h"

namespace longhaul {

// Prints tables, writes the files that were asked for. `config.model` is the folder, or with a URL
// the model's name at the server. Exit code as RunGenerate.
int RunEval(const ServerConfig& config, const eval::EvalOptions& options);

}  // namespace longhaul
