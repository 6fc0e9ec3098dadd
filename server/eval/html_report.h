// The report of `longhaul eval` as one HTML page: inline SVG and style, no script, nothing loaded
// from anywhere. Well-formed XML, too. Pure function of the report; no files.
#pragma once

#include <string>

#include "server/eval/report.h"

namespace longhaul::eval {

std::string HtmlReport(const EvalReport& report);

}  // namespace longhaul::eval
