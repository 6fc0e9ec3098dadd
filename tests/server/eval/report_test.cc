// What is made of an EvalReport: the comparison with dense, tables, and the HTML page (well-formed,
// complete, and nothing in it that loads or runs). And how long a run still takes.
#include "server/eval/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "server/eval/html_charts.h"
#include "server/eval/report_tables.h"
#include "server/eval/targets.h"
#include "server/eval/work_left.h"

namespace longhaul::eval {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// "" for well-formed markup: every element closed in order, no bare '<' or '&' in text.
std::string MarkupFault(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = 0; at < page.size();) {
    if (page[at] == '&') {
      const size_t end = page.find(';', at);
      if (end == std::string::npos || end - at > 7) return "bare & at " + page.substr(at, 40);
    }
    if (page[at] != '<') {
      ++at;
      continue;
    }
    const size_t end = page.find('>', at);
    if (end == std::string::npos) return "open tag";
    const std::string tag = page.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag.find('<') != std::string::npos) return "bare < in " + tag.substr(0, 40);
    if (tag[0] == '!' || tag.back() == '/') continue;
    if (tag[0] != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
    } else {
      if (open.empty() || open.back() != tag.substr(1)) return "closes " + tag;
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back() + " is not closed";
}

size_t CountOf(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

EvalPolicy MakePolicy(const std::string& name, double density) {
  EvalPolicy policy;
  policy.name = name;
  policy.density = density;
  for (const int64_t length : {4096, 32768}) {
    for (const double depth : {0.0, 0.5, 1.0}) {
      EvalScore score;
      score.suite = score.task = "needle";
      score.length_tokens = length;
      score.depth = depth;
      score.n = 4;
      score.score = length > 4096 && depth == 0.5 ? density : 1.0;
      policy.scores.push_back(score);
    }
    EvalLength at;
    at.length_tokens = length;
    at.density = density;
    at.ttft_median_s = 1e-4 * static_cast<double>(length) * density;
    policy.lengths.push_back(at);
    EvalScore perplexity;
    perplexity.suite = perplexity.task = "ppl";
    perplexity.unit = Unit::kPerplexity;
    perplexity.length_tokens = length;
    perplexity.n = 1;
    perplexity.score = 12.5;
    policy.scores.push_back(perplexity);
    perplexity.bucket_begin = 0;
    perplexity.bucket_end = length;
    policy.scores.push_back(perplexity);
  }
  policy.recall_histogram.assign(1001, 0);
  policy.recall_histogram[990] = 97;
  policy.recall_histogram[100] = 3;
  policy.recall_mean = 0.9633;
  policy.recall_p1 = 0.1;
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t head = 0; head < 4; ++head) {
      EvalHead cell;
      cell.layer = layer;
      cell.head = head;
      cell.density = density;
      cell.n_epochs = 3;
      (head == 0 ? cell.n_dense : cell.n_streaming) = 3;
      policy.heads.push_back(cell);
    }
  }
  return policy;
}

EvalReport MakeReport() {
  EvalReport report;
  report.target = "/models/a<b>&\"c\"";
  report.model = "<script>alert('x')</script>";
  report.created = "2026-01-31 12:00 UTC";
  report.text = "]]> & text";
  report.n_samples = 4;
  report.n_layers = 2;
  report.n_heads = 4;
  report.lengths = {4096, 32768};
  report.depths = {0, 0.5, 1};
  report.policies = {MakePolicy("dense", 1.0), MakePolicy("sample:alpha=0.9<&", 0.11)};
  return report;
}

