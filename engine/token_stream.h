// TokenStream: the reading end of one request. Events come from the engine thread, are read by one
// other thread, and end with a DoneEvent. Dropping the stream cancels the request: its pages are
// free after the slice in flight.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "engine/request.h"

namespace longhaul {

class StreamState;  // shared with the engine, see token_stream.cc

class TokenStream {
 public:
  explicit TokenStream(std::shared_ptr<StreamState> state);
  TokenStream(TokenStream&&) noexcept = default;
  TokenStream& operator=(TokenStream&&) noexcept;
  ~TokenStream();  // cancels unless Done was read

  // The next event if there is one.
  std::optional<StreamEvent> TryNext();
  // Waits up to `timeout`; nullopt when it passed, or after DoneEvent was returned.
  std::optional<StreamEvent> Next(std::chrono::microseconds timeout);
  // `on_ready` is called from the engine thread whenever an event was added while the stream was
  // empty, and once at once if events are waiting. It must only post work elsewhere.
  void SetReadyCallback(std::function<void()> on_ready);
  void Cancel();

 private:
  std::shared_ptr<StreamState> state_;
};

}  // namespace longhaul
