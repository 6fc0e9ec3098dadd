// `longhaul serve`: HTTP and gRPC on one loaded model until SIGTERM or SIGINT; then it drains.
#pragma once

#include "server/server_config.h"

namespace longhaul {

// Exit code: 0 after a clean drain, 1 when something failed or requests had to be cut off.
// Call before other threads exist: it blocks the signals it waits for.
int RunServe(const ServerConfig& config);

}  // namespace longhaul
