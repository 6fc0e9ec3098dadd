#include "server/eval/html_charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "server/escape_xml.h"

namespace longhaul::eval {
namespace {

// Okabe and Ito: told apart with any colour vision.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73",
                                    "#cc79a7", "#e69f00", "#56b4e9"};

// Viridis at quarters: lightness rises with the value, so it reads in grey, too.
constexpr std::array<std::array<double, 3>, 5> kViridis = {
    {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}}};

struct Shade {
  std::string fill;
  const char* ink;  // of text on it
};

Shade ShadeOf(double share) {
  const double at = 4 * std::clamp(share, 0.0, 1.0);
  const auto low = std::min<size_t>(3, static_cast<size_t>(at));
  const double part = at - static_cast<double>(low);
  std::array<int, 3> rgb{};
  for (size_t i = 0; i < 3; ++i) {
    rgb[i] = static_cast<int>(
        std::lround(kViridis[low][i] + part * (kViridis[low + 1][i] - kViridis[low][i])));
  }
  return {fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]),
          share > 0.55 ? "#111111" : "#ffffff"};
}

class Svg {
 public:
  Svg(double width, double height, const std::string& label) {
    Add("<svg viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" height=\"{1:.0f}\" role=\"img\" "
        "aria-label=\"{2}\">\n",
        width, height, EscapeXml(label));
  }
  std::string Take() { return out_ + "</svg>\n"; }

  template <typename... Arguments>
  void Add(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Arguments>(arguments)...);
  }
  void Text(double x, double y, const char* anchor, const std::string& text,
            const char* style = "") {
    Add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, style,
        EscapeXml(text));
  }
  // Bottom to top.
  void SideText(double x, double y, const std::string& text) {
    Add("<text text-anchor=\"middle\" class=\"soft\" transform=\"translate({:.1f} {:.1f}) "
        "rotate(-90)\">{}</text>\n",
        x, y, EscapeXml(text));
  }
  void Line(double x1, double y1, double x2, double y2) {
    Add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"grid\"/>\n", x1, y1,
        x2, y2);
  }
  void Rect(double x, double y, double width, double height, const std::string& fill,
            const std::string& note = "") {
    Add("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"", x, y,
        width, height, fill);
    if (note.empty()) return Add("/>\n");
    Add("><title>{}</title></rect>\n", EscapeXml(note));
  }

 private:
  std::string out_;
};

// Circle, square, triangle, diamond, by the number of the series.
void AddMark(Svg& svg, size_t series, double x, double y, const std::string& note) {
  const char* colour = kColours[series % std::size(kColours)];
  const std::string title = note.empty() ? "" : fmt::format("<title>{}</title>", EscapeXml(note));
  switch (series % 4) {
    case 0:
      svg.Add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\" fill=\"{}\">{}</circle>\n", x, y,
              colour, title);
      break;
    case 1:
      svg.Add("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"8\" height=\"8\" fill=\"{}\">{}</rect>\n",
              x - 4, y - 4, colour, title);
      break;
    case 2:
      svg.Add("<path d=\"M{:.1f} {:.1f}l5.5 9.5h-11z\" fill=\"{}\">{}</path>\n", x, y - 5.5, colour,
              title);
      break;
    default:
      svg.Add("<path d=\"M{:.1f} {:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z\" fill=\"{}\">{}</path>\n", x,
              y - 5.5, colour, title);
  }
}

// The values of one axis on a span of pixels.
class Ruler {
 public:
  Ruler(const Axis& axis, double low, double high, double from_px, double to_px)
      : axis_(axis), from_px_(from_px), to_px_(to_px) {
    if (axis.scale == Scale::kLog) {
      low_ = std::log(low) - 0.1;
      high_ = std::log(high) + 0.1;
    } else {
      const double margin = high > low ? 0.06 * (high - low) : std::max(0.05, 0.05 * std::abs(low));
      low_ = low - margin;
      high_ = high + margin;
      if (axis.quantity == Quantity::kShare && high <= 1) high_ = std::min(high_, 1.02);
    }
    ticks_ = axis.ticks.empty() ? Chosen() : axis.ticks;
  }

  double Px(double value) const {
    const double at = axis_.scale == Scale::kLog ? std::log(value) : value;
    return from_px_ + (at - low_) / (high_ - low_) * (to_px_ - from_px_);
  }
  const std::vector<double>& ticks() const { return ticks_; }

