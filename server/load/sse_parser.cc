#include "server/load/sse_parser.h"

#include <fmt/format.h>

#include <utility>

namespace longhaul::load {

absl::StatusOr<std::vector<SseEvent>> SseParser::Feed(std::string_view bytes) {
  std::vector<SseEvent> events;
  while (!bytes.empty()) {
    if (std::exchange(skip_line_feed_, false) && bytes.front() == '\n') bytes.remove_prefix(1);
    const size_t end = bytes.find_first_of("\r\n");
    const std::string_view piece = bytes.substr(0, end);
    if (line_.size() + piece.size() > max_event_bytes_) {
      return absl::ResourceExhaustedError(
          fmt::format("a line of the event stream is longer than {} bytes", max_event_bytes_));
    }
    line_ += piece;
    if (end == std::string_view::npos) break;
    skip_line_feed_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    LH_RETURN_IF_ERROR(TakeLine(&events));
    line_.clear();
  }
  return events;
}

absl::Status SseParser::TakeLine(std::vector<SseEvent>* events) {
  std::string_view line = line_;
  if (std::exchange(first_line_, false) && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
  if (line.empty()) {
    if (has_data_) events->push_back(std::move(event_));
    event_ = SseEvent();
    has_data_ = false;
    return absl::OkStatus();
  }
  const size_t colon = line.find(':');
  const std::string_view name = line.substr(0, colon);
  std::string_view value;
  if (colon != std::string_view::npos) value = line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (name == "event") event_.type = value;
  if (name != "data") return absl::OkStatus();
  if (event_.data.size() + value.size() + 1 > max_event_bytes_) {
    return absl::ResourceExhaustedError(
        fmt::format("an event of the stream is longer than {} bytes", max_event_bytes_));
  }
  if (has_data_) event_.data += '\n';
  event_.data += value;
  has_data_ = true;
  return absl::OkStatus();
}

}  // namespace longhaul::load
