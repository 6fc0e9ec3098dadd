#include "kernels/cpu/attention_scratch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace longhaul::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// A core has some 24 misses in flight: the prefetch of a tile, up to 1024 lines, hides behind the
// work of this many rows, and would only stall fewer.
constexpr int64_t kMinPrefetchRows = 48;

TileQueries Queries(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked) {
  return {.q = block.q(begin),
          .n_rows = end - begin,
          .head_dim = block.head_dim(),
          .kt = tile.kt(),
          .visible = masked ? block.visible() + begin : nullptr,
          .next = end - begin >= kMinPrefetchRows ? tile.next() : TilePrefetch{}};
}

}  // namespace

void RowBlock::Reset(int64_t n_rows, int64_t head_dim, bool with_output) {
  n_rows_ = n_rows;
  head_dim_ = head_dim;
  q_.Ensure(n_rows * head_dim);
  std::fill_n(max_.Ensure(n_rows), n_rows, kNoScore);
  std::fill_n(sum_.Ensure(n_rows * kPadFloats), n_rows * kPadFloats, 0.0f);
  if (with_output) {
    const int64_t n = n_rows * PaddedDim(head_dim);
    std::fill_n(o_.Ensure(n), n, 0.0f);
  }
  if (static_cast<int64_t>(visible_.size()) < n_rows) visible_.resize(n_rows);
}

void RowBlock::SetQuery(int64_t row, const float* q, float scale) {
  float* out = q_.data() + row * head_dim_;
  const float factor = scale * kLog2E;
  for (int64_t i = 0; i < head_dim_; ++i) out[i] = q[i] * factor;
}

void KeyTile::Pack(const KvView& kv, const void* const* keys, const void* const* values) {
  PackKeys({.rows = keys,
            .n_keys = n_keys_,
            .head_dim = kv.head_dim,
            .dtype = kv.dtype,
            .kt = kt_.Ensure(kTileKeys * kv.head_dim)});
  if (values == nullptr) return;
  float* v = v_.Ensure(kTileKeys * PaddedDim(kv.head_dim));
  PackValues(
      {.rows = values, .n_keys = n_keys_, .head_dim = kv.head_dim, .dtype = kv.dtype, .v = v});
  values_ = v;
}

void KeyTile::LoadPage(const KvView& kv, int64_t kv_head, int64_t begin, int64_t n_keys,
                       bool with_values) {
  static_assert(kPageTokens == kTileKeys, "a tile is a page");
  n_keys_ = n_keys;
  row_bytes_ = kv.head_dim * static_cast<int64_t>(DTypeBytes(kv.dtype));
  const std::byte* page_keys = kv.Keys(begin / kPageTokens, kv_head);
  const std::byte* page_values = kv.Values(begin / kPageTokens, kv_head);
  const bool in_place = kv.dtype == DType::kF32 && kv.head_dim == PaddedDim(kv.head_dim);
  const void* keys[kTileKeys];
  const void* values[kTileKeys];
  for (int64_t c = 0; c < n_keys; ++c) {
    keys[c] = page_keys + c * row_bytes_;
    values[c] = page_values + c * row_bytes_;
  }
  Pack(kv, keys, with_values && !in_place ? values : nullptr);
  if (in_place) values_ = reinterpret_cast<const float*>(page_values);

  n_next_ = 0;
  if (begin + kTileKeys >= kv.n_tokens) return;
  page_keys = kv.Keys(begin / kPageTokens + 1, kv_head);
  page_values = kv.Values(begin / kPageTokens + 1, kv_head);
  for (int64_t c = 0; c < kTileKeys; ++c) next_[n_next_++] = page_keys + c * row_bytes_;
  if (!with_values) return;
  for (int64_t c = 0; c < kTileKeys; ++c) next_[n_next_++] = page_values + c * row_bytes_;
}

void KeyTile::Gather(const KvView& kv, int64_t kv_head, const int32_t* positions, int64_t n_keys,
                     int64_t n_left) {
  n_keys_ = n_keys;
  row_bytes_ = kv.head_dim * static_cast<int64_t>(DTypeBytes(kv.dtype));
  const void* keys[kTileKeys];
  const void* values[kTileKeys];
  const auto locate = [&](int32_t position, const void** key, const void** value) {
    const int64_t page = position / kPageTokens;
    const int64_t offset = position % kPageTokens * row_bytes_;
    *key = kv.Keys(page, kv_head) + offset;
    *value = kv.Values(page, kv_head) + offset;
  };
  for (int64_t c = 0; c < n_keys; ++c) locate(positions[c], &keys[c], &values[c]);
  Pack(kv, keys, values);

  n_next_ = 0;
  for (int64_t c = n_keys; c < std::min(n_left, n_keys + kTileKeys); ++c, n_next_ += 2) {
    locate(positions[c], &next_[n_next_], &next_[n_next_ + 1]);
  }
}

