// ProgressTicker: keeps a stream that asked for progress from falling silent. The engine reports
// at most once per slice, and a slice of a large model or a wait in the queue may take longer; then
// the last report is repeated, moved on in time. Nothing is invented: phase and tokens stay as they
// were. Belongs to the reader of one stream; no thread of its own.
#pragma once

#include <optional>

#include "server/api/types.h"

namespace longhaul {

class ProgressTicker {
 public:
  // A bit less than the promised second, because timers are late on a busy machine.
  static constexpr std::chrono::milliseconds kInterval{900};

  // Not `enabled`: never due.
  explicit ProgressTicker(bool enabled) : enabled_(enabled) {}

  // `chunk` was read at `now`, and is sent.
  void OnChunk(const api::Chunk& chunk, Clock::time_point now);
  // When the next repetition is due, unless a chunk comes before.
  Clock::time_point due() const;
  // What to send at `now`; the next one is due an interval later. Needs now >= due().
  ProgressEvent Repeat(Clock::time_point now);

 private:
  const bool enabled_;
  std::optional<ProgressEvent> last_;
  Clock::time_point last_at_;  // when `last_` was read
  Clock::time_point sent_at_;  // when anything was sent
};

}  // namespace longhaul
