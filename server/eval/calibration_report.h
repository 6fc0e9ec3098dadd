// What `longhaul calibrate` tells: a line for each candidate, the table, JSON, and the YAML file
// that `longhaul serve --config` reads. Pure text; writes no files.
#pragma once

#include <string>

#include "server/eval/calibration_search.h"
#include "server/eval/options.h"
#include "server/server_config.h"

namespace longhaul::eval {

// "dense", or "alpha 0.9, window 1024, rows 32".
std::string CandidateText(const Candidate& candidate);
// "16384 tokens: prefill 1.2 s, density 21.3 %, recall ... : meets".
std::string MeasureText(const AccuracyTarget& target, const LengthMeasure& measure);

// Everything that was tried, and what came of it.
std::string CalibrationTable(const CalibrateOptions& options, const Calibration& calibration);
std::string CalibrationJson(const CalibrateOptions& options, const ServerConfig& config,
                            const Calibration& calibration);

// `config` is what the candidates were measured with. Its model, and what else changes keys and
// values, stand in the file; so does --sparse-mode dense where no candidate is better.
std::string CalibrationYaml(const CalibrateOptions& options, const ServerConfig& config,
                            const Calibration& calibration);

}  // namespace longhaul::eval
