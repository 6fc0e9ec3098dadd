#include "server/text/stop_strings.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace longhaul {
namespace {

// Length of the longest suffix of `text` that is a proper prefix of `stop`. Quadratic in the stop
// string at worst; the API caps stop strings and a suffix test mostly fails at its first byte.
size_t HeldLength(std::string_view text, std::string_view stop) {
  for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n) {
    if (text.substr(text.size() - n) == stop.substr(0, n)) return n;
  }
  return 0;
}

}  // namespace

StopStrings::Result StopStrings::Push(const std::string& text) {
  held_ += text;
  size_t match_at = std::string::npos, match_end = std::string::npos;
  const std::string* match = nullptr;
  size_t n_hold = 0;
  for (const std::string& stop : stops_) {
    if (stop.empty()) continue;
    n_hold = std::max(n_hold, HeldLength(held_, stop));
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (match == nullptr || end < match_end || (end == match_end && at < match_at)) {
      match = &stop;
      match_at = at;
      match_end = end;
    }
  }
  if (match != nullptr) {
    Result result{held_.substr(0, include_in_output_ ? match_end : match_at), /*stopped=*/true,
                  *match};
    held_.clear();
    return result;
  }
  Result result;
  result.text = held_.substr(0, held_.size() - n_hold);
  held_.erase(0, held_.size() - n_hold);
  return result;
}

std::string StopStrings::Finish() { return std::exchange(held_, {}); }

}  // namespace longhaul
