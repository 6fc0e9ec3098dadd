// `longhaul health`: asks a server on this machine whether it is ready; for container health checks.
#pragma once

#include <string>

namespace longhaul {

// Exit code: 0 ready, 1 not (the reason is on stderr).
int RunHealth(const std::string& host, int port);

}  // namespace longhaul