TEST(HtmlReportTest, IsWellFormedAndLoadsNothing) {
  const std::string page = HtmlReport(MakeReport());
  EXPECT_EQ(MarkupFault(page), "");
  for (const char* outside : {"http:", "https:", "src=", "href=", "url(", "@import", "<script",
                              "<link", "<iframe", "onload", "nan", "inf"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
  EXPECT_THAT(page, HasSubstr("sample:alpha=0.9&lt;&amp;"));
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
}

TEST(HtmlReportTest, ShowsWhatWasMeasured) {
  const std::string page = HtmlReport(MakeReport());
  // Two heat maps, accuracy, TTFT, two of perplexity, two histograms, two times two head maps, two
  // scales of colour.
  EXPECT_EQ(CountOf(page, "<svg "), 2u + 1 + 1 + 2 + 2 + 4 + 2);
  EXPECT_THAT(page, HasSubstr("32K, 50 %: 11 %"));                    // a cell of the heat map
  EXPECT_THAT(page, HasSubstr("dense, 4K tokens: 410 ms"));           // a point of TTFT
  EXPECT_THAT(page, HasSubstr("mean 0.9633, 1st percentile 0.100"));  // the histogram
  EXPECT_THAT(page, HasSubstr("layer 1, head 3: streaming"));         // the class of a head
  EXPECT_THAT(page, HasSubstr("layer 0, head 0: dense, or repaired"));
  EXPECT_THAT(page, HasSubstr("<td>85.2 %</td>"));  // (5 + 0.11) / 6 of the tasks in percent
  EXPECT_THAT(page, HasSubstr("<td>12.5</td>"));
}

TEST(HtmlReportTest, AnythingMayBeMissing) {
  EXPECT_EQ(MarkupFault(HtmlReport({})), "");
  EvalReport report = MakeReport();
  report.policies[1].scores.clear();
  report.policies[1].lengths.clear();
  report.policies[1].recall_histogram.clear();
  report.policies[1].heads.clear();
  report.policies[0].scores[0].score = std::numeric_limits<double>::quiet_NaN();
  report.policies[0].lengths[0].ttft_median_s = 0;  // not on a logarithmic axis
  report.policies[0].lengths[1].ttft_median_s = INFINITY;
  report.policies[0].heads[0].layer = 7;
  const std::string page = HtmlReport(report);
  EXPECT_EQ(MarkupFault(page), "");
  EXPECT_THAT(page, HasSubstr("nothing was measured"));
  EXPECT_THAT(page, Not(HasSubstr("nan")));
  EXPECT_THAT(page, Not(HasSubstr("\"inf")));
}

EvalScore Score(const std::string& suite, const std::string& task, double value, Unit unit) {
  EvalScore score;
  score.suite = suite;
  score.task = task;
  score.unit = unit;
  score.length_tokens = 4096;
  score.n = 4;
  score.score = value;
  return score;
}

// dense, and one policy that loses 2.5 points of a task and gains 1.5 of another.
EvalReport TwoPolicies() {
  EvalReport report;
  report.lengths = {4096};
  for (const bool dense : {true, false}) {
    EvalPolicy policy;
    policy.name = dense ? "dense" : "a|b";
    policy.scores = {
        Score("ruler", "niah_single", dense ? 1.0 : 0.975, Unit::kShare),
        Score("ruler", "common_words", dense ? 0.5 : 0.515, Unit::kShare),
        Score("passage", "passage", dense ? 0.5 : 0.52, Unit::kShare),
        Score("ppl", "ppl", dense ? 10 : 10.04, Unit::kPerplexity),
        Score("agreement", "agreement", dense ? 1 : 0.96, Unit::kShare),
        Score("agreement", "kl", dense ? 0 : 0.01, Unit::kNats),
    };
    policy.lengths = {{.length_tokens = 4096,
                       .n = 24,
                       .density = dense ? 1 : 0.25,
                       .recall_mean = dense ? 1 : 0.9512,
                       .recall_p1 = dense ? 1 : 0.845,
                       .ttft_median_s = 2}};
    if (!dense) policy.recall_histogram.assign(1001, 1);
    report.policies.push_back(policy);
  }
  return report;
}

TEST(TargetsTest, ComparesWithDense) {
  const std::vector<PolicyChecks> all = CheckAgainstDense(TwoPolicies());
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].policy, "a|b");
  EXPECT_EQ(all[0].length_tokens, 4096);
  const std::vector<Check>& checks = all[0].checks;
  ASSERT_EQ(checks.size(), 6u);
  EXPECT_NEAR(checks[0].measured->value, 0.005, 1e-9) << "mean of both tasks; passage gained";
  EXPECT_EQ(checks[0].measured->of, "ruler");
  EXPECT_NEAR(checks[1].measured->value, 0.025, 1e-9);
  EXPECT_EQ(checks[1].measured->of, "niah_single");
  EXPECT_NEAR(checks[2].measured->value, 0.004, 1e-9);
  EXPECT_EQ(checks[3].measured->value, 0.96) << "not among the suites of the first two";
  std::vector<bool> missed;
  for (const Check& check : checks) missed.push_back(check.Missed());
  EXPECT_THAT(missed, ElementsAre(false, false, false, true, false, true));
}

TEST(TargetsTest, TheTargetItselfIsHeld) {
  EvalReport report = TwoPolicies();
  report.policies[1].scores[0].score = 1 - 0.04;  // in doubles, more than 0.04 below 1
  report.policies[1].scores[1].score = 0.5 + 0.03;
  report.policies[1].scores[4].score = 0.98;
  const std::vector<PolicyChecks> all = CheckAgainstDense(report);
  for (const size_t check : {0, 1, 2, 3, 4}) EXPECT_FALSE(all[0].checks[check].Missed()) << check;
  report.policies[1].scores[0].score = 0.959;
  EXPECT_TRUE(CheckAgainstDense(report)[0].checks[1].Missed());
}

TEST(TargetsTest, WhatWasNotMeasuredIsNoTarget) {
  EvalReport report = TwoPolicies();
  report.policies[1].scores.resize(1);
  report.policies[1].recall_histogram.clear();
  const std::vector<PolicyChecks> all = CheckAgainstDense(report);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_TRUE(all[0].checks[1].measured);
  for (size_t i = 2; i < 6; ++i) {
    EXPECT_FALSE(all[0].checks[i].measured) << i;
    EXPECT_FALSE(all[0].checks[i].Missed()) << i;
  }
  report.policies[0].name = "sample";
  EXPECT_TRUE(CheckAgainstDense(report).empty());
  EXPECT_TRUE(CheckAgainstDense({}).empty());
}

