// The HTML report: well-formed, complete, and nothing in it that loads or runs.
#include "server/eval/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "server/eval/html_charts.h"

namespace longhaul::eval {
namespace {

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