void AttendRows(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked) {
  if (begin >= end) return;
  AttendTile({.in = Queries(tile, block, begin, end, masked),
              .v = tile.values(),
              .v_stride = PaddedDim(block.head_dim()),
              .n_keys = tile.n_keys(),
              .states = block.states(begin),
              .o = block.o(begin)});
}

void LseRows(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked) {
  if (begin >= end) return;
  LseTile({.in = Queries(tile, block, begin, end, masked), .states = block.states(begin)});
}

float MergeLse2(const float* x, int64_t n, int64_t stride) {
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) top = std::max(top, x[i * stride]);
  if (std::isinf(top)) return top;
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp2(x[i * stride] - top);
  return top + std::log2(sum);
}

int64_t DenseBlockTokens(int64_t n_tokens, int64_t n_heads_per_item, int64_t n_kv_heads,
                         int n_threads) {
  // 256 rows: packing a tile costs about 1 % of using it, and queries, outputs and the tile stay in
  // half of a 1 MiB L2 at head_dim 128.
  const int64_t most = std::max<int64_t>(1, 256 / n_heads_per_item);
  const int64_t fair = CeilDiv(n_tokens * n_kv_heads, int64_t{8} * n_threads);
  return std::clamp<int64_t>(fair, std::min<int64_t>(16, most), most);
}

void RunDenseItem(const DenseTensors& tensors, const DenseItem& item, ThreadScratch& scratch) {
  const KvView& kv = tensors.kv;
  const int64_t n_heads = item.n_heads;
  const int64_t n_rows = (item.row_end - item.row_begin) * n_heads;
  RowBlock& block = scratch.rows;
  block.Reset(n_rows, kv.head_dim, /*with_output=*/true);
  for (int64_t r = 0; r < n_rows; ++r) {  // row r: token row_begin + r / n_heads, head r % n_heads
    const float* q = tensors.q.Row<float>(item.row_begin + r / n_heads) +
                     item.heads[r % n_heads] * tensors.q.stride(1);
    block.SetQuery(r, q, tensors.scale);
  }
  const int64_t first_position = tensors.q_begin + item.row_begin;
  const int64_t n_keys = tensors.q_begin + item.row_end;
  const int64_t window = tensors.window == 0 ? n_keys : std::min(tensors.window, n_keys);
  const int64_t first_key = FirstVisibleKey(first_position, window);
  const int64_t last_first_key = FirstVisibleKey(n_keys - 1, window);
  for (int64_t begin = first_key - first_key % kTileKeys; begin < n_keys; begin += kTileKeys) {
    scratch.tile.LoadPage(kv, item.kv_head, begin, std::min(kTileKeys, n_keys - begin),
                          /*with_values=*/true);
    // Rows that see a key of this tile: not before it, and their window reaches into it.
    const int64_t first_row = std::max<int64_t>(0, begin - first_position) * n_heads;
    const int64_t end_row =
        std::min(n_rows, (begin + kTileKeys - 1 + window - first_position) * n_heads);
    const bool masked = first_position < begin + kTileKeys - 1 || last_first_key > begin;
    if (masked) {
      for (int64_t r = first_row; r < end_row; ++r) {
        const int64_t position = first_position + r / n_heads;
        block.visible()[r] =
            LowBits(position - begin + 1) & ~LowBits(FirstVisibleKey(position, window) - begin);
      }
    }
    AttendRows(scratch.tile, block, first_row, end_row, masked);
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t token = item.row_begin + r / n_heads;
    const int64_t head = item.heads[r % n_heads];
    const RowStates state = block.states(r);
    const float lse = FinishRow(*state.max, state.sum, block.o(r), kv.head_dim,
                                tensors.out.Row<float>(token) + head * tensors.out.stride(1));
    if (!tensors.lse.empty()) tensors.lse.Row<float>(token)[head] = lse;
  }
}

}  // namespace longhaul::cpu
