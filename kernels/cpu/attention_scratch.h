// Working memory of CPU attention and the pieces that its ops share: row masks, packed query rows
// and loaded key tiles. Internal to kernels/cpu. One ThreadScratch per pool thread; nothing here is
// shared between threads except `partials`, which is written at disjoint places.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/args.h"
#include "kernels/base/check.h"
#include "kernels/base/checked_math.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_tile.h"

namespace longhaul {
namespace cpu {

// Bits [0, n), n clipped to [0, 64].
constexpr uint64_t LowBits(int64_t n) {
  if (n <= 0) return 0;
  return n >= kTileKeys ? kAllKeys : (uint64_t{1} << n) - 1;
}

// 64-byte aligned floats that grow to a high-water mark. Growing loses the contents.
class FloatBuffer {
 public:
  float* Ensure(int64_t n) {
    if (n > n_) {
      const size_t n_bytes = static_cast<size_t>(RoundUp(n, kPadFloats)) * sizeof(float);
      data_.reset(static_cast<float*>(std::aligned_alloc(64, n_bytes)));
      LH_CHECK(data_ != nullptr);
      n_ = n;
    }
    return data_.get();
  }
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t n_ = 0;
};

// One query: packed as it is, or in the form that the keys in use ask for.
struct RowQueries {
  std::array<const float*, 3> forms{};  // [D] by distance of the chunks: 0, 1, 2 and more
  int64_t chunk = 0;                    // of the row
};
// Row t of head `head`, at token `position`.
RowQueries QueriesOf(const TensorView& q, const DualChunkQueries& dual, int64_t t, int64_t head,
                     int64_t position);

// Packed query rows of one work item with their softmax states and output accumulators.
class RowBlock {
 public:
  // Sizes for n_rows rows and resets their states; with_output = false leaves `o` away.
  // word: what queries are packed to, that of the tiles. chunk_tokens: of dual chunk attention, or
  // 0.
  void Reset(int64_t n_rows, int64_t head_dim, TileWord word, int64_t chunk_tokens,
             bool with_output);
  // Takes one query row, scaled so that exp2 of a score is exp of scale * q.k. Under dual chunk
  // attention it is copied by SelectQueries, and its forms must live until then.
  void SetQuery(int64_t row, const RowQueries& queries, float scale);
  // Before keys of the chunk that holds `key` are used. Packs the rows anew when the chunk is
  // another one, which is once for thousands of keys.
  void SelectQueries(int64_t key);
  // States and outputs as after Reset; the queries stay.
  void ClearStates();

  int64_t n_rows() const { return n_rows_; }
  int64_t head_dim() const { return head_dim_; }
  TileWord word() const { return word_; }
  const void* q(int64_t row) const { return q_.data() + row * WordsOf(word_, head_dim_); }
  float* o(int64_t row) { return o_.data() + row * PaddedDim(head_dim_); }
  RowStates states(int64_t row) {
    return {.max = max_.data() + row, .sum = sum_.data() + row * kPadFloats};
  }
  // Masks of all rows, for the caller to fill.
  uint64_t* visible() { return visible_.data(); }

 private:
  void Pack(int64_t row, const float* q);

  int64_t n_rows_ = 0;
  int64_t head_dim_ = 0;
  TileWord word_ = TileWord::kF32;
  bool with_output_ = false;
  int64_t chunk_tokens_ = 0;
  int64_t packed_chunk_ = -1;        // keys for which q_ is packed
  float factor_ = 0;                 // of a packed query
  std::vector<RowQueries> queries_;  // [n_rows] under dual chunk attention
  FloatBuffer q_;                    // [n_rows, WordsOf(D)] words
  FloatBuffer o_;                    // [n_rows, PaddedDim(D)]
  FloatBuffer max_;                  // [n_rows]
  FloatBuffer sum_;                  // [n_rows, 16]
  std::vector<uint64_t> visible_;    // [n_rows]
};

// A row's softmax state and output over some of its keys: [max, sum[16], o[PaddedDim(D)]]. Results
// over chunks of the keys are added in the order of the chunks, the same whether one thread walks
// all chunks or several take one each.
constexpr int64_t PartialFloats(int64_t head_dim) { return 1 + kPadFloats + PaddedDim(head_dim); }
void StorePartial(RowBlock& block, int64_t row, float* partial);
void AddPartial(const float* partial, int64_t head_dim, float* total);
// As FinishRow.
float FinishPartial(const float* total, int64_t head_dim, float* out);

// Of tiles of these keys.
inline TileWord TileWordOf(const KvView& kv) { return TileWordFor(kv.dtype, kv.head_dim); }

// The key tile in use, in words of TileWordOf(kv): keys transposed, values row-major.
class KeyTile {
 public:
  // Keys [begin, begin + n_keys) of one page; begin is a multiple of 64.
  void LoadPage(const KvView& kv, int64_t kv_head, int64_t begin, int64_t n_keys, bool with_values);
  // Single keys from anywhere in one chunk: the first n_keys <= 64 of n_left positions; the others
  // come next.
  void Gather(const KvView& kv, int64_t kv_head, const int32_t* positions, int64_t n_keys,
              int64_t n_left);

  int64_t first_key() const { return first_key_; }
  const void* kt() const { return kt_.data(); }
  const void* values() const { return values_; }
  int64_t n_keys() const { return n_keys_; }
  // What to fetch meanwhile: the following page, or the following single keys.
  TilePrefetch next() const { return {next_.data(), n_next_, row_bytes_}; }

 private:
  // Where the keys, or the values, of a tile lie.
  struct Rows {
    const void* at[kTileKeys];
    float factors[kTileKeys] = {};  // of kF8E4M3, see PackKeysArgs