 private:
  std::vector<double> Chosen() const {
    std::vector<double> ticks;
    if (axis_.scale == Scale::kLog) {
      const bool narrow = high_ - low_ < 5;
      for (int decade = -9; decade < 13; ++decade) {
        for (const double factor : {1.0, 2.0, 5.0}) {
          const double tick = factor * std::pow(10, decade);
          const bool inside = std::log(tick) >= low_ && std::log(tick) <= high_;
          if (inside && (narrow || factor == 1.0)) ticks.push_back(tick);
        }
      }
      return ticks;
    }
    const double raw = (high_ - low_) / 5;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    double step = 10 * power;
    for (const double factor : {5.0, 2.0, 1.0}) {
      if (factor * power >= raw) step = factor * power;
    }
    const bool share = axis_.quantity == Quantity::kShare;
    for (double tick = std::ceil(low_ / step) * step; tick <= high_; tick += step) {
      if (!share || (tick > -1e-9 && tick < 1 + 1e-9)) ticks.push_back(tick);
    }
    return ticks;
  }

  Axis axis_;
  double from_px_, to_px_;
  double low_ = 0, high_ = 1;  // of the value, or of its logarithm
  std::vector<double> ticks_;
};

bool IsShown(const Axis& axis, double value) {
  return std::isfinite(value) && (axis.scale == Scale::kLinear || value > 0);
}

// The points that can be drawn, and the bounds of both axes.
struct Bounds {
  double x_low = 0, x_high = 1, y_low = 0, y_high = 1;
  int64_t n = 0;

  void See(double x, double y) {
    if (n++ == 0) {
      x_low = x_high = x;
      y_low = y_high = y;
    }
    x_low = std::min(x_low, x);
    x_high = std::max(x_high, x);
    y_low = std::min(y_low, y);
    y_high = std::max(y_high, y);
  }
};

// Numbers every so many rows or columns, so that they do not touch.
size_t LabelStep(size_t n, size_t most) { return std::max<size_t>(1, (n + most - 1) / most); }

constexpr double kFineLeft = 44, kFineTop = 8, kFineBottom = 40;

// Few heads are drawn larger.
double FineCell(const Grid& grid) {
  return std::clamp(
      300 / static_cast<double>(std::max<size_t>({grid.columns.size(), grid.rows.size(), 1})), 9.0,
      22.0);
}

double FineWidth(const Grid& grid) {
  return kFineLeft + std::max(210.0, FineCell(grid) * static_cast<double>(grid.columns.size()) + 8);
}
double FineHeight(const Grid& grid) {
  return kFineTop + FineCell(grid) * static_cast<double>(grid.rows.size()) + kFineBottom;
}

void AddFineLabels(Svg& svg, const Grid& grid) {
  const double cell = FineCell(grid);
  const double bottom = kFineTop + cell * static_cast<double>(grid.rows.size());
  for (size_t r = 0; r < grid.rows.size(); r += LabelStep(grid.rows.size(), 16)) {
    svg.Text(kFineLeft - 6, kFineTop + cell * (static_cast<double>(r) + 0.5) + 4, "end",
             grid.rows[r], "class=\"small\"");
  }
  for (size_t c = 0; c < grid.columns.size(); c += LabelStep(grid.columns.size(), 16)) {
    svg.Text(kFineLeft + cell * (static_cast<double>(c) + 0.5), bottom + 13, "middle",
             grid.columns[c], "class=\"small\"");
  }
  svg.Text(kFineLeft, bottom + 30, "start", grid.x_title, "class=\"soft\"");
  svg.SideText(13, (kFineTop + bottom) / 2, grid.y_title);
}

}  // namespace

std::string Shown(Quantity quantity, double value) {
  if (!std::isfinite(value)) return "–";
  switch (quantity) {
    case Quantity::kShare:
      return fmt::format("{:.3g} %", 100 * value);
    case Quantity::kTokens:
      if (value >= 1 << 20 && std::fmod(value, 1 << 20) == 0) {
        return fmt::format("{:g}M", value / (1 << 20));
      }
      if (value >= 1024 && std::fmod(value, 1024) == 0) return fmt::format("{:g}K", value / 1024);
      return fmt::format("{:.0f}", value);
    case Quantity::kSeconds:
      return value < 1 ? fmt::format("{:.3g} ms", 1000 * value) : fmt::format("{:.3g} s", value);
    case Quantity::kNumber:
      break;
  }
  return fmt::format("{:.4g}", value);
}

