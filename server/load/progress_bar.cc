#include "server/load/progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "server/console.h"

namespace longhaul::load {
namespace {

constexpr int kBarCells = 28;
constexpr double kLeastShare = 0.02;  // an ETA from less would be noise

}  // namespace

ProgressBar::ProgressBar(std::FILE* out) : out_(out), terminal_(isatty(fileno(out)) != 0) {}

void ProgressBar::Begin(std::string label, std::function<double()> share) {
  label_ = std::move(label);
  share_ = std::move(share);
  begin_ = Clock::now();
  if (!terminal_) fmt::print(out_, "{}\n", label_);
  Redraw();
  std::fflush(out_);
}

void ProgressBar::Begin(std::string label, double seconds) {
  const Clock::time_point begin = Clock::now();
  Begin(std::move(label), [begin, seconds] {
    return std::chrono::duration<double>(Clock::now() - begin).count() / seconds;
  });
}

void ProgressBar::SetLabel(std::string label) {
  if (label == label_) return;
  label_ = std::move(label);
  if (!terminal_) fmt::print(out_, "{}\n", label_);
  Redraw();
  std::fflush(out_);
}

void ProgressBar::Note(const std::string& line) {
  fmt::print(out_, "{}{}\n", terminal_ ? "\r\033[K" : "", line);
  Redraw();
  std::fflush(out_);
}

void ProgressBar::Redraw() {
  if (!terminal_ || !share_) return;
  const double share = std::clamp(share_(), 0.0, 1.0);
  const double elapsed_s = std::chrono::duration<double>(Clock::now() - begin_).count();
  const int n_full = static_cast<int>(share * kBarCells);
  const std::string eta = share < kLeastShare
                              ? "ETA unknown"
                              : "ETA " + FormatDuration(elapsed_s * (1 - share) / share);
  fmt::print(out_, "\r\033[K[{}{}] {:>3.0f} %  {}  {}", std::string(n_full, '#'),
             std::string(kBarCells - n_full, '.'), 100 * share, label_, eta);
  std::fflush(out_);
}

void ProgressBar::Clear() {
  share_ = nullptr;
  if (!terminal_) return;
  fmt::print(out_, "\r\033[K");
  std::fflush(out_);
}

}  // namespace longhaul::load
