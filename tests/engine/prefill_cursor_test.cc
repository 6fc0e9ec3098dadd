// The order of cells: complete, legal, in both orders, from any start.
#include "engine/prefill_cursor.h"

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

constexpr int64_t kEpoch = 128;

// Completes everything in random pieces and checks that each cell comes once, after what it needs.
void CheckWalk(int64_t n_tokens, int64_t start, int32_t n_layers, bool by_layer, uint32_t seed) {
  std::mt19937 random(seed);
  PrefillCursor cursor(n_tokens, kEpoch, n_layers);
  cursor.SkipTo(start);
  if (by_layer) cursor.GoByLayer();
  std::map<std::pair<int64_t, int32_t>, bool> done;  // (begin of the epoch, layer)
  int64_t last_processed = cursor.processed_tokens();
  EXPECT_EQ(last_processed, start);
  while (!cursor.done()) {
    int64_t n_left = 0;
    for (int64_t begin = cursor.begin(); begin < n_tokens; begin = cursor.EpochEnd(begin)) {
      n_left += cursor.LayersLeft(begin);
    }
    const int64_t n_epochs = (n_tokens - 1) / kEpoch - start / kEpoch + 1;
    ASSERT_EQ(n_left + static_cast<int64_t>(done.size()), n_epochs * n_layers);

    PrefillCells cells = cursor.Next();
    cells.layer_end = cells.layer_begin + 1 +
                      static_cast<int32_t>(random() % static_cast<uint32_t>(cells.n_layers()));
    ASSERT_LT(cells.begin, cells.end);
    ASSERT_EQ(cells.begin / kEpoch, (cells.end - 1) / kEpoch);
    for (int32_t layer = cells.layer_begin; layer < cells.layer_end; ++layer) {
      if (layer > 0) {
        ASSERT_TRUE((done[{cells.begin, layer - 1}]));
      }
      if (cells.begin > start) {
        const int64_t before = std::max(start, (cells.begin - 1) / kEpoch * kEpoch);
        ASSERT_TRUE((done[{before, layer}])) << before << " at " << layer;
      }
      ASSERT_FALSE(std::exchange((done[{cells.begin, layer}]), true));
    }
    cursor.Complete(cells);
    EXPECT_GE(cursor.processed_tokens(), last_processed);
    last_processed = cursor.processed_tokens();
    // What passed all layers, and nothing more.
    if (cursor.begin() > start) {
      const int64_t last = std::max(start, (cursor.begin() - 1) / kEpoch * kEpoch);
      EXPECT_TRUE((done[{last, n_layers - 1}]));
    }
    EXPECT_FALSE((done.contains({cursor.begin(), n_layers - 1})));
  }
  EXPECT_EQ(last_processed, n_tokens);
  EXPECT_EQ(cursor.begin(), n_tokens);
}

TEST(PrefillCursorTest, EveryCellOnceAndAfterWhatItNeeds) {
  uint32_t seed = 1;
  for (int64_t n_tokens : {1, 127, 128, 129, 700, 1024}) {
    for (int64_t start : {0, 64, 128, 192, 640}) {
      if (start >= n_tokens) continue;
      for (int32_t n_layers : {1, 2, 5}) {
        for (bool by_layer : {false, true}) {
          SCOPED_TRACE(testing::Message() << n_tokens << " tokens from " << start << ", "
                                          << n_layers << " layers, by layer " << by_layer);
          CheckWalk(n_tokens, start, n_layers, by_layer, seed++);
        }
      }
    }
  }
}

TEST(PrefillCursorTest, PagesCanBeTakenOverAtBordersOnly) {
  PrefillCursor cursor(512, kEpoch, 3);
  EXPECT_TRUE(cursor.at_border());
  cursor.SkipTo(64);
  cursor.Complete({.begin = 64, .end = 128, .layer_begin = 0, .layer_end = 2});
  EXPECT_FALSE(cursor.at_border());
  EXPECT_EQ(cursor.begin(), 64);
  EXPECT_EQ(cursor.processed_tokens(), 64 + 64 * 2 / 3);
  cursor.Complete({.begin = 64, .end = 128, .layer_begin = 2, .layer_end = 3});
  EXPECT_TRUE(cursor.at_border());
  cursor.SkipTo(384);
  EXPECT_EQ(cursor.Next().begin, 384);
  cursor.Restart();
  EXPECT_EQ(cursor.Next().begin, 0);

  PrefillCursor by_layer(512, kEpoch, 3);
  by_layer.GoByLayer();
  EXPECT_TRUE(by_layer.at_border());
  by_layer.SkipTo(128);
  by_layer.Complete(by_layer.Next());
  EXPECT_FALSE(by_layer.at_border());
  EXPECT_EQ(by_layer.begin(), 128) << "nothing passed all layers";
  EXPECT_EQ(by_layer.Next().begin, 256);
}

TEST(PrefillCursorTest, APromptThatIsKnownIsDone) {
  PrefillCursor cursor(300, kEpoch, 2);
  cursor.SkipTo(300);
  EXPECT_TRUE(cursor.done());
  EXPECT_EQ(cursor.processed_tokens(), 300);
}

}  // namespace
}  // namespace longhaul