std::string DrawChart(const Axis& x, const Axis& y, const std::vector<Series>& series) {
  constexpr double kWidth = 560, kLeft = 70, kRight = 540, kTop = 14, kBottom = 300;
  constexpr double kLegendRow = 20;
  const double height = kBottom + 54 + kLegendRow * static_cast<double>(series.size());
  Bounds bounds;
  for (const Series& s : series) {
    for (const Point& p : s.points) {
      if (IsShown(x, p.x) && IsShown(y, p.y)) bounds.See(p.x, p.y);
    }
  }
  Svg svg(kWidth, height, y.title + " against " + x.title);
  if (bounds.n == 0) {
    svg.Text(kWidth / 2, kBottom / 2, "middle", "nothing was measured", "class=\"soft\"");
    return svg.Take();
  }
  const Ruler x_ruler(x, bounds.x_low, bounds.x_high, kLeft, kRight);
  const Ruler y_ruler(y, bounds.y_low, bounds.y_high, kBottom, kTop);
  for (const double tick : y_ruler.ticks()) {
    svg.Line(kLeft, y_ruler.Px(tick), kRight, y_ruler.Px(tick));
    svg.Text(kLeft - 8, y_ruler.Px(tick) + 4, "end", Shown(y.quantity, tick));
  }
  for (const double tick : x_ruler.ticks()) {
    svg.Line(x_ruler.Px(tick), kTop, x_ruler.Px(tick), kBottom);
    svg.Text(x_ruler.Px(tick), kBottom + 18, "middle", Shown(x.quantity, tick));
  }
  svg.Text((kLeft + kRight) / 2, kBottom + 38, "middle", x.title, "class=\"soft\"");
  svg.SideText(14, (kTop + kBottom) / 2, y.title);
  for (size_t i = 0; i < series.size(); ++i) {
    std::string path;
    for (const Point& p : series[i].points) {
      if (!IsShown(x, p.x) || !IsShown(y, p.y)) continue;
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x_ruler.Px(p.x),
                          y_ruler.Px(p.y));
    }
    if (series[i].joined && !path.empty()) {
      svg.Add("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n", path,
              kColours[i % std::size(kColours)]);
    }
    for (const Point& p : series[i].points) {
      if (!IsShown(x, p.x) || !IsShown(y, p.y)) continue;
      AddMark(svg, i, x_ruler.Px(p.x), y_ruler.Px(p.y), p.note);
    }
    const double legend_y = kBottom + 60 + kLegendRow * static_cast<double>(i);
    AddMark(svg, i, kLeft + 8, legend_y - 4, "");
    svg.Text(kLeft + 22, legend_y, "start", series[i].name);
  }
  return svg.Take();
}

std::string DrawHeatMap(const Grid& grid) {
  constexpr double kCellWidth = 56, kCellHeight = 28, kLeft = 66, kTop = 4;
  const auto n_columns = grid.columns.size(), n_rows = grid.rows.size();
  const double bottom = kTop + kCellHeight * static_cast<double>(n_rows);
  Svg svg(kLeft + kCellWidth * static_cast<double>(n_columns) + 4, bottom + 44,
          grid.y_title + " by " + grid.x_title);
  for (size_t r = 0; r < n_rows; ++r) {
    const double y = kTop + kCellHeight * static_cast<double>(r);
    svg.Text(kLeft - 8, y + 18, "end", grid.rows[r]);
    for (size_t c = 0; c < n_columns; ++c) {
      const double value = grid.values[r * n_columns + c];
      if (!(value >= 0)) continue;
      const double x = kLeft + kCellWidth * static_cast<double>(c);
      const Shade shade = ShadeOf(value);
      svg.Rect(
          x + 1, y + 1, kCellWidth - 2, kCellHeight - 2, shade.fill,
          fmt::format("{}, {}: {}", grid.columns[c], grid.rows[r], Shown(Quantity::kShare, value)));
      svg.Text(x + kCellWidth / 2, y + 18, "middle", fmt::format("{:.0f}", 100 * value),
               fmt::format("style=\"fill:{}\"", shade.ink).c_str());
    }
  }
  for (size_t c = 0; c < n_columns; ++c) {
    svg.Text(kLeft + kCellWidth * (static_cast<double>(c) + 0.5), bottom + 16, "middle",
             grid.columns[c]);
  }
  svg.Text(kLeft, bottom + 36, "start", grid.x_title, "class=\"soft\"");
  svg.SideText(13, (kTop + bottom) / 2, grid.y_title);
  return svg.Take();
}

