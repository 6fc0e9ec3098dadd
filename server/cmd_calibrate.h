// `longhaul calibrate`: the settings of sparse prefill that make a model fastest on the user's text
// within an accuracy that was asked for. Prints what it tried and writes a YAML file for
// `longhaul serve --config`.
#pragma once

#include "server/eval/options.h"
#include "server/server_config.h"

namespace longhaul {

// 0; 1 when the model cannot be run; 2 for what was asked wrongly; 3 when nothing meets the target
// (the file then says dense).
int RunCalibrate(const ServerConfig& config, const eval::CalibrateOptions& options);

}  // namespace longhaul
