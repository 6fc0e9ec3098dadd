// Plot: points, lines and shaded spans over time as one self-contained SVG: axes with units, a
// legend, no scripts, no fonts or styles from elsewhere. Does no input or output.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace longhaul::load {

struct Plot {
  struct Series {
    std::string label;
    std::string colour;                             // "#1f77b4"
    std::vector<std::pair<double, double>> points;  // (x, y)
  };
  struct Span {
    double begin = 0, end = 0;  // x
  };

  std::string title;
  std::string subtitle;
  std::string x_label;   // with its unit
  std::string y_label;   // left axis, of `dots`; logarithmic, so y > 0
  std::string y2_label;  // right axis, of `lines`; 0 to 1 shown as percent
  std::vector<Series> dots;
  std::vector<Series> lines;  // one entry per label; NaN in y lifts the pen
  std::string span_label;
  std::vector<Span> spans;
  std::string level_label;  // a horizontal line on the left axis, with its name
  double level = 0;         // 0 = none
};

std::string RenderSvg(const Plot& plot);

}  // namespace longhaul::load
