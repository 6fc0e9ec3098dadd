// The drawings of the HTML report as inline SVG: text in, text out. Colours follow the page (light
// or dark); series differ by colour and by mark, so that none rests on colour alone. No files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::eval {

enum class Scale : uint8_t { kLinear, kLog };
enum class Quantity : uint8_t { kShare, kTokens, kSeconds, kNumber };

// "97.5 %", "128K", "1.2 s", "3.14"; a dash for what is no number.
std::string Shown(Quantity quantity, double value);

struct Axis {
  std::string title;
  Quantity quantity = Quantity::kNumber;
  Scale scale = Scale::kLinear;
  std::vector<double> ticks = {};  // empty: chosen
};

struct Point {
  double x = 0;
  double y = 0;
  std::string note = {};  // shown beside the pointer
};

struct Series {
  std::string name;
  std::vector<Point> points;
  bool joined = true;  // by a line, in the order of the points
};

// Points with marks, one colour and mark per series by its number, and a legend. What is not
// finite, and what is not positive on a logarithmic axis, is left out.
std::string DrawChart(const Axis& x, const Axis& y, const std::vector<Series>& series);

// A grid of shares from 0 to 1: column c of row r is values[r * columns.size() + c]; negative:
// none.
struct Grid {
  std::string x_title;
  std::string y_title;
  std::vector<std::string> columns;
  std::vector<std::string> rows;
  std::vector<double> values;
};

// Large cells with their value written in.
std::string DrawHeatMap(const Grid& grid);
// Small cells without text, for many; rows and columns are numbered.
std::string DrawFineMap(const Grid& grid);
// As DrawFineMap, with classes: values are indices of `classes`, of at most three.
std::string DrawClassMap(const Grid& grid, const std::vector<std::string>& classes);
// What the colours of the maps of shares mean.
std::string DrawShareScale();

// Bars of the shares of n equal steps from `low` to 1, the first one with all below; logarithmic.
std::string DrawHistogram(const std::vector<double>& shares, double low, const std::string& title);

}  // namespace longhaul::eval
