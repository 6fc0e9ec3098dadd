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
  return {.word = block.word(),
          .q = block.q(begin),
          .n_rows = end - begin,
          .head_dim = block.head_dim(),
          .kt = tile.kt(),
          .visible = masked ? block.visible() + begin : nullptr,
          .next = end - begin >= kMinPrefetchRows ? tile.next() : TilePrefetch{}};
}

}  // namespace

RowQueries QueriesOf(const TensorView& q, const DualChunkQueries& dual, int64_t t, int64_t head,
                     int64_t position) {
  const auto row = [&](const TensorView& form) {
    return form.Row<float>(t) + head * form.stride(1);
  };
  if (dual.chunk_tokens == 0) return {.forms = {row(q)}, .chunk = 0};
  return {.forms = {row(q), row(dual.next), row(dual.far)}, .chunk = position / dual.chunk_tokens};
}

void RowBlock::Reset(int64_t n_rows, int64_t head_dim, TileWord word, int64_t chunk_tokens,
                     bool with_output) {
  n_rows_ = n_rows;
  head_dim_ = head_dim;
  word_ = word;
  chunk_tokens_ = chunk_tokens;
  packed_chunk_ = -1;
  if (chunk_tokens > 0) queries_.resize(n_rows);
  with_output_ = with_output;
  q_.Ensure(n_rows * WordsOf(word, head_dim));
  max_.Ensure(n_rows);
  sum_.Ensure(n_rows * kPadFloats);
  if (with_output) o_.Ensure(n_rows * PaddedDim(head_dim));
  ClearStates();
  if (static_cast<int64_t>(visible_.size()) < n_rows) visible_.resize(n_rows);
}

void RowBlock::ClearStates() {
  std::fill_n(max_.data(), n_rows_, kNoScore);
  std::fill_n(sum_.data(), n_rows_ * kPadFloats, 0.0f);
  if (with_output_) std::fill_n(o_.data(), n_rows_ * PaddedDim(head_dim_), 0.0f);
}

void RowBlock::Pack(int64_t row, const float* q) {
  PackQuery({.word = word_,
             .q = q,
             .factor = factor_,
             .head_dim = head_dim_,
             .packed = q_.data() + row * WordsOf(word_, head_dim_)});
}

void RowBlock::SetQuery(int64_t row, const RowQueries& queries, float scale) {
  factor_ = scale * kLog2E;
  if (chunk_tokens_ == 0) {
    Pack(row, queries.forms[0]);
  } else {
    queries_[row] = queries;
  }
}

void RowBlock::SelectQueries(int64_t key) {
  if (chunk_tokens_ == 0) return;
  const int64_t chunk = key / chunk_tokens_;
  if (chunk == packed_chunk_) return;
  packed_chunk_ = chunk;
  for (int64_t row = 0; row < n_rows_; ++row) {
    // Rows of earlier chunks do not see these keys, whatever is packed.
    const int64_t distance = std::clamp<int64_t>(queries_[row].chunk - chunk, 0, 2);
    Pack(row, queries_[row].forms[distance]);
  }
}

DType KeyTile::WidenForPairs(const KvView& kv, Rows& rows) {
  if (kv.dtype != DType::kF8E4M3 || TileWordOf(kv) != TileWord::kBF16Pair) return kv.dtype;
  auto* bf16 = reinterpret_cast<BF16*>(bf16_.Ensure(kTileKeys * kv.head_dim / 2));
  WidenF8({.rows = rows.at,
           .n_keys = n_keys_,
           .head_dim = kv.head_dim,
           .factors = rows.factors,
           .bf16 = bf16});
  for (int64_t c = 0; c < n_keys_; ++c) rows.at[c] = bf16 + c * kv.head_dim;
  return DType::kBF16;
}

void KeyTile::PackKeyRows(const KvView& kv, Rows& keys) {
  const TileWord word = TileWordOf(kv);
  const DType dtype = WidenForPairs(kv, keys);
  PackKeys({.word = word,
            .rows = keys.at,
            .n_keys = n_keys_,
            .head_dim = kv.head_dim,
            .dtype = dtype,
            .factors = keys.factors,
            .kt = kt_.Ensure(kTileKeys * WordsOf(word, kv.head_dim))});
}

void KeyTile::PackValueRows(const KvView& kv, Rows& values) {
  const TileWord word = TileWordOf(kv);
  float* v = v_.Ensure(WordsOf(word, kTileKeys) * PaddedDim(kv.head_dim));
  const DType dtype = WidenForPairs(kv, values);
  PackValues({.word = word,
              .rows = values.at,
              .n_keys = n_keys_,
              .head_dim = kv.head_dim,
              .dtype = dtype,
              .factors = values.factors,
              .v = v});
  values_ = v;
}

