#include "server/text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace longhaul {
namespace {

TEST(StopStringsTest, WithoutStopsEverythingPasses) {
  StopStrings stops({}, false);
  EXPECT_EQ(stops.Push("abc").text, "abc");
  EXPECT_EQ(stops.Finish(), "");
  StopStrings empty({""}, false);
  EXPECT_EQ(empty.Push("abc").text, "abc");
}

TEST(StopStringsTest, HoldsBackOnlyAPossibleStart) {
  StopStrings stops({"</end>"}, false);
  EXPECT_EQ(stops.Push("a <b").text, "a <b");
  EXPECT_EQ(stops.Push("x</").text, "x");
  EXPECT_EQ(stops.Push("e").text, "");
  EXPECT_EQ(stops.Push("x</en").text, "</ex");
  const StopStrings::Result result = stops.Push("d> more");
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.matched, "</end>");
  EXPECT_EQ(stops.Finish(), "");
}

TEST(StopStringsTest, FinishReturnsWhatWasHeld) {
  StopStrings stops({"\n\n"}, false);
  EXPECT_EQ(stops.Push("a\n").text, "a");
  EXPECT_EQ(stops.Finish(), "\n");
}

TEST(StopStringsTest, CanIncludeTheStop) {
  StopStrings stops({"STOP"}, true);
  const StopStrings::Result result = stops.Push("go STOP on");
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.text, "go STOP");
}

TEST(StopStringsTest, TheFirstCompleteMatchWinsAndTheLongestOfThose) {
  StopStrings earliest({"later", "now"}, false);
  EXPECT_EQ(earliest.Push("now or later").matched, "now");
  StopStrings longest({"b", "ab"}, false);
  const StopStrings::Result result = longest.Push("xab");
  EXPECT_EQ(result.matched, "ab");
  EXPECT_EQ(result.text, "x");
}

TEST(StopStringsTest, OverlappingPrefixes) {
  StopStrings stops({"aab"}, false);
  std::string text;
  StopStrings::Result result;
  for (const char* piece : {"a", "a", "a", "b"}) {
    result = stops.Push(piece);
    text += result.text;
  }
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(text, "a");
}

TEST(StopStringsTest, CutsIntoTokensDoNotMatter) {
  std::mt19937 random(11);
  const auto random_string = [&](size_t max) {
    std::string text;
    for (size_t n = random() % max + 1; n > 0; --n) text.push_back("ab"[random() % 2]);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    const std::vector<std::string> list = {random_string(5), random_string(5), random_string(8)};
    const std::string input = random_string(30);
    StopStrings whole(list, round % 2 == 0), cut(list, round % 2 == 0);
    const StopStrings::Result expected = whole.Push(input);
    std::string expected_text = expected.text;
    if (!expected.stopped) expected_text += whole.Finish();

    std::string text;
    StopStrings::Result result;
    for (size_t at = 0; at < input.size() && !result.stopped;) {
      const size_t n = random() % 4 + 1;
      result = cut.Push(input.substr(at, n));
      text += result.text;
      at += n;
    }
    if (!result.stopped) text += cut.Finish();
    ASSERT_EQ(result.stopped, expected.stopped) << "round " << round;
    ASSERT_EQ(result.matched, expected.matched) << "round " << round;
    ASSERT_EQ(text, expected_text) << "round " << round;
  }
}

}  // namespace
}  // namespace longhaul
