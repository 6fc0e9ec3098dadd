#include "server/load/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "server/escape_xml.h"

namespace longhaul::load {
namespace {

constexpr double kWidth = 960, kHeight = 480;
constexpr double kLeft = 84, kRight = 884, kTop = 92, kBottom = 412;  // the plot area
constexpr const char* kInk = "#333333";
constexpr const char* kGrid = "#e4e4e4";
constexpr const char* kShade = "#f6e3c5";

// A linear axis from 0, or a logarithmic one, onto a span of pixels.
struct Axis {
  double low = 0, high = 1;
  double from_px = 0, to_px = 1;
  bool log = false;

  double Map(double value) const {
    const double share =
        log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return from_px + std::clamp(share, 0.0, 1.0) * (to_px - from_px);
  }
};

// 1, 2 or 5 times a power of ten, about `n` of them in [0, high].
std::vector<double> LinearTicks(double high, int n) {
  const double raw = high / n;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw) step = factor * power;
  }
  std::vector<double> ticks;
  for (int i = 0; i * step <= high * (1 + 1e-9); ++i) ticks.push_back(i * step);
  return ticks;
}

// The 1-2-5 values of every decade between low and high.
std::vector<double> LogTicks(double low, double high) {
  std::vector<double> ticks;
  for (int decade = static_cast<int>(std::floor(std::log10(low))); decade < 9; ++decade) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10, decade);
      if (tick > high * (1 + 1e-9)) return ticks;
      if (tick >= low * (1 - 1e-9)) ticks.push_back(tick);
    }
  }
  return ticks;
}

std::string SecondsText(double seconds) {
  if (seconds < 0.999e-3) return fmt::format("{:g} µs", std::round(seconds * 1e8) / 100);
  if (seconds < 0.999) return fmt::format("{:g} ms", std::round(seconds * 1e5) / 100);
  return fmt::format("{:g} s", std::round(seconds * 100) / 100);
}

class Drawing {
 public:
  explicit Drawing(const Plot& plot) : plot_(plot) {
    double x_high = 0, y_low = std::numeric_limits<double>::max(), y_high = 0;
    const auto y_seen = [&](double y) {
      y_low = std::min(y_low, y);
      y_high = std::max(y_high, y);
    };
    for (const Plot::Series& series : plot.dots) {
      for (const auto& [x, y] : series.points) {
        x_high = std::max(x_high, x);
        y_seen(std::max(y, 1e-6));
      }
    }
    for (const Plot::Series& series : plot.lines) {
      for (const auto& [x, y] : series.points) x_high = std::max(x_high, x);
    }
    for (const Plot::Span& span : plot.spans) x_high = std::max(x_high, span.end);
    if (plot.level > 0) y_seen(plot.level);
    if (y_high == 0) y_low = y_high = 1;
    x_ = {0, x_high > 0 ? x_high : 1, kLeft, kRight, false};
    y_ = {y_low / 1.5, y_high * 1.5, kBottom, kTop, true};
    y2_ = {0, 1, kBottom, kTop, false};
  }

