// The streams, events and graphs of the stand-in runtime. A stream is a list of commands that run,
// in order, when somebody waits for one of them and not before: what is read without waiting is
// stale, as it may be on a device. Streams are ordered among each other only by events.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace longhaul::simt {

using Command = std::function<void()>;

class Stream {
 public:
  explicit Stream(bool is_blocking) : is_blocking_(is_blocking) {}

  // Takes part in the order of the default stream.
  bool is_blocking() const { return is_blocking_; }
  void Append(Command command) { commands_.push_back(std::move(command)); }
  // Commands up to now; a ticket is done when that many have run.
  int64_t ticket() const { return n_done_ + static_cast<int64_t>(commands_.size()); }
  bool IsDone(int64_t ticket) const { return n_done_ >= ticket; }
  void RunTo(int64_t ticket);
  void Clear() { n_done_ += static_cast<int64_t>(std::exchange(commands_, {}).size()); }

  // Not null while the stream is captured.
  std::unique_ptr<std::vector<Command>> capture;

 private:
  const bool is_blocking_;
  std::deque<Command> commands_;
  int64_t n_done_ = 0;
};

// A point in a stream.
struct Moment {
  std::shared_ptr<Stream> stream;
  int64_t ticket = 0;

  bool IsDone() const { return stream == nullptr || stream->IsDone(ticket); }
  void Wait() const {
    if (stream != nullptr) stream->RunTo(ticket);
  }
};

}  // namespace longhaul::simt

struct CUstream_st {
  std::shared_ptr<longhaul::simt::Stream> stream;
};
struct CUevent_st {
  longhaul::simt::Moment moment;
  std::shared_ptr<std::chrono::steady_clock::time_point> time;  // when it was reached
};
struct CUgraph_st {
  std::vector<longhaul::simt::Command> commands;
};
struct CUgraphExec_st {
  std::vector<longhaul::simt::Command> commands;
};