    // Row c of the tile is row `slot` of `block`, the keys or values of a page.
    void Set(int64_t c, const KvView& kv, std::byte* block, int64_t slot) {
      at[c] = block + slot * kv.RowBytes();
      if (kv.dtype == DType::kF8E4M3) factors[c] = TileFactorF8(kv.RowScales(block)[slot]);
    }
  };
  void PackKeyRows(const KvView& kv, Rows& keys);
  void PackValueRows(const KvView& kv, Rows& values);
  // The type of the rows, which now are bf16 where they were fp8 and pairs are packed from them.
  DType WidenForPairs(const KvView& kv, Rows& rows);

  FloatBuffer kt_;                // [WordsOf(D), 64] words
  FloatBuffer v_;                 // [WordsOf(64), PaddedDim(D)] words
  FloatBuffer bf16_;              // [64, D] of bf16, rows of fp8 on their way to pairs
  const void* values_ = nullptr;  // v_, or straight into an f32 page
  int64_t first_key_ = 0;
  int64_t n_keys_ = 0;
  std::array<const void*, 2 * kTileKeys> next_;  // rows of keys and of values
  int64_t n_next_ = 0;
  int64_t row_bytes_ = 0;
};

// Adds the tile to rows [begin, end) of the block. masked: block.visible()[begin, end) is filled.
void AttendRows(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked);
// The same for the log-sum-exp alone.
void LseRows(const KeyTile& tile, RowBlock& block, int64_t begin, int64_t end, bool masked);

// First key that a row at `position` sees through a sliding window; 0 = no window.
constexpr int64_t FirstVisibleKey(int64_t position, int64_t window) {
  return window == 0 || window > position ? 0 : position - window + 1;
}

// log2 of the sum of 2^x[i * stride], in index order; -inf for all -inf.
float MergeLse2(const float* x, int64_t n, int64_t stride);

struct ThreadScratch {
  RowBlock rows;
  RowBlock local_rows;
  KeyTile tile;
  FloatBuffer totals;  // RunDenseItem: [rows, PartialFloats], twice
  // SampleMass.
  FloatBuffer lse2;                  // [G * n_rows] of one kv head's block
  FloatBuffer bands;                 // [G, bands of a chunk + 1, 16]
  std::vector<uint64_t> band_split;  // [n_rows] see MassTileArgs
  std::vector<int32_t> band;         // [n_rows]
  // AttendSparse: the stripe keys of one head that a row block may see.
  std::vector<int32_t> stripe_keys;
};

// Shared by AttendDense and the dense heads of AttendSparse: rows [row_begin, row_end) of the query
// heads in `heads`, which all read kv_head. lse may be empty.
struct DenseItem {
  int64_t kv_head = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  const int32_t* heads = nullptr;  // [n_heads]
  int64_t n_heads = 0;

  // Row r of the item: token row_begin + r / n_heads, head heads[r % n_heads].
  int64_t n_rows() const { return (row_end - row_begin) * n_heads; }
};
struct DenseTensors {
  TensorView q;  // [T, H, D]
  DualChunkQueries dual;
  int64_t q_begin = 0;
  KvView kv;
  float scale = 0;
  int64_t window = 0;  // 0 = all keys
  TensorView out;      // [T, H, D]
  TensorView lse;      // [T, H] or empty
};
// Keys are walked in chunks on this grid, so that few rows with many keys can be shared by threads.
inline constexpr int64_t kDenseChunkKeys = 16384;
// Chunks [begin, end) that some row of the item sees.
struct ChunkRange {
  int64_t begin = 0;
  int64_t end = 0;
};
ChunkRange ChunksOf(const DenseTensors& tensors, const DenseItem& item);
// One chunk of the keys: results into partials [rows of the item, PartialFloats].
void RunDenseChunk(const DenseTensors& tensors, const DenseItem& item, int64_t chunk,
                   float* partials, ThreadScratch& scratch);
// Writes the rows of the item from their totals [rows of the item, PartialFloats].
void FinishDenseItem(const DenseTensors& tensors, const DenseItem& item, const float* totals);
// All chunks and the end.
void RunDenseItem(const DenseTensors& tensors, const DenseItem& item, ThreadScratch& scratch);
// Query tokens of a dense item at most.
int64_t DenseMostTokens(int64_t n_heads_per_item);
// Query tokens of a dense item, so that its rows fill the caches and every thread has work.
int64_t DenseBlockTokens(int64_t n_tokens, int64_t n_heads_per_item, int64_t n_kv_heads,
                         int n_threads);

// Decode: one chunk of the keys of one kv head of one row.
struct DecodeItem {
  int64_t row = 0;  // sequence of the batch
  int64_t kv_head = 0;
  int64_t begin = 0;  // keys [begin, end), less those below the window in the first tile
  int64_t end = 0;
  int64_t first_item = 0;  // the chunks of this kv head are items [first_item, + n_chunks)
  int64_t n_chunks = 0;
};

}  // namespace cpu

struct CpuAttention::Scratch {
  explicit Scratch(int n_threads) : threads(n_threads) {}

  // chunks_left of at least n counters.
  void EnsureCounters(int64_t n) {
    if (static_cast<int64_t>(chunks_left.size()) < n) {
      chunks_left = std::vector<std::atomic<int64_t>>(n);
    }
  }

  std::vector<cpu::ThreadScratch> threads;
  cpu::FloatBuffer partials;  // per (work item, row), merged in a fixed order
  std::vector<cpu::DecodeItem> decode_items;
  std::vector<std::atomic<int64_t>> chunks_left;  // per result that is merged from chunks
  cpu::FloatBuffer band_partials;                 // SampleMass: per (head, key chunk, band)
};

}  // namespace longhaul