  std::string Render() {
    out_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
        "height=\"{1}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"{2}\">\n",
        kWidth, kHeight, kInk);
    Add("<rect width=\"{}\" height=\"{}\" fill=\"#ffffff\"/>\n", kWidth, kHeight);
    TextAt(kLeft, 28, "start", plot_.title, 17);
    TextAt(kLeft, 48, "start", plot_.subtitle, 12);
    Spans();
    Axes();
    Level();
    for (const Plot::Series& series : plot_.lines) Line(series);
    for (const Plot::Series& series : plot_.dots) Dots(series);
    Legend();
    return out_ + "</svg>\n";
  }

 private:
  template <typename... Arguments>
  void Add(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Arguments>(arguments)...);
  }
  void TextAt(double x, double y, const char* anchor, const std::string& text, int size = 13) {
    Add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" font-size=\"{}\">{}</text>\n", x, y,
        anchor, size, EscapeXml(text));
  }
  void Stroke(double x1, double y1, double x2, double y2, const char* colour) {
    Add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1,
        x2, y2, colour);
  }

  void Spans() {
    for (const Plot::Span& span : plot_.spans) {
      const double begin = x_.Map(span.begin), end = x_.Map(span.end);
      Add("<rect x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" fill=\"{}\" "
          "stroke=\"#ffffff\"/>\n",
          begin, kTop, std::max(end - begin, 0.5), kBottom - kTop, kShade);
    }
  }
  void Axes() {
    for (const double tick : LogTicks(y_.low, y_.high)) {
      const double y = y_.Map(tick);
      Stroke(kLeft, y, kRight, y, kGrid);
      TextAt(kLeft - 8, y + 4, "end", SecondsText(tick));
    }
    for (const double tick : LinearTicks(x_.high, 10)) {
      const double x = x_.Map(tick);
      Stroke(x, kBottom, x, kBottom + 5, kInk);
      TextAt(x, kBottom + 20, "middle", fmt::format("{:g}", tick));
    }
    if (!plot_.lines.empty()) {
      for (int percent = 0; percent <= 100; percent += 25) {
        const double y = y2_.Map(percent / 100.0);
        Stroke(kRight, y, kRight + 5, y, kInk);
        TextAt(kRight + 8, y + 4, "start", fmt::format("{} %", percent));
      }
      Turned(kWidth - 12, plot_.y2_label);
    }
    Add("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"{}\"/>\n", kLeft,
        kTop, kRight - kLeft, kBottom - kTop, kInk);
    TextAt((kLeft + kRight) / 2, kBottom + 44, "middle", plot_.x_label);
    Turned(18, plot_.y_label);
  }
  void Turned(double x, const std::string& text) {
    Add("<text transform=\"translate({} {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n", x,
        (kTop + kBottom) / 2, EscapeXml(text));
  }
  void Level() {
    if (plot_.level <= 0) return;
    const double y = y_.Map(plot_.level);
    Add("<line x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\" stroke=\"#c62828\" "
        "stroke-dasharray=\"6 4\"/>\n",
        kLeft, y, kRight, y);
    TextAt(kRight - 6, y - 5, "end", plot_.level_label, 12);
  }
  void Line(const Plot::Series& series) {
    std::string path;
    bool pen_down = false;
    for (const auto& [x, y] : series.points) {
      if (!std::isnan(y)) {
        path += fmt::format("{}{:.1f} {:.1f}", pen_down ? " L" : " M", x_.Map(x), y2_.Map(y));
      }
      pen_down = !std::isnan(y);
    }
    if (path.empty()) return;
    Add("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", path.substr(1),
        EscapeXml(series.colour));
  }
  void Dots(const Plot::Series& series) {
    Add("<g fill=\"{}\" fill-opacity=\"0.6\">\n", EscapeXml(series.colour));
    for (const auto& [x, y] : series.points) {
      Add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.2\"/>\n", x_.Map(x),
          y_.Map(std::max(y, 1e-6)));
    }
    out_ += "</g>\n";
  }
  void Legend() {
    double x = kLeft;
    constexpr double kY = 72, kLetter = 6.9, kMark = 20;
    const auto label = [&](const std::string& text) {
      TextAt(x + kMark, kY + 4, "start", text, 12);
      x += kMark + static_cast<double>(text.size()) * kLetter + 14;
    };
    for (const Plot::Series& series : plot_.dots) {
      Add("<circle cx=\"{:.1f}\" cy=\"{}\" r=\"4\" fill=\"{}\"/>\n", x + 8, kY,
          EscapeXml(series.colour));
      label(series.label);
    }
    for (const Plot::Series& series : plot_.lines) {
      Add("<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{2:.1f}\" y2=\"{1}\" stroke=\"{3}\" "
          "stroke-width=\"2\"/>\n",
          x, kY, x + 16, EscapeXml(series.colour));
      label(series.label);
    }
    if (!plot_.spans.empty()) {
      Add("<rect x=\"{:.1f}\" y=\"{}\" width=\"16\" height=\"12\" fill=\"{}\"/>\n", x, kY - 6,
          kShade);
      label(plot_.span_label);
    }
  }

  const Plot& plot_;
  Axis x_, y_, y2_;
  std::string out_;
};

}  // namespace

std::string RenderSvg(const Plot& plot) { return Drawing(plot).Render(); }

}  // namespace longhaul::load
