// Dense prefill attention and decode.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_scratch.h"

namespace longhaul {

using cpu::DenseItem;
using cpu::FinishRow;
using cpu::kPadFloats;
using cpu::kTileKeys;
using cpu::PaddedDim;
using cpu::RowBlock;
using cpu::RowStates;
using cpu::ThreadScratch;

CpuAttention::CpuAttention(ThreadPool* pool)
    : pool_(pool), scratch_(std::make_unique<Scratch>(pool->n_threads())) {}
CpuAttention::~CpuAttention() = default;

void CpuAttention::AttendDense(const AttendDenseArgs& args) {
  const int64_t n_tokens = args.q.dim(0);
  const int64_t n_heads = args.q.dim(1);
  const int64_t n_kv_heads = args.kv.n_kv_heads;
  const int64_t group = n_heads / n_kv_heads;
  if (n_tokens == 0) return;
  LH_CHECK(group * n_kv_heads == n_heads && args.q.dim(2) == args.kv.head_dim);
  LH_CHECK(args.q_begin >= 0 && args.q_begin + n_tokens <= args.kv.n_tokens);

  std::vector<int32_t> heads;
  std::vector<DenseItem> groups;  // one per kv head that has any wanted query head
  heads.reserve(n_heads);
  for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
    const int64_t begin = static_cast<int64_t>(heads.size());
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      if (args.head_mask == nullptr || args.head_mask[h] != 0) {
        heads.push_back(static_cast<int32_t>(h));
      }
    }
    const int64_t n = static_cast<int64_t>(heads.size()) - begin;
    if (n > 0) groups.push_back({.kv_head = kv_head, .heads = heads.data() + begin, .n_heads = n});
  }
  if (groups.empty()) return;

  const cpu::DenseTensors tensors{.q = args.q,
                                  .q_begin = args.q_begin,
                                  .kv = args.kv,
                                  .scale = args.scale,
                                  .window = args.window,
                                  .out = args.out,
                                  .lse = args.lse};
  const int64_t n_groups = static_cast<int64_t>(groups.size());
  const int64_t block = cpu::DenseBlockTokens(n_tokens, group, n_groups, pool_->n_threads());
  const int64_t n_blocks = CeilDiv(n_tokens, block);
  pool_->ParallelFor(n_blocks * n_groups, [&](int64_t index, int thread) {
    // The last rows see the most keys: start them first, so that no thread ends on a long one.
    const int64_t row_begin = (n_blocks - 1 - index / n_groups) * block;
    DenseItem item = groups[index % n_groups];
    item.row_begin = row_begin;
    item.row_end = std::min(row_begin + block, n_tokens);
    RunDenseItem(tensors, item, scratch_->threads[thread]);
  });
}

