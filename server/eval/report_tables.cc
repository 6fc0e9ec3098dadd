#include "server/eval/report_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <utility>

#include "server/console.h"
#include "server/eval/targets.h"

namespace longhaul::eval {
namespace {

constexpr const char* kNothing = "-";

std::string ScoreText(Unit unit, const MeanScore& mean) {
  if (mean.n == 0 || !std::isfinite(mean.sum)) return kNothing;
  switch (unit) {
    case Unit::kShare:
      return fmt::format("{:.1f} %", 100 * mean.Value());
    case Unit::kPerplexity:
      return fmt::format("{:.4g}", mean.Value());
    case Unit::kNats:
      return fmt::format("{:.2g}", mean.Value());
  }
  return "";
}

// What PolicyTable has a column for: a suite's mean, or one of the units that a suite has beside.
std::string ColumnOf(const EvalScore& score) {
  switch (score.unit) {
    case Unit::kShare:
      return score.suite;
    case Unit::kPerplexity:
      return "perplexity";
    case Unit::kNats:
      return "KL, nats";
  }
  return "";
}

// Points, percent or a plain share, as its target is told.
std::string CheckText(size_t check, double value) {
  switch (check) {
    case 0:
    case 1:
      return fmt::format("{:.1f}", 100 * value);
    case 2:
      return fmt::format("{:+.2f} %", 100 * value);
    case 3:
      return fmt::format("{:.1f} %", 100 * value);
    default:
      return fmt::format("{:.3f}", value);
  }
}

std::vector<std::string> TargetRow(const std::vector<Check>& checks) {
  std::vector<std::string> row = {"target", ""};
  for (size_t i = 0; i < checks.size(); ++i) {
    row.push_back((checks[i].at_least ? ">= " : "<= ") + CheckText(i, checks[i].bound));
  }
  row.emplace_back("all");
  return row;
}

std::vector<std::string> ChecksRow(const PolicyChecks& checks) {
  std::vector<std::string> row = {checks.policy, fmt::format("{}", checks.length_tokens)};
  int n_held = 0, n_measured = 0;
  for (size_t i = 0; i < checks.checks.size(); ++i) {
    const Check& check = checks.checks[i];
    if (!check.measured) {
      row.emplace_back(kNothing);
      continue;
    }
    ++n_measured;
    n_held += !check.Missed();
    row.push_back(CheckText(i, check.measured->value));
    const bool lost = check.measured->value > 0 && !check.measured->of.empty();
    if (lost) row.back() += fmt::format(" ({})", check.measured->of);
    if (check.Missed()) row.back() += kMissed;
  }
  row.push_back(fmt::format("{} of {}", n_held, n_measured));
  return row;
}

std::string MarkdownRow(const std::vector<std::string>& cells) {
  std::string row = "|";
  for (std::string cell : cells) {
    for (size_t at = 0; (at = cell.find('|', at)) != std::string::npos; at += 2) {
      cell.insert(at, "\\");
    }
    row += fmt::format(" {} |", cell);
  }
  return row + "\n";
}

std::vector<ReportTable> Tables(const EvalReport& report) {
  std::vector<ReportTable> tables;
  for (ReportTable table : {TaskTable(report), PolicyTable(report), DenseTable(report)}) {
    if (table.rows.size() > 1) tables.push_back(std::move(table));
  }
  return tables;
}

}  // namespace

ReportTable TaskTable(const EvalReport& report) {
  std::vector<std::pair<std::string, int64_t>> rows;  // task and length, as they come
  std::map<std::tuple<std::string, int64_t, size_t>, MeanScore> means;
  std::map<std::string, Unit> units;
  for (size_t p = 0; p < report.policies.size(); ++p) {
    for (const EvalScore& score : report.policies[p].scores) {
      if (score.bucket_begin >= 0) continue;
      const std::pair<std::string, int64_t> row{score.task, score.length_tokens};
      if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(row);
      means[{score.task, score.length_tokens, p}].Add(score);
      units[score.task] = score.unit;
    }
  }
  ReportTable table{.title = "By task", .note = "", .rows = {{"task", "tokens"}}};
  for (const EvalPolicy& policy : report.policies) table.rows[0].push_back(policy.name);
  for (const auto& [task, length] : rows) {
    table.rows.push_back({task, fmt::format("{}", length)});
    for (size_t p = 0; p < report.policies.size(); ++p) {
      table.rows.back().push_back(ScoreText(units[task], means[{task, length, p}]));
    }
  }
  return table;
}

ReportTable PolicyTable(const EvalReport& report) {
  std::vector<std::string> columns;
  for (const EvalPolicy& policy : report.policies) {
    for (const EvalScore& score : policy.scores) {
      const std::string column = ColumnOf(score);
      if (std::find(columns.begin(), columns.end(), column) == columns.end()) {
        columns.push_back(column);
      }
    }
  }
  ReportTable table{
      .title = "By policy",
      .note =
          "Density: attended (query, key) pairs of the causal triangle. Recall: softmax mass "
          "that rows which chose nothing kept of it, mean and first percentile.",
      .rows = {{"policy", "tokens", "prompts", "density", "recall mean", "recall p1"}}};
  std::vector<std::string>& head = table.rows[0];
  head.insert(head.end(), columns.begin(), columns.end());
  head.emplace_back("TTFT median");
  for (const int64_t length_tokens : report.lengths) {
    for (const EvalPolicy& policy : report.policies) {
      const bool audited = !policy.recall_histogram.empty();
      for (const EvalLength& l : policy.lengths) {
        if (l.length_tokens != length_tokens) continue;
        std::vector<std::string> row = {policy.name,
                                        fmt::format("{}", length_tokens),
                                        fmt::format("{}", l.n),
                                        fmt::format("{:.2f} %", 100 * l.density),
                                        fmt::format("{:.4f}", l.recall_mean),
                                        audited ? fmt::format("{:.3f}", l.recall_p1) : kNothing};
        for (const std::string& column : columns) {
          MeanScore mean;
          Unit unit = Unit::kShare;
          for (const EvalScore& score : policy.scores) {
            const bool here = score.length_tokens == length_tokens && score.bucket_begin < 0;
            if (!here || ColumnOf(score) != column) continue;
            mean.Add(score);
            unit = score.unit;
          }
          row.push_back(ScoreText(unit, mean));
        }
        const bool timed = l.ttft_median_s > 0 && std::isfinite(l.ttft_median_s);
        row.push_back(timed ? FormatDuration(l.ttft_median_s) : kNothing);
        table.rows.push_back(std::move(row));
      }
    }
  }
  return table;
}

ReportTable DenseTable(const EvalReport& report) {
  ReportTable table{
      .title = "Against dense",
      .note =
          "Worst suite and worst task: percentage points of the mean score that were lost; "
          "negative where every one gained. Perplexity: its rise. One prompt of a task more or "
          "less moves its score by 100 points over the number of its prompts.",
      .rows = {{"policy", "tokens", "worst suite", "worst task", "perplexity", "agreement",
                "recall mean", "recall p1", "held"}}};
  const std::vector<PolicyChecks> all = CheckAgainstDense(report);
  if (all.empty()) return table;
  table.rows.push_back(TargetRow(all[0].checks));
  for (const PolicyChecks& checks : all) table.rows.push_back(ChecksRow(checks));
  return table;
}

std::string ReportText(const EvalReport& report) {
  std::string text;
  for (const ReportTable& table : Tables(report)) {
    text += fmt::format("{}{}\n{}", text.empty() ? "" : "\n", table.title, FormatTable(table.rows));
  }
  return text;
}

std::string ReportMarkdown(const EvalReport& report) {
  std::string text = fmt::format(
      "# Accuracy beside speed: {}\n\n`longhaul eval` {} on {}; {}; prompts of each kind: {}, seed "
      "{}; filler text: {}.\n",
      report.model, report.version, report.target, report.created, report.n_samples, report.seed,
      report.text.empty() ? "built in" : report.text);
  for (const ReportTable& table : Tables(report)) {
    text += fmt::format("\n## {}\n\n", table.title);
    if (!table.note.empty()) text += table.note + "\n\n";
    text += MarkdownRow(table.rows[0]);
    text += MarkdownRow(std::vector<std::string>(table.rows[0].size(), "---"));
    for (size_t r = 1; r < table.rows.size(); ++r) text += MarkdownRow(table.rows[r]);
  }
  return text;
}

}  // namespace longhaul::eval
