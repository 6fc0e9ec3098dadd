// `longhaul health`: asks the server on this machine whether it is ready; for container health
// checks. Where it listens comes from the same settings as for `serve`: --host, --port,
// LONGHAUL_PORT, --config.
#pragma once

#include "server/server_config.h"

namespace longhaul {

// Exit code: 0 ready, 1 not (the reason is on stderr), 2 when the settings do not name a port.
int RunHealth(const ServerConfig& config);

}  // namespace longhaul
