// SseParser: bytes of a text/event-stream to events, by the WHATWG rules: lines end with LF, CRLF
// or CR, data lines of one event are joined by LF, comments and unknown fields are skipped, an
// event that the stream's end cuts off is dropped. One per stream, one thread; does no input or
// output.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace longhaul::load {

struct SseEvent {
  std::string type;  // of an "event:" line; mostly ""
  std::string data;
};

class SseParser {
 public:
  explicit SseParser(size_t max_event_bytes = size_t{8} << 20)
      : max_event_bytes_(max_event_bytes) {}

  // The events that end in these bytes. ResourceExhausted when a line, or the data of one event, is
  // longer than the limit; the parser is of no use then.
  absl::StatusOr<std::vector<SseEvent>> Feed(std::string_view bytes);

 private:
  absl::Status TakeLine(std::vector<SseEvent>* events);

  const size_t max_event_bytes_;
  std::string line_;  // the unfinished one
  SseEvent event_;
  bool has_data_ = false;
  bool skip_line_feed_ = false;  // the last byte was a CR
  bool first_line_ = true;
};

}  // namespace longhaul::load
