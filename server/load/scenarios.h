// The scenarios of `longhaul bench load`: each a coroutine that fills its report. What a server
// cannot do leaves `skipped` set; failed requests are counted, not hidden, and end nothing.
#pragma once

#include "server/load/load_run.h"

namespace longhaul::load {

// Short requests that arrive at random, first among themselves, then beside one long prompt that is
// asked over and over with new texts.
awaitable<void> RunMixed(LoadRun& run, ScenarioReport& report);
// k long prompts in a row, then at once.
awaitable<void> RunParallel(LoadRun& run, ScenarioReport& report);
// A client that goes away in the middle of a long prompt, and the short request that comes next.
awaitable<void> RunCancel(LoadRun& run, ScenarioReport& report);
// A client that goes away at 80 % of a long prompt and asks again; and a known prompt that grows.
awaitable<void> RunRetry(LoadRun& run, ScenarioReport& report);
// /health while very large bodies arrive.
awaitable<void> RunHealthPolls(LoadRun& run, ScenarioReport& report);
// N streams at once for a while.
awaitable<void> RunStreams(LoadRun& run, ScenarioReport& report);

}  // namespace longhaul::load
