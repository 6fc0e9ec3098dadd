#include "server/eval/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "server/escape_xml.h"
#include "server/eval/html_charts.h"
#include "server/eval/html_page.h"
#include "server/eval/report_tables.h"

namespace longhaul::eval {
namespace {

const std::vector<std::string> kHeadClasses = {"streaming: sink and window", "sparse",
                                               "dense, or repaired"};

std::string TaskName(const EvalScore& score) {
  return score.suite == score.task ? score.suite : score.suite + " / " + score.task;
}

bool IsAccuracy(const EvalScore& score) {
  return score.unit == Unit::kShare && score.bucket_begin < 0;
}

class Page : public HtmlPage {
 public:
  explicit Page(const EvalReport& report)
      : HtmlPage("Longhaul eval: " + report.model), report_(report) {}

  std::string Write() {
    Heading();
    Summary();
    AgainstDense();
    DepthMaps();
    Add("<div class=\"row\">\n<section>\n");
    Accuracy();
    Add("</section>\n<section>\n");
    Times();
    Add("</section>\n</div>\n");
    Perplexity();
    Recalls();
    Heads();
    AllScores();
    return Finish();
  }

 private:
  std::vector<double> LengthTicks() const {
    std::vector<double> ticks;
    for (const int64_t length : report_.lengths) ticks.push_back(static_cast<double>(length));
    return ticks;
  }

  void Heading();
  void Summary();
  void AgainstDense();
  void DepthMaps();
  void Accuracy();
  void Times();
  void Perplexity();
  void Recalls();
  void Heads();
  void AllScores();

  // Scores of one (suite, task) by length and depth.
  Grid DepthGrid(const EvalPolicy& policy, const std::string& name) const;