std::string DrawFineMap(const Grid& grid) {
  const double cell = FineCell(grid);
  Svg svg(FineWidth(grid), FineHeight(grid), grid.y_title + " by " + grid.x_title);
  for (size_t i = 0; i < grid.values.size(); ++i) {
    if (!(grid.values[i] >= 0)) continue;
    const size_t r = i / grid.columns.size(), c = i % grid.columns.size();
    svg.Rect(kFineLeft + cell * static_cast<double>(c), kFineTop + cell * static_cast<double>(r),
             cell - 1, cell - 1, ShadeOf(grid.values[i]).fill,
             fmt::format("layer {}, head {}: {}", grid.rows[r], grid.columns[c],
                         Shown(Quantity::kShare, grid.values[i])));
  }
  AddFineLabels(svg, grid);
  return svg.Take();
}

std::string DrawClassMap(const Grid& grid, const std::vector<std::string>& classes) {
  const double cell = FineCell(grid);
  // Sky, blue, vermilion: apart in lightness as well.
  constexpr const char* kClassColours[] = {"#9ad0f0", "#0072b2", "#d55e00"};
  constexpr double kLegendRow = 18;
  const double height = FineHeight(grid);
  Svg svg(FineWidth(grid), height + kLegendRow * static_cast<double>(classes.size()),
          "class of each head");
  for (size_t i = 0; i < grid.values.size(); ++i) {
    if (!(grid.values[i] >= 0)) continue;
    const size_t r = i / grid.columns.size(), c = i % grid.columns.size();
    const auto kind = std::min<size_t>(2, static_cast<size_t>(grid.values[i]));
    svg.Rect(kFineLeft + cell * static_cast<double>(c), kFineTop + cell * static_cast<double>(r),
             cell - 1, cell - 1, kClassColours[kind],
             fmt::format("layer {}, head {}: {}", grid.rows[r], grid.columns[c], classes[kind]));
  }
  AddFineLabels(svg, grid);
  for (size_t k = 0; k < classes.size(); ++k) {
    const double y = height + kLegendRow * static_cast<double>(k);
    svg.Rect(kFineLeft, y, 12, 12, kClassColours[k]);
    svg.Text(kFineLeft + 20, y + 11, "start", classes[k]);
  }
  return svg.Take();
}

std::string DrawShareScale() {
  Svg svg(300, 34, "colours from 0 to 100 %");
  for (int i = 0; i < 60; ++i) svg.Rect(2 + 4 * i, 2, 4.2, 12, ShadeOf(i / 59.0).fill);
  svg.Text(2, 28, "start", "0 %");
  svg.Text(122, 28, "middle", "50 %");
  svg.Text(242, 28, "middle", "100 %");
  return svg.Take();
}

std::string DrawHistogram(const std::vector<double>& shares, double low, const std::string& title) {
  constexpr double kWidth = 400, kLeft = 64, kRight = 388, kTop = 10, kBottom = 170;
  constexpr double kLeast = 1e-5;  // of the axis, 0.001 %
  Svg svg(kWidth, kBottom + 42, title);
  const auto y_of = [&](double share) {
    return kBottom -
           std::log(std::max(share, kLeast) / kLeast) / std::log(1 / kLeast) * (kBottom - kTop);
  };
  for (const double tick : {1e-4, 1e-3, 1e-2, 1e-1, 1.0}) {
    svg.Line(kLeft, y_of(tick), kRight, y_of(tick));
    svg.Text(kLeft - 8, y_of(tick) + 4, "end", Shown(Quantity::kShare, tick));
  }
  const double step = (kRight - kLeft) / static_cast<double>(std::max<size_t>(1, shares.size()));
  for (size_t i = 0; i < shares.size(); ++i) {
    if (!(shares[i] > 0)) continue;
    const double y = y_of(shares[i]);
    const double end =
        low + (1 - low) * static_cast<double>(i + 1) / static_cast<double>(shares.size());
    svg.Rect(kLeft + step * static_cast<double>(i) + 0.5, y, step - 1, kBottom - y, kColours[0],
             fmt::format("up to {:.3f}: {}", end, Shown(Quantity::kShare, shares[i])));
  }
  svg.Text(kLeft, kBottom + 18, "start", fmt::format("≤ {:g}", low));
  svg.Text((kLeft + kRight) / 2, kBottom + 18, "middle", fmt::format("{:g}", (1 + low) / 2));
  svg.Text(kRight, kBottom + 18, "end", "1");
  svg.Text((kLeft + kRight) / 2, kBottom + 36, "middle", title, "class=\"soft\"");
  svg.SideText(12, (kTop + kBottom) / 2, "audit rows");
  return svg.Take();
}

}  // namespace longhaul::eval
