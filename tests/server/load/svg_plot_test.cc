#include "server/load/svg_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <cmath>
#include <limits>
#include <regex>
#include <sstream>

namespace longhaul::load {
namespace {

using boost::property_tree::ptree;
using testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Plot SomePlot() {
  Plot plot;
  plot.title = "a < b & \"c\" \x01";
  plot.subtitle = "of <model>";
  plot.x_label = "time [s]";
  plot.y_label = "TTFT";
  plot.y2_label = "done";
  plot.dots = {{"without", "#7a7a7a", {{0.5, 0.002}, {3.0, 0.25}}},
               {"with", "#1f5fa8", {{9.5, 1.5}}}};
  plot.lines = {{"progress", "#c77700", {{5, 0}, {6, 0.5}, {6.5, kNan}, {7, 0.1}, {10, 1}}}};
  plot.span_label = "long";
  plot.spans = {{5, 6.5}, {7, 10}};
  plot.level_label = "bound";
  plot.level = 0.3;
  return plot;
}

// Throws when it is no XML; and every tag must be closed by its own name.
ptree Parse(const std::string& svg) {
  std::vector<std::string> open;
  static const std::regex tag("<(/?)([a-z]+)([^<>]*?)(/?)>");
  for (std::sregex_iterator it(svg.begin(), svg.end(), tag), end; it != end; ++it) {
    if ((*it)[4].length() > 0) continue;
    if ((*it)[1].length() == 0) {
      open.push_back((*it)[2]);
    } else {
      EXPECT_FALSE(open.empty());
      EXPECT_EQ(open.back(), (*it)[2].str());
      open.pop_back();
    }
  }
  EXPECT_TRUE(open.empty());
  std::istringstream in(svg);
  ptree tree;
  boost::property_tree::read_xml(in, tree);
  return tree;
}

// All numbers of all coordinates.
void ExpectInside(const std::string& svg) {
  static const std::regex number(" (?:x|y|cx|cy|x1|x2|y1|y2|width|height)=\"([^\"]*)\"");
  for (std::sregex_iterator it(svg.begin(), svg.end(), number), end; it != end; ++it) {
    const double value = std::stod((*it)[1]);
    EXPECT_TRUE(std::isfinite(value) && value >= 0 && value <= 960) << (*it)[0];
  }
  EXPECT_THAT(svg, testing::Not(HasSubstr("nan")));
  EXPECT_THAT(svg, testing::Not(HasSubstr("inf")));
}

TEST(SvgPlotTest, IsXmlWithEverythingInIt) {
  const std::string svg = RenderSvg(SomePlot());
  const ptree tree = Parse(svg);
  EXPECT_EQ(tree.get<std::string>("svg.<xmlattr>.xmlns"), "http://www.w3.org/2000/svg");
  ExpectInside(svg);
  std::string texts;
  size_t n_groups = 0, n_dots = 0;
  for (const auto& [name, node] : tree.get_child("svg")) {
    if (name == "text") texts += node.data() + "|";
    if (name == "g") {
      ++n_groups;
      n_dots += node.count("circle");
    }
  }
  EXPECT_EQ(n_groups, 2u);
  EXPECT_EQ(n_dots, 3u);
  for (const char* text : {"a < b & \"c\"", "of <model>", "time [s]", "TTFT", "done", "without|",
                           "with|", "progress", "long", "bound", "50 %", "5 ms", "1 s"}) {
    EXPECT_THAT(texts, HasSubstr(text));
  }
}

TEST(SvgPlotTest, ALineWithAGapIsTwoStrokes) {
  const std::string svg = RenderSvg(SomePlot());
  const size_t path = svg.find("<path d=\"");
  ASSERT_NE(path, std::string::npos);
  const std::string d = svg.substr(path + 9, svg.find('"', path + 9) - path - 9);
  EXPECT_EQ(std::count(d.begin(), d.end(), 'M'), 2) << d;
  EXPECT_EQ(std::count(d.begin(), d.end(), 'L'), 2) << d;
}

TEST(SvgPlotTest, NothingToShow) {
  Plot plot;
  ExpectInside(RenderSvg(plot));
  Parse(RenderSvg(plot));
  plot.dots = {{"none", "#000000", {}}};
  plot.lines = {{"none", "#000000", {}}};
  ExpectInside(RenderSvg(plot));
}

TEST(SvgPlotTest, OnePointAndExtremeValues) {
  Plot plot;
  plot.dots = {{"one", "#000000", {{0, 0.01}}}};
  ExpectInside(RenderSvg(plot));
  plot.dots = {{"extreme", "#000000", {{0, 0}, {1e-9, 1e-7}, {86400, 3600}}}};
  ExpectInside(RenderSvg(plot));
  Parse(RenderSvg(plot));
}

}  // namespace
}  // namespace longhaul::load
