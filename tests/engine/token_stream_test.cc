#include "engine/token_stream.h"

#include <atomic>
#include <thread>
#include <vector>

#include "engine/stream_state.h"
#include "gtest/gtest.h"

namespace longhaul {
namespace {

using std::chrono::milliseconds;

TokenEvent Token(int32_t token) {
  TokenEvent event;
  event.token = token;
  return event;
}

struct Ends {
  Ends() : state(std::make_shared<StreamState>([this] { ++n_wakes; })), stream(state) {}
  std::atomic<int> n_wakes{0};
  std::shared_ptr<StreamState> state;
  TokenStream stream;
};

TEST(TokenStream, EventsComeInOrder) {
  Ends ends;
  EXPECT_FALSE(ends.stream.TryNext().has_value());
  for (int32_t i = 0; i < 3; ++i) ends.state->Emit(Token(i));
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(std::get<TokenEvent>(*ends.stream.TryNext()).token, i);
  }
  EXPECT_FALSE(ends.stream.TryNext().has_value());
}

TEST(TokenStream, UnreadProgressIsReplacedTokensAreNot) {
  Ends ends;
  ProgressEvent progress;
  for (int i = 0; i < 1'000; ++i) {
    progress.processed_tokens = i;
    ends.state->Emit(progress);
  }
  ends.state->Emit(Token(1));
  ends.state->Emit(progress);
  EXPECT_EQ(std::get<ProgressEvent>(*ends.stream.TryNext()).processed_tokens, 999);
  EXPECT_TRUE(std::holds_alternative<TokenEvent>(*ends.stream.TryNext()));
  EXPECT_TRUE(std::holds_alternative<ProgressEvent>(*ends.stream.TryNext()));
  EXPECT_FALSE(ends.stream.TryNext().has_value());
}

TEST(TokenStream, WhoStopsReadingIsCancelled) {
  Ends ends;
  for (size_t i = 1; i < StreamState::kMaxUnread; ++i) ends.state->Emit(Token(1));
  EXPECT_FALSE(ends.state->cancelled());
  EXPECT_TRUE(ends.stream.TryNext().has_value());
  ends.state->Emit(Token(1));
  EXPECT_FALSE(ends.state->cancelled()) << "unread ones count";
  ends.state->Emit(Token(1));
  EXPECT_TRUE(ends.state->cancelled());
}

TEST(TokenStream, CallbackOnceWhenItTurnsNonEmpty) {
  Ends ends;
  int n_calls = 0;
  ends.stream.SetReadyCallback([&] { ++n_calls; });
  EXPECT_EQ(n_calls, 0);
  ends.state->Emit(Token(1));
  ends.state->Emit(Token(2));
  EXPECT_EQ(n_calls, 1);
  ends.stream.TryNext();
  ends.stream.TryNext();
  ends.state->Emit(Token(3));
  EXPECT_EQ(n_calls, 2);
  ends.stream.SetReadyCallback([&] { n_calls += 10; });
  EXPECT_EQ(n_calls, 12) << "at once where events wait";
  ends.stream.SetReadyCallback(nullptr);
  ends.stream.TryNext();
  ends.state->Emit(Token(4));
  EXPECT_EQ(n_calls, 12);
}

TEST(TokenStream, NextWaitsAndTimesOut) {
  Ends ends;
  EXPECT_FALSE(ends.stream.Next(milliseconds(1)).has_value());
  std::thread writer([&] {
    std::this_thread::sleep_for(milliseconds(5));
    ends.state->Emit(Token(7));
    ends.state->Emit(DoneEvent{});
  });
  EXPECT_TRUE(std::holds_alternative<TokenEvent>(*ends.stream.Next(milliseconds(5'000))));
  EXPECT_TRUE(std::holds_alternative<DoneEvent>(*ends.stream.Next(milliseconds(5'000))));
  writer.join();
  const auto begin = Clock::now();
  EXPECT_FALSE(ends.stream.Next(milliseconds(5'000)).has_value()) << "nothing follows the last";
  EXPECT_LT(Clock::now() - begin, milliseconds(1'000));
}

TEST(TokenStream, DroppingItCancelsUnlessDoneWasRead) {
  int n_wakes = 0;
  auto state = std::make_shared<StreamState>([&] { ++n_wakes; });
  { TokenStream stream(state); }
  EXPECT_TRUE(state->cancelled());
  EXPECT_EQ(n_wakes, 1);

  state = std::make_shared<StreamState>([&] { ++n_wakes; });
  {
    TokenStream stream(state);
    state->Emit(DoneEvent{});
    stream.TryNext();
  }
  EXPECT_FALSE(state->cancelled());
  EXPECT_EQ(n_wakes, 1);
}

TEST(TokenStream, MovingKeepsOneOwner) {
  auto a_state = std::make_shared<StreamState>([] {});
  auto b_state = std::make_shared<StreamState>([] {});
  {
    TokenStream a(a_state);
    TokenStream moved(std::move(a));
    EXPECT_FALSE(a_state->cancelled());
    {
      TokenStream b(b_state);
      moved = std::move(b);
    }
    EXPECT_TRUE(a_state->cancelled()) << "assignment drops what was there";
    EXPECT_FALSE(b_state->cancelled());
  }
  EXPECT_TRUE(b_state->cancelled());
}

TEST(TokenStream, ManyEventsBetweenThreads) {
  Ends ends;
  std::atomic<int> n_ready{0};
  ends.stream.SetReadyCallback([&] { n_ready.fetch_add(1); });
  constexpr int32_t kEvents = 20'000;
  std::thread writer([&] {
    for (int32_t i = 0; i < kEvents; ++i) ends.state->Emit(Token(i));
    ends.state->Emit(DoneEvent{});
  });
  int32_t n_read = 0;
  while (true) {
    const auto event = ends.stream.Next(milliseconds(10'000));
    ASSERT_TRUE(event.has_value());
    if (std::holds_alternative<DoneEvent>(*event)) break;
    ASSERT_EQ(std::get<TokenEvent>(*event).token, n_read++);
  }
  writer.join();
  EXPECT_EQ(n_read, kEvents);
  EXPECT_GE(n_ready.load(), 1);
}

}  // namespace
}  // namespace longhaul
