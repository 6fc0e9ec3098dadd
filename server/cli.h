// The command line: subcommands, flags from the table in server_config.h, help texts, exit codes.
#pragma once

#include "server/server_config.h"

namespace longhaul {

// Parses and runs. Exit code: 0 done, 1 failed, 2 unusable arguments.
int RunCli(int argc, const char* const* argv, const Environment& environment);

}  // namespace longhaul