void KeyTile::LoadPage(const KvView& kv, int64_t kv_head, int64_t begin, int64_t n_keys,
                       bool with_values) {
  static_assert(kPageTokens == kTileKeys, "a tile is a page");
  first_key_ = begin;
  n_keys_ = n_keys;
  row_bytes_ = kv.RowBytes();
  std::byte* page_keys = kv.Keys(begin / kPageTokens, kv_head);
  std::byte* page_values = kv.Values(begin / kPageTokens, kv_head);
  Rows rows;
  for (int64_t c = 0; c < n_keys; ++c) rows.Set(c, kv, page_keys, c);
  PackKeyRows(kv, rows);
  if (kv.dtype == DType::kF32 && kv.head_dim == PaddedDim(kv.head_dim)) {
    values_ = page_values;
  } else if (with_values) {
    for (int64_t c = 0; c < n_keys; ++c) rows.Set(c, kv, page_values, c);
    PackValueRows(kv, rows);
  }

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
  first_key_ = positions[0];
  n_keys_ = n_keys;
  row_bytes_ = kv.RowBytes();
  Rows keys;
  Rows values;
  for (int64_t c = 0; c < n_keys; ++c) {
    const int64_t page = positions[c] / kPageTokens;
    const int64_t slot = positions[c] % kPageTokens;
    keys.Set(c, kv, kv.Keys(page, kv_head), slot);
    values.Set(c, kv, kv.Values(page, kv_head), slot);
  }
  PackKeyRows(kv, keys);
  PackValueRows(kv, values);

  n_next_ = 0;
  for (int64_t c = n_keys; c < std::min(n_left, n_keys + kTileKeys); ++c) {
    const int64_t page = positions[c] / kPageTokens;
    const int64_t offset = positions[c] % kPageTokens * row_bytes_;
    next_[n_next_++] = kv.Keys(page, kv_head) + offset;
    next_[n_next_++] = kv.Values(page, kv_head) + offset;
  }
}

void StorePartial(RowBlock& block, int64_t row, float* partial) {
  const RowStates state = block.states(row);
  partial[0] = *state.max;
  std::copy_n(state.sum, kPadFloats, partial + 1);
  std::copy_n(block.o(row), PaddedDim(block.head_dim()), partial + 1 + kPadFloats);
}

void AddPartial(const float* partial, int64_t head_dim, float* total) {
  // A state that saw nothing (max = kNoScore) adds exactly nothing.
  const float max = std::max(total[0], partial[0]);
  const float keep = std::exp2(total[0] - max);
  const float add = std::exp2(partial[0] - max);
  const int64_t n = PartialFloats(head_dim);
  total[0] = max;
  for (int64_t i = 1; i < n; ++i) total[i] = keep * total[i] + add * partial[i];
}

float FinishPartial(const float* total, int64_t head_dim, float* out) {
  return FinishRow(total[0], total + 1, total + 1 + kPadFloats, head_dim, out);
}

void AttendRows(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked) {
  if (begin >= end) return;
  block.SelectQueries(tile.first_key());
  AttendTile({.in = Queries(tile, block, begin, end, masked),
              .v = tile.values(),
              .n_keys = tile.n_keys(),
              .states = block.states(begin),
              .o = block.o(begin)});
}

