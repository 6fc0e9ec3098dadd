#include "server/console.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <string_view>

namespace longhaul {
namespace {

constexpr int kBarCells = 28;

std::string_view PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kQueued:
      return "queued";
    case Phase::kPrefill:
      return "prefill";
    case Phase::kDecode:
      return "decode";
  }
  return "?";
}

std::string Eta(int64_t eta_us) {
  return eta_us < 0 ? std::string("ETA unknown")
                    : fmt::format("ETA {}", FormatDuration(static_cast<double>(eta_us) * 1e-6));
}

}  // namespace

ProgressLine::ProgressLine(std::FILE* out) : out_(out), terminal_(isatty(fileno(out)) != 0) {}

void ProgressLine::Show(const ProgressEvent& event) {
  const double share = event.total_tokens == 0 ? 1.0
                                               : static_cast<double>(event.processed_tokens) /
                                                     static_cast<double>(event.total_tokens);
  const std::string text =
      fmt::format("{:>3.0f} %  {} / {} tokens  {}  {}", 100 * share, event.processed_tokens,
                  event.total_tokens, PhaseName(event.phase), Eta(event.eta_us));
  if (terminal_) {
    const int n_full = static_cast<int>(share * kBarCells);
    const std::string bar = std::string(n_full, '#') + std::string(kBarCells - n_full, '.');
    std::fprintf(out_, "\r\033[K[%s] %s", bar.c_str(), text.c_str());
    shown_ = true;
  } else {
    const auto tenth = static_cast<int64_t>(share * 10);
    if (tenth == last_tenth_) return;
    last_tenth_ = tenth;
    std::fprintf(out_, "%s\n", text.c_str());
  }
  std::fflush(out_);
}

void ProgressLine::Clear() {
  if (!shown_) return;
  std::fprintf(out_, "\r\033[K");
  std::fflush(out_);
  shown_ = false;
}

std::string FormatDuration(double seconds) {
  if (seconds < 0.0995) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 99.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  return fmt::format("{} min {:02} s", whole / 60, whole % 60);
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t i = 0; i < rows[r].size(); ++i) {
      text += i == 0 ? fmt::format("{:<{}}", rows[r][i], widths[i])
                     : fmt::format("  {:>{}}", rows[r][i], widths[i]);
    }
    text += '\n';
    if (r > 0) continue;
    for (size_t i = 0; i < widths.size(); ++i) text += std::string(widths[i] + (i ? 2 : 0), '-');
    text += '\n';
  }
  return text;
}

}  // namespace longhaul
