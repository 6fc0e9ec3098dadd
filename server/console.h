// What the commands print for people: a progress line with ETA, and aligned tables. Not thread
// safe.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "engine/request.h"

namespace longhaul {

// One line on a terminal that is redrawn; on anything else a line per tenth of the prompt.
class ProgressLine {
 public:
  explicit ProgressLine(std::FILE* out);
  void Show(const ProgressEvent& event);
  // Removes the line, so that other output can follow.
  void Clear();

 private:
  std::FILE* out_;
  bool terminal_;
  bool shown_ = false;
  int64_t last_tenth_ = -1;
};

// "1.2 s", "340 ms", "2 min 05 s".
std::string FormatDuration(double seconds);

// Columns padded to their widest cell; the first row is the head. Numbers look right because all
// columns but the first are right-aligned.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

}  // namespace longhaul