namespace {

// Keys of one decode work item: 16 pages are 0.5 to 1 MiB of keys and values, so that the cost of
// merging stays below 1 % and a single long sequence still feeds many threads.
constexpr int64_t kDecodeChunkKeys = 1024;

// One item's result for one query head: [max, sum[16], o[PaddedDim(D)]].
int64_t DecodePartialFloats(int64_t head_dim) { return 1 + kPadFloats + PaddedDim(head_dim); }

struct DecodeItem {
  int64_t row;  // sequence of the batch
  int64_t kv_head;
  int64_t begin;  // keys [begin, end), less those below the window in the first tile
  int64_t end;
  float* partials;  // [G, DecodePartialFloats]
};

// First key that decode row b sees.
int64_t FirstDecodeKey(const AttendDecodeArgs& args, int64_t b) {
  return cpu::FirstVisibleKey(args.kvs[b].n_tokens - 1, args.window);
}

void RunDecodeItem(const AttendDecodeArgs& args, const DecodeItem& item, ThreadScratch& scratch) {
  const KvView& kv = args.kvs[item.row];
  const int64_t group = args.q.dim(1) / kv.n_kv_heads;
  RowBlock& block = scratch.rows;
  block.Reset(group, kv.head_dim, /*with_output=*/true);
  for (int64_t g = 0; g < group; ++g) {
    block.SetQuery(g, args.q.Row<float>(item.row) + (item.kv_head * group + g) * args.q.stride(1),
                   args.scale);
  }
  for (int64_t begin = item.begin; begin < item.end; begin += kTileKeys) {
    const int64_t n_keys = std::min(kTileKeys, item.end - begin);
    scratch.tile.LoadPage(kv, item.kv_head, begin, n_keys, /*with_values=*/true);
    const int64_t n_hidden = FirstDecodeKey(args, item.row) - begin;
    const bool masked = n_keys < kTileKeys || n_hidden > 0;
    if (masked) {
      std::fill_n(block.visible(), group, cpu::LowBits(n_keys) & ~cpu::LowBits(n_hidden));
    }
    AttendRows(scratch.tile, block, 0, group, masked);
  }
  for (int64_t g = 0; g < group; ++g) {
    float* partial = item.partials + g * DecodePartialFloats(kv.head_dim);
    const RowStates state = block.states(g);
    partial[0] = *state.max;
    std::copy_n(state.sum, kPadFloats, partial + 1);
    std::copy_n(block.o(g), PaddedDim(kv.head_dim), partial + 1 + kPadFloats);
  }
}

// Merges partials[0], partials[stride], ... into the first one, in that order, and writes the row.
void MergeDecode(float* partials, int64_t n, int64_t stride, int64_t head_dim, float* out) {
  const int64_t n_sums = kPadFloats + PaddedDim(head_dim);  // both halves scale alike
  float max = cpu::kNoScore;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, partials[i * stride]);
  for (int64_t i = 0; i < n; ++i) {
    const float* from = partials + i * stride;
    const float factor = std::exp2(from[0] - max);
    for (int64_t k = 1; k <= n_sums; ++k) {
      partials[k] = (i == 0 ? 0.0f : partials[k]) + factor * from[k];
    }
  }
  FinishRow(max, partials + 1, partials + 1 + kPadFloats, head_dim, out);
}

}  // namespace

void CpuAttention::AttendDecode(const AttendDecodeArgs& args) {
  const int64_t n_rows = args.q.dim(0);
  const int64_t n_heads = args.q.dim(1);
  const int64_t head_dim = args.q.dim(2);
  if (n_rows == 0) return;
  const int64_t n_kv_heads = args.kvs[0].n_kv_heads;
  const int64_t group = n_heads / n_kv_heads;
  const int64_t partial_floats = DecodePartialFloats(head_dim);

  std::vector<DecodeItem> items;
  std::vector<int64_t> first_item(n_rows);  // of the row; items of a kv head are adjacent
  for (int64_t b = 0; b < n_rows; ++b) {
    first_item[b] = static_cast<int64_t>(items.size());
    LH_CHECK(args.kvs[b].n_tokens > 0 && args.kvs[b].head_dim == head_dim);
    const int64_t first_key = FirstDecodeKey(args, b);
    const int64_t first_tile = first_key - first_key % kTileKeys;
    for (int64_t kv_head = 0; kv_head < n_kv_heads; ++kv_head) {
      // Chunks lie on an absolute grid: what is merged does not move with the window.
      for (int64_t begin = first_key - first_key % kDecodeChunkKeys; begin < args.kvs[b].n_tokens;
           begin += kDecodeChunkKeys) {
        items.push_back({.row = b,
                         .kv_head = kv_head,
                         .begin = std::max(begin, first_tile),
                         .end = std::min(begin + kDecodeChunkKeys, args.kvs[b].n_tokens),
                         .partials = nullptr});
      }
    }
  }
  const int64_t n_items = static_cast<int64_t>(items.size());
  float* partials = scratch_->partials.Ensure(n_items * group * partial_floats);
  for (int64_t i = 0; i < n_items; ++i) items[i].partials = partials + i * group * partial_floats;
  pool_->ParallelFor(n_items, [&](int64_t i, int thread) {
    RunDecodeItem(args, items[i], scratch_->threads[thread]);
  });
  pool_->ParallelFor(n_rows * n_heads, [&](int64_t i, int) {
    const int64_t b = i / n_heads;
    const int64_t head = i % n_heads;
    const int64_t n_chunks = CeilDiv(args.kvs[b].n_tokens, kDecodeChunkKeys) -
                             FirstDecodeKey(args, b) / kDecodeChunkKeys;
    const DecodeItem& first = items[first_item[b] + head / group * n_chunks];
    MergeDecode(first.partials + head % group * partial_floats, n_chunks, group * partial_floats,
                head_dim, args.out.Row<float>(b) + head * args.out.stride(1));
  });
}

}  // namespace longhaul
