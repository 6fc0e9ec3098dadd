// `longhaul bench load`: what a server does for short requests while long prompts run, measured
// from outside over HTTP, against this server or any other that speaks OpenAI's API.
#pragma once

#include "server/load/options.h"

namespace longhaul {

// Prints tables on standard output and progress on standard error; writes the JSON and SVG files.
// Exit code: 0 every request of the scenarios was answered, 1 some failed or the server did not
// answer, 2 unusable options. A bound that is missed is shown, and no failure.
int RunBenchLoad(const load::LoadOptions& options);

}  // namespace longhaul
