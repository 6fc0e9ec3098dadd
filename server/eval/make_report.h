// From results to an EvalReport, and from that to JSON. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "server/eval/options.h"
#include "server/eval/question.h"
#include "server/eval/report.h"
#include "server/eval/result.h"
#include "server/eval/target.h"

namespace longhaul::eval {

// A prompt that was asked, and its result under each policy, in the order of the options.
struct Measured {
  TaskSpec spec;
  std::vector<const Result*> results;
};

EvalReport MakeReport(const EvalOptions& options, const TargetInfo& info,
                      const std::vector<Measured>& measured);

// One JSON object with all of it.
std::string ReportJson(const EvalReport& report);

}  // namespace longhaul::eval