void LseRows(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked) {
  if (begin >= end) return;
  block.SelectQueries(tile.first_key());
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

int64_t DenseMostTokens(int64_t n_heads_per_item) {
  // 512 rows: loading and packing a tile costs about 5 % of using it (pairs of bf16; 256 rows were 5
  // to 7 % slower), and queries, outputs and the tile still fit a 1 MiB L2 at head_dim 128.
  return std::max<int64_t>(1, 512 / n_heads_per_item);
}

int64_t DenseBlockTokens(int64_t n_tokens, int64_t n_heads_per_item, int64_t n_kv_heads,
                         int n_threads) {
  const int64_t most = DenseMostTokens(n_heads_per_item);
  const int64_t fair = CeilDiv(n_tokens * n_kv_heads, int64_t{8} * n_threads);
  return std::clamp<int64_t>(fair, std::min<int64_t>(16, most), most);
}

namespace {

void LoadQueries(const DenseTensors& tensors, const DenseItem& item, RowBlock& block) {
  block.Reset(item.n_rows(), tensors.kv.head_dim, TileWordOf(tensors.kv), tensors.dual.chunk_tokens,
              /*with_output=*/true);
  for (int64_t r = 0; r < item.n_rows(); ++r) {
    const int64_t t = item.row_begin + r / item.n_heads;
    block.SetQuery(
        r, QueriesOf(tensors.q, tensors.dual, t, item.heads[r % item.n_heads], tensors.q_begin + t),
        tensors.scale);
  }
}

// The window as a number of keys.
int64_t WindowKeys(const DenseTensors& tensors, int64_t n_keys) {
  return tensors.window == 0 ? n_keys : std::min(tensors.window, n_keys);
}

// Adds the keys of one chunk to the rows in scratch.rows.
void AttendChunk(const DenseTensors& tensors, const DenseItem& item, int64_t chunk,
                 ThreadScratch& scratch) {
  const int64_t n_heads = item.n_heads;
  const int64_t n_rows = item.n_rows();
  RowBlock& block = scratch.rows;
  const int64_t first_position = tensors.q_begin + item.row_begin;
  const int64_t n_keys = tensors.q_begin + item.row_end;
  const int64_t window = WindowKeys(tensors, n_keys);
  const int64_t first_key = FirstVisibleKey(first_position, window);
  const int64_t last_first_key = FirstVisibleKey(n_keys - 1, window);
  const int64_t chunk_begin = std::max(first_key - first_key % kTileKeys, chunk * kDenseChunkKeys);
  const int64_t chunk_end = std::min(n_keys, (chunk + 1) * kDenseChunkKeys);
  for (int64_t begin = chunk_begin; begin < chunk_end; begin += kTileKeys) {
    scratch.tile.LoadPage(tensors.kv, item.kv_head, begin, std::min(kTileKeys, n_keys - begin),
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
}

void StorePartials(RowBlock& block, float* partials) {
  for (int64_t r = 0; r < block.n_rows(); ++r) {
    StorePartial(block, r, partials + r * PartialFloats(block.head_dim()));
  }
}

}  // namespace

ChunkRange ChunksOf(const DenseTensors& tensors, const DenseItem& item) {
  const int64_t n_keys = tensors.q_begin + item.row_end;
  const int64_t first_key =
      FirstVisibleKey(tensors.q_begin + item.row_begin, WindowKeys(tensors, n_keys));
  return {.begin = first_key / kDenseChunkKeys, .end = CeilDiv(n_keys, kDenseChunkKeys)};
}

void RunDenseChunk(const DenseTensors& tensors, const DenseItem& item, int64_t chunk,
                   float* partials, ThreadScratch& scratch) {
  LoadQueries(tensors, item, scratch.rows);
  AttendChunk(tensors, item, chunk, scratch);
  StorePartials(scratch.rows, partials);
}

void FinishDenseItem(const DenseTensors& tensors, const DenseItem& item, const float* totals) {
  const int64_t head_dim = tensors.kv.head_dim;
  for (int64_t r = 0; r < item.n_rows(); ++r) {
    const int64_t token = item.row_begin + r / item.n_heads;
    const int64_t head = item.heads[r % item.n_heads];
    const float lse = FinishPartial(totals + r * PartialFloats(head_dim), head_dim,
                                    tensors.out.Row<float>(token) + head * tensors.out.stride(1));
    if (!tensors.lse.empty()) tensors.lse.Row<float>(token)[head] = lse;
  }
}

void RunDenseItem(const DenseTensors& tensors, const DenseItem& item, ThreadScratch& scratch) {
  const int64_t head_dim = tensors.kv.head_dim;
  const int64_t row_floats = PartialFloats(head_dim);
  const int64_t n_rows = item.n_rows();
  float* totals = scratch.totals.Ensure(2 * n_rows * row_floats);
  float* partials = totals + n_rows * row_floats;
  LoadQueries(tensors, item, scratch.rows);
  const ChunkRange chunks = ChunksOf(tensors, item);
  for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
    AttendChunk(tensors, item, chunk, scratch);
    if (chunk == chunks.begin) {
      StorePartials(scratch.rows, totals);
    } else {
      StorePartials(scratch.rows, partials);
      for (int64_t r = 0; r < n_rows; ++r) {
        AddPartial(partials + r * row_floats, head_dim, totals + r * row_floats);
      }
    }
    if (chunk + 1 < chunks.end) scratch.rows.ClearStates();
  }
  FinishDenseItem(tensors, item, totals);
}

}  // namespace longhaul::cpu
