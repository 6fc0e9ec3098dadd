#include "server/load/sse_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace longhaul::load {
namespace {

using testing::ElementsAre;

// The data of all events when the text arrives in pieces of `n_bytes`.
std::vector<std::string> Data(std::string_view text, size_t n_bytes) {
  SseParser parser;
  std::vector<std::string> result;
  for (; !text.empty(); text.remove_prefix(std::min(n_bytes, text.size()))) {
    const auto events = parser.Feed(text.substr(0, n_bytes));
    EXPECT_TRUE(events.ok()) << events.status();
    for (const SseEvent& event : *events) result.push_back(event.data);
  }
  return result;
}

TEST(SseParserTest, SameEventsHoweverTheBytesArrive) {
  for (const std::string end : {"\n", "\r\n", "\r"}) {
    std::string text;
    for (const char* line :
         {": a comment", "data: one", "", "event: x", "data:two", "data: three", "id: 7",
          "retry: 10", "unknown", "", "", "data", "", "data:  spaces ", "", "data: cut off"}) {
      text += line + end;
    }
    for (size_t n_bytes = 1; n_bytes <= text.size(); ++n_bytes) {
      EXPECT_THAT(Data(text, n_bytes), ElementsAre("one", "two\nthree", "", " spaces "))
          << n_bytes << " bytes at a time, line end of " << end.size();
    }
  }
}

TEST(SseParserTest, EventTypeBelongsToItsEvent) {
  SseParser parser;
  const auto events =
      parser.Feed("event: error\ndata: x\n\ndata: y\n\nevent: no data\n\ndata: z\n\n");
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 3u);
  EXPECT_EQ((*events)[0].type, "error");
  EXPECT_EQ((*events)[1].type, "");
  EXPECT_EQ((*events)[2].type, "");
}

TEST(SseParserTest, ByteOrderMarkOnlyAtTheStart) {
  EXPECT_THAT(Data("\xEF\xBB\xBF"
                   "data: a\n\n\xEF\xBB\xBF"
                   "data: b\n\ndata: c\n\n",
                   2),
              ElementsAre("a", "c"));
}

TEST(SseParserTest, EmptyInput) {
  SseParser parser;
  EXPECT_TRUE(parser.Feed("")->empty());
  EXPECT_TRUE(parser.Feed("\n\n\r\n\r\r")->empty());
}

TEST(SseParserTest, HugeLinesAreRefused) {
  const std::string limit(100, 'x');
  for (const size_t n_bytes : {size_t{1}, size_t{7}, size_t{4096}}) {
    SseParser parser(/*max_event_bytes=*/106);
    absl::Status status;
    const std::string text = "data: " + limit + "\n\ndata: " + limit + "x";
    size_t n_events = 0;
    for (size_t at = 0; at < text.size() && status.ok(); at += n_bytes) {
      const auto events = parser.Feed(std::string_view(text).substr(at, n_bytes));
      status = events.status();
      if (events.ok()) n_events += events->size();
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << n_bytes;
    if (n_bytes < text.size()) {
      EXPECT_EQ(n_events, 1u) << "the first one fits";
    }
  }
}

TEST(SseParserTest, ManyLinesOfOneEventAreBounded) {
  SseParser parser(/*max_event_bytes=*/100);
  absl::Status status;
  for (int i = 0; i < 20 && status.ok(); ++i) status = parser.Feed("data: 0123456789\n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace longhaul::load
