// The tables of an EvalReport, for a terminal, a document and the HTML page. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "server/eval/report.h"

namespace longhaul::eval {

struct ReportTable {
  std::string title;
  std::string note;                            // what the numbers mean; may be empty
  std::vector<std::vector<std::string>> rows;  // the first one is the head
};

// Of a cell in the table against dense: it ends in this when its target was missed.
inline constexpr const char* kMissed = " missed";

// Scores of each task and length, policies side by side; depths taken together.
ReportTable TaskTable(const EvalReport& report);
// What each policy computed at each length, how long it took, and the means of the suites.
ReportTable PolicyTable(const EvalReport& report);
// What the policies lost against dense, beside what they may lose (server/eval/targets.h). No rows
// but the head where there is nothing to compare.
ReportTable DenseTable(const EvalReport& report);

// All of them, aligned; and as a document in Markdown.
std::string ReportText(const EvalReport& report);
std::string ReportMarkdown(const EvalReport& report);

}  // namespace longhaul::eval