TEST(ReportTablesTest, AsText) {
  const std::string text = ReportText(TwoPolicies());
  for (const char* part :
       {"By task", "niah_single", "97.5 %", "By policy", "25.00 %", "Against dense", "0.5 (ruler)",
        "2.5 (niah_single)", "+0.40 %", "96.0 % missed", "0.951", "0.845 missed", "4 of 6"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EvalReport alone = TwoPolicies();
  alone.policies.resize(1);
  EXPECT_THAT(ReportText(alone), Not(HasSubstr("Against dense")));
  EXPECT_EQ(ReportText({}), "");
}

TEST(ReportTablesTest, AsMarkdown) {
  const std::string text = ReportMarkdown(TwoPolicies());
  EXPECT_THAT(text,
              HasSubstr("| policy | tokens | prompts | density | recall mean | recall p1 | "
                        "ruler | passage | perplexity | agreement | KL, nats | TTFT median |\n"
                        "| --- | --- | --- |"));
  EXPECT_THAT(text, HasSubstr("| a\\|b | 4096 | 24 | 25.00 % | 0.9512 | 0.845 | 74.5 % | 52.0 % | "
                              "10.04 | 96.0 % | 0.01 | 2.0 s |\n"));
  EXPECT_THAT(text, HasSubstr("| target |  | <= 1.0 | <= 4.0 | <= +0.50 % | >= 98.0 % | >= 0.950 | "
                              ">= 0.850 | all |\n"));
}

TEST(HtmlReportTest, MarksWhatWasMissed) {
  const std::string page = HtmlReport(TwoPolicies());
  EXPECT_EQ(MarkupFault(page), "");
  EXPECT_EQ(CountOf(page, "<td class=\"missed\">"), 2u);
}

TEST(WorkLeftTest, LearnsFromWhatWasAsked) {
  WorkLeft left;
  for (const int64_t length : {4096, 8192, 16384}) {
    for (size_t policy = 0; policy < 2; ++policy) {
      left.Add(policy, length);
      left.Add(policy, length);
    }
  }
  EXPECT_FALSE(left.Seconds());
  EXPECT_FALSE(left.PromptSeconds(0, 4096));
  left.Done(0, 4096, 1);
  EXPECT_DOUBLE_EQ(*left.PromptSeconds(0, 4096), 1);
  EXPECT_DOUBLE_EQ(*left.PromptSeconds(1, 4096), 1) << "as other policies";
  EXPECT_NEAR(*left.PromptSeconds(0, 16384), 8, 1e-9) << "guessed: 4 times as long, to the 1.5";
  left.Done(0, 8192, 4);
  EXPECT_NEAR(*left.PromptSeconds(0, 16384), 16, 1e-9) << "quadratic so far";
  left.Done(1, 4096, 0.5);
  left.Done(1, 8192, 1);
  EXPECT_NEAR(*left.PromptSeconds(1, 16384), 2, 1e-9) << "linear";
  EXPECT_NEAR(*left.Seconds(), 1 + 4 + 2 * 16 + 0.5 + 1 + 2 * 2, 1e-9);
  left.Done(0, 16384, 20);
  EXPECT_NEAR(*left.Seconds(), 1 + 4 + 20 + 0.5 + 1 + 2 * 2, 1e-9) << "measured counts";
  left.Done(0, 8192, 0);
  EXPECT_DOUBLE_EQ(*left.PromptSeconds(0, 8192), 2) << "the mean";
}

TEST(WorkLeftTest, NoTimeAtAllIsNoTrouble) {
  WorkLeft left;
  left.Add(0, 8192);
  left.Add(0, 16384);
  left.Done(0, 256, 0);
  left.Done(0, 8192, 0);
  EXPECT_EQ(*left.Seconds(), 0);
  EXPECT_EQ(*left.PromptSeconds(0, 128), 0) << "shorter than anything asked";
}

TEST(HtmlChartsTest, Shown) {
  EXPECT_EQ(Shown(Quantity::kShare, 0.9751), "97.5 %");
  EXPECT_EQ(Shown(Quantity::kTokens, 131072), "128K");
  EXPECT_EQ(Shown(Quantity::kTokens, 1 << 20), "1M");
  EXPECT_EQ(Shown(Quantity::kTokens, 1000), "1000");
  EXPECT_EQ(Shown(Quantity::kSeconds, 0.0123), "12.3 ms");
  EXPECT_EQ(Shown(Quantity::kSeconds, 2), "2 s");
  EXPECT_EQ(Shown(Quantity::kNumber, INFINITY), "–");
}

}  // namespace
}  // namespace longhaul::eval