  const EvalReport& report_;
};

void Page::Heading() {
  Add("<h1>Accuracy beside speed: {}</h1>\n<dl>\n", EscapeXml(report_.model));
  const auto fact = [&](const char* name, const std::string& value) {
    if (!value.empty()) Add("<dt>{}</dt><dd>{}</dd>\n", name, EscapeXml(value));
  };
  fact("measured on", report_.target);
  fact("at", report_.created);
  fact("filler text", report_.text.empty() ? "built in" : report_.text);
  fact("prompts of each kind", fmt::format("{} (seed {})", report_.n_samples, report_.seed));
  fact("longhaul", report_.version);
  Add("</dl>\n");
}

void Page::Summary() {
  Section("Policies",
          "Means over all prompts. Density is the share of the causal (query, key) pairs "
          "that was attended to, recall the softmax mass that audit rows kept of it.");
  // The suites' shares are columns; other units stay in the table of all scores.
  std::vector<std::string> suites;
  for (const EvalPolicy& policy : report_.policies) {
    for (const EvalScore& score : policy.scores) {
      if (!IsAccuracy(score)) continue;
      if (std::find(suites.begin(), suites.end(), score.suite) == suites.end()) {
        suites.push_back(score.suite);
      }
    }
  }
  std::vector<std::vector<std::string>> rows = {{"policy"}};
  rows[0].insert(rows[0].end(), suites.begin(), suites.end());
  rows[0].insert(rows[0].end(), {"density", "recall", "1st percentile", "TTFT, longest"});
  for (const EvalPolicy& policy : report_.policies) {
    rows.push_back({policy.name});
    std::vector<std::string>& row = rows.back();
    for (const std::string& suite : suites) {
      MeanScore mean;
      for (const EvalScore& score : policy.scores) {
        if (IsAccuracy(score) && score.suite == suite) mean.Add(score);
      }
      row.push_back(mean.n == 0 ? "–" : Shown(Quantity::kShare, mean.Value()));
    }
    const bool audited = !policy.recall_histogram.empty();
    row.push_back(Shown(Quantity::kShare, policy.density));
    row.push_back(audited ? fmt::format("{:.4f}", policy.recall_mean) : "–");
    row.push_back(audited ? fmt::format("{:.3f}", policy.recall_p1) : "–");
    row.push_back(policy.lengths.empty() || policy.lengths.back().ttft_median_s <= 0
                      ? "–"
                      : Shown(Quantity::kSeconds, policy.lengths.back().ttft_median_s) + " at " +
                            Shown(Quantity::kTokens,
                                  static_cast<double>(policy.lengths.back().length_tokens)));
  }
  Table(rows);
}

Grid Page::DepthGrid(const EvalPolicy& policy, const std::string& name) const {
  std::set<double> depths;
  std::set<int64_t> lengths;
  for (const EvalPolicy& other : report_.policies) {  // the same grid for all
    for (const EvalScore& score : other.scores) {
      if (!IsAccuracy(score) || score.depth < 0 || TaskName(score) != name) continue;
      depths.insert(score.depth);
      lengths.insert(score.length_tokens);
    }
  }
  Grid grid{
      .x_title = "prompt tokens", .y_title = "depth", .columns = {}, .rows = {}, .values = {}};
  for (const int64_t length : lengths) {
    grid.columns.push_back(Shown(Quantity::kTokens, static_cast<double>(length)));
  }
  for (const double depth : depths) grid.rows.push_back(Shown(Quantity::kShare, depth));
  grid.values.assign(depths.size() * lengths.size(), -1);
  for (const EvalScore& score : policy.scores) {
    if (!IsAccuracy(score) || score.depth < 0 || TaskName(score) != name) continue;
    const auto row = std::distance(depths.begin(), depths.find(score.depth));
    const auto column = std::distance(lengths.begin(), lengths.find(score.length_tokens));
    grid.values[static_cast<size_t>(row) * lengths.size() + static_cast<size_t>(column)] =
        score.score;
  }
  return grid;
}

void Page::DepthMaps() {
  std::vector<std::string> names;
  for (const EvalPolicy& policy : report_.policies) {
    for (const EvalScore& score : policy.scores) {
      const std::string name = TaskName(score);
      if (IsAccuracy(score) && score.depth >= 0 &&
          std::find(names.begin(), names.end(), name) == names.end()) {
        names.push_back(name);
      }
    }
  }
  if (names.empty()) return;
  Section("Where it finds what",
          "Right answers in percent, by the length of the prompt and how deep "
          "in it the answer was planted (0&#160;% is its start).");
  for (const std::string& name : names) {
    Add("<h3>{}</h3>\n<div class=\"row\">\n", EscapeXml(name));
    for (const EvalPolicy& policy : report_.policies) {
      Figure(policy.name, DrawHeatMap(DepthGrid(policy, name)));
    }
    Add("</div>\n");
  }
  Add("<p class=\"scale\">{}</p>\n", DrawShareScale());
}

void Page::Accuracy() {
  std::vector<Series> series;
  for (const EvalPolicy& policy : report_.policies) {
    Series s{.name = policy.name, .points = {}, .joined = true};
    for (const EvalLength& length : policy.lengths) {
      MeanScore mean;
      for (const EvalScore& score : policy.scores) {
        const bool here = score.length_tokens == length.length_tokens;
        if (IsAccuracy(score) && here && score.suite != "agreement") mean.Add(score);
      }
      if (mean.n == 0) continue;
      const std::string tokens =
          Shown(Quantity::kTokens, static_cast<double>(length.length_tokens));
      s.points.push_back({length.density, mean.Value(),
                          fmt::format("{}, {} tokens: {} at density {}", policy.name, tokens,
                                      Shown(Quantity::kShare, mean.Value()),
                                      Shown(Quantity::kShare, length.density))});
    }
    if (!s.points.empty()) series.push_back(std::move(s));
  }
  if (series.empty()) return;
  Section("Accuracy against density",
          "A point for each length, the longest prompts mostly at the "
          "lowest density; the mean over all tasks with right answers. "
          "Up and to the left is better.");
  Figure("Right answers by what was computed",
         DrawChart({.title = "density", .quantity = Quantity::kShare, .scale = Scale::kLog},
                   {.title = "right answers", .quantity = Quantity::kShare}, series));
}

void Page::Times() {
  std::vector<Series> series;
  for (const EvalPolicy& policy : report_.policies) {
    Series s{.name = policy.name, .points = {}, .joined = true};
    for (const EvalLength& length : policy.lengths) {
      if (length.ttft_median_s <= 0) continue;  // not measured
      const auto tokens = static_cast<double>(length.length_tokens);
      s.points.push_back(
          {tokens, length.ttft_median_s,
           fmt::format("{}, {} tokens: {}", policy.name, Shown(Quantity::kTokens, tokens),
                       Shown(Quantity::kSeconds, length.ttft_median_s))});
    }
    if (!s.points.empty()) series.push_back(std::move(s));
  }
  if (series.empty()) return;
  Section("Time to first token", "Median of all prompts of a length.");
  Figure("TTFT by length",
         DrawChart(
             {.title = "prompt tokens",
              .quantity = Quantity::kTokens,
              .scale = Scale::kLog,
              .ticks = LengthTicks()},
             {.title = "time to first token", .quantity = Quantity::kSeconds, .scale = Scale::kLog},
             series));
}

void Page::Perplexity() {
  std::set<int64_t> lengths;
  for (const EvalPolicy& policy : report_.policies) {
    for (const EvalScore& score : policy.scores) {
      if (score.unit == Unit::kPerplexity && score.bucket_begin >= 0) {
        lengths.insert(score.length_tokens);
      }
    }
  }
  if (lengths.empty()) return;
  Section("Perplexity by position",
          "Of the tokens up to each position of a document; lower is better.");
  Add("<div class=\"row\">\n");
  for (const int64_t length : lengths) {
    std::vector<Series> series;
    std::set<double> ends;
    for (const EvalPolicy& policy : report_.policies) {
      Series s{.name = policy.name, .points = {}, .joined = true};
      for (const EvalScore& score : policy.scores) {
        if (score.unit != Unit::kPerplexity || score.bucket_begin < 0 ||
            score.length_tokens != length) {
          continue;
        }
        ends.insert(static_cast<double>(score.bucket_end));
        s.points.push_back({static_cast<double>(score.bucket_end), score.score,
                            fmt::format("{}: {:.4g}", policy.name, score.score)});
      }
      if (!s.points.empty()) series.push_back(std::move(s));
    }
    Figure(fmt::format("{} tokens", Shown(Quantity::kTokens, static_cast<double>(length))),
           DrawChart({.title = "position",
                      .quantity = Quantity::kTokens,
                      .scale = Scale::kLinear,
                      .ticks = {ends.begin(), ends.end()}},
                     {.title = "perplexity", .quantity = Quantity::kNumber}, series));
  }
  Add("</div>\n");
}

void Page::Recalls() {
  constexpr double kLow = 0.5;
  constexpr int kBars = 25;
  bool begun = false;
  for (const EvalPolicy& policy : report_.policies) {
    double total = 0;
    for (const int64_t count : policy.recall_histogram) total += static_cast<double>(count);
    if (!(total > 0)) continue;
    if (!begun) {
      Section("Recall",
              "How much of the softmax mass the rows that chose nothing kept, over all "
              "heads and layers. The scale is logarithmic: rare losses count.");
      Add("<div class=\"row\">\n");
    }
    begun = true;
    std::vector<double> shares(kBars, 0.0);
    const size_t n_cells = policy.recall_histogram.size();
    for (size_t cell = 0; cell < n_cells; ++cell) {
      const double recall = static_cast<double>(cell) / static_cast<double>(n_cells - 1);
      const int bar = static_cast<int>((recall - kLow) / (1 - kLow) * kBars);
      shares[std::clamp(bar, 0, kBars - 1)] +=
          static_cast<double>(policy.recall_histogram[cell]) / total;
    }
    Figure(policy.name, DrawHistogram(shares, kLow,
                                      fmt::format("recall: mean {:.4f}, 1st percentile {:.3f}",
                                                  policy.recall_mean, policy.recall_p1)));
  }
  if (begun) Add("</div>\n");
}

void Page::Heads() {
  if (report_.n_layers <= 0 || report_.n_heads <= 0) return;
  const auto n_cells = static_cast<size_t>(report_.n_layers) * static_cast<size_t>(report_.n_heads);
  Grid empty{.x_title = "query head", .y_title = "layer", .columns = {}, .rows = {}, .values = {}};
  for (int32_t h = 0; h < report_.n_heads; ++h) empty.columns.push_back(std::to_string(h));
  for (int32_t l = 0; l < report_.n_layers; ++l) empty.rows.push_back(std::to_string(l));
  bool begun = false;
  for (const EvalPolicy& policy : report_.policies) {
    Grid density = empty, classes = empty;
    density.values.assign(n_cells, -1);
    classes.values.assign(n_cells, -1);
    bool any = false;
    for (const EvalHead& head : policy.heads) {
      const bool inside = head.layer >= 0 && head.layer < report_.n_layers && head.head >= 0 &&
                          head.head < report_.n_heads;
      if (!inside || head.n_epochs == 0) continue;
      any = true;
      const size_t at = static_cast<size_t>(head.layer) * static_cast<size_t>(report_.n_heads) +
                        static_cast<size_t>(head.head);
      density.values[at] = head.density;
      const int64_t counts[] = {head.n_streaming, head.n_sparse, head.n_dense};
      classes.values[at] = static_cast<double>(
          std::distance(counts, std::max_element(std::begin(counts), std::end(counts))));
    }
    if (!any) continue;
    if (!begun) {
      Section("Heads",
              "What each query head of each layer kept, and what it mostly was over the "
              "epochs of all prompts. A cell that is not drawn chose nothing: of the last layer, "
              "only the rows that are read are computed.");
    }
    begun = true;
    Add("<h3>{}</h3>\n<div class=\"row\">\n", EscapeXml(policy.name));
    Figure("density", DrawFineMap(density));
    Figure("class", DrawClassMap(classes, kHeadClasses));
    Add("</div>\n");
  }
  if (begun) Add("<p class=\"scale\">{}</p>\n", DrawShareScale());
}

void Page::AgainstDense() {
  const ReportTable table = DenseTable(report_);
  if (table.rows.size() < 2) return;
  Section("Against dense", table.note.c_str());
  Table(table.rows);
}

void Page::AllScores() {
  Add("<h2>All scores</h2>\n");
  for (const ReportTable& table : {PolicyTable(report_), TaskTable(report_)}) {
    if (table.rows.size() < 2) continue;
    Add("<details><summary>{}</summary>\n", table.title);
    Table(table.rows);
    Add("</details>\n");
  }
}

}  // namespace

std::string HtmlReport(const EvalReport& report) { return Page(report).Write(); }

}  // namespace longhaul::eval
