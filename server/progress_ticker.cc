#include "server/progress_ticker.h"

#include <algorithm>

namespace longhaul {

void ProgressTicker::OnChunk(const api::Chunk& chunk, Clock::time_point now) {
  sent_at_ = now;
  if (const auto* progress = std::get_if<ProgressEvent>(&chunk)) {
    last_ = *progress;
    last_at_ = now;
  }
}

Clock::time_point ProgressTicker::due() const {
  return enabled_ && last_ ? sent_at_ + kInterval : Clock::time_point::max();
}

ProgressEvent ProgressTicker::Repeat(Clock::time_point now) {
  const int64_t passed_us =
      std::chrono::duration_cast<std::chrono::microseconds>(now - last_at_).count();
  ProgressEvent progress = *last_;
  progress.time_us += passed_us;
  if (progress.eta_us >= 0) progress.eta_us = std::max<int64_t>(0, progress.eta_us - passed_us);
  sent_at_ = now;
  return progress;
}

}  // namespace longhaul
