// ProgressBar: what runs now and how long it will take, on a terminal one line that is redrawn, on
// anything else one line per phase. On the load generator's thread: Redraw is called by its ticker.
#pragma once

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>

namespace longhaul::load {

class ProgressBar {
 public:
  explicit ProgressBar(std::FILE* out);

  // `share` tells how much of the phase is done, 0 to 1; it must stay callable until the next
  // Begin or Clear.
  void Begin(std::string label, std::function<double()> share);
  // A phase that takes `seconds` from now.
  void Begin(std::string label, double seconds);
  // The same phase goes on under another name.
  void SetLabel(std::string label);
  // A line that stays, above the bar.
  void Note(const std::string& line);
  void Redraw();
  // Ends the phase and removes the line, so that other output can follow.
  void Clear();

 private:
  using Clock = std::chrono::steady_clock;

  std::FILE* const out_;
  const bool terminal_;
  std::string label_;
  std::function<double()> share_;
  Clock::time_point begin_;
};

}  // namespace longhaul::load
