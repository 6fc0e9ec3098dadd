// Dense prefill attention and decode.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_scratch.h"
#include "kernels/cpu/decode_tile.h"

namespace longhaul {

using cpu::DecodeItem;
using cpu::DenseItem;
using cpu::DenseTensors;
using cpu::kTileKeys;
using cpu::RowBlock;
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

  const DenseTensors tensors{.q = args.q,
                             .dual = args.dual,
                             .q_begin = args.q_begin,
                             .kv = args.kv,
                             .scale = args.scale,
                             .window = args.window,
                             .out = args.out,
                             .lse = args.lse};
  const int64_t n_groups = static_cast<int64_t>(groups.size());
  const int64_t most_tokens = cpu::DenseMostTokens(group);
  const bool few_items = CeilDiv(n_tokens, most_tokens) * n_groups < 4 * pool_->n_threads();
  const bool split = few_items && args.q_begin + n_tokens > cpu::kDenseChunkKeys;
  const int64_t block =
      split ? most_tokens : cpu::DenseBlockTokens(n_tokens, group, n_groups, pool_->n_threads());
  const int64_t n_blocks = CeilDiv(n_tokens, block);
  std::vector<DenseItem> items;
  items.reserve(n_blocks * n_groups);
  // The last rows see the most keys: start them first, so that no thread ends on a long one.
  for (int64_t i = n_blocks - 1; i >= 0; --i) {
    for (DenseItem item : groups) {
      item.row_begin = i * block;
      item.row_end = std::min((i + 1) * block, n_tokens);
      items.push_back(item);
    }
  }
  if (split) return RunDenseSplit(tensors, items);
  pool_->ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    RunDenseItem(tensors, items[i], scratch_->threads[thread]);
  });
}

void CpuAttention::RunDenseSplit(const DenseTensors& tensors, const std::vector<DenseItem>& items) {
  struct Chunk {
    int64_t item;
    int64_t chunk;     // of the keys
    float* partials;   // [rows of the item, PartialFloats]
    float* totals;     // partials of the item's first chunk
    int64_t n_chunks;  // of the item
  };
  const int64_t row_floats = cpu::PartialFloats(tensors.kv.head_dim);
  const int64_t n_items = static_cast<int64_t>(items.size());
  scratch_->EnsureCounters(n_items);
  std::vector<Chunk> chunks;
  int64_t n_floats = 0;
  for (int64_t i = 0; i < n_items; ++i) {
    const cpu::ChunkRange range = ChunksOf(tensors, items[i]);
    n_floats += (range.end - range.begin) * items[i].n_rows() * row_floats;
  }
  float* partials = scratch_->partials.Ensure(n_floats);
  for (int64_t i = 0; i < n_items; ++i) {
    const cpu::ChunkRange range = ChunksOf(tensors, items[i]);
    scratch_->chunks_left[i] = range.end - range.begin;
    float* const totals = partials;
    for (int64_t c = range.begin; c < range.end; ++c) {
      chunks.push_back({i, c, partials, totals, range.end - range.begin});
      partials += items[i].n_rows() * row_floats;
    }
  }
  pool_->ParallelFor(static_cast<int64_t>(chunks.size()), [&](int64_t i, int thread) {
    const Chunk& chunk = chunks[i];
    const DenseItem& item = items[chunk.item];
    RunDenseChunk(tensors, item, chunk.chunk, chunk.partials, scratch_->threads[thread]);
    if (scratch_->chunks_left[chunk.item].fetch_sub(1) > 1) return;
    for (int64_t c = 1; c < chunk.n_chunks; ++c) {
      for (int64_t r = 0; r < item.n_rows(); ++r) {
        cpu::AddPartial(chunk.totals + (c * item.n_rows() + r) * row_floats, tensors.kv.head_dim,
                        chunk.totals + r * row_floats);
      }
    }
    FinishDenseItem(tensors, item, chunk.totals);
  });
}

namespace {

// Keys of one decode work item: 16 pages are 0.5 to 1 MiB of keys and values, so that the cost of
// merging stays below 1 % and a single long sequence still feeds many threads.
constexpr int64_t kDecodeChunkKeys = 1024;

// First key that decode row b sees.
int64_t FirstDecodeKey(const AttendDecodeArgs& args, int64_t b) {
  return cpu::FirstVisibleKey(args.kvs[b].n_tokens - 1, args.window);
}

// partials: [G, PartialFloats], written.
void RunDecodeItem(const AttendDecodeArgs& args, const DecodeItem& item, float* partials,
                   ThreadScratch& scratch) {
  const KvView& kv = args.kvs[item.row];
  const int64_t group = args.q.dim(1) / kv.n_kv_heads;
  RowBlock& block = scratch.rows;
  const bool as_it_lies = cpu::DecodeTileTakes(kv.head_dim);
  block.Reset(group, kv.head_dim, as_it_lies ? cpu::TileWord::kF32 : cpu::TileWordOf(kv),
              args.dual.chunk_tokens, /*with_output=*/true);
  for (int64_t g = 0; g < group; ++g) {
    block.SetQuery(
        g, cpu::QueriesOf(args.q, args.dual, item.row, item.kv_head * group + g, kv.n_tokens - 1),
        args.scale);
  }
  for (int64_t begin = item.begin; begin < item.end; begin += kTileKeys) {
    const int64_t n_keys = std::min(kTileKeys, item.end - begin);
    const int64_t n_hidden = FirstDecodeKey(args, item.row) - begin;
    const uint64_t visible = cpu::LowBits(n_keys) & ~cpu::LowBits(n_hidden);
    if (as_it_lies) {
      block.SelectQueries(begin);
      const int64_t page = begin / kPageTokens;
      const bool last = begin + kTileKeys >= item.end;
      std::byte* keys = kv.Keys(page, item.kv_head);
      std::byte* values = kv.Values(page, item.kv_head);
      cpu::DecodeTile({.q = static_cast<const float*>(block.q(0)),
                       .n_rows = group,
                       .head_dim = kv.head_dim,
                       .dtype = kv.dtype,
                       .keys = keys,
                       .values = values,
                       .key_scales = kv.RowScales(keys),
                       .value_scales = kv.RowScales(values),
                       .n_keys = n_keys,
                       .visible = visible,
                       .next_keys = last ? nullptr : kv.Keys(page + 1, item.kv_head),
                       .states = block.states(0),
                       .o = block.o(0)});
      continue;
    }
    scratch.tile.LoadPage(kv, item.kv_head, begin, n_keys, /*with_values=*/true);
    std::fill_n(block.visible(), group, visible);
    AttendRows(scratch.tile, block, 0, group, visible != cpu::kAllKeys);
  }
  for (int64_t g = 0; g < group; ++g) {
    cpu::StorePartial(block, g, partials + g * cpu::PartialFloats(kv.head_dim));
  }
}

// The chunks of all kv heads of row b.
void AddDecodeItems(const AttendDecodeArgs& args, int64_t b, std::vector<DecodeItem>& items) {
  const int64_t first_key = FirstDecodeKey(args, b);
  const int64_t first_tile = first_key - first_key % kTileKeys;
  const int64_t n_keys = args.kvs[b].n_tokens;
  const int64_t n_chunks = CeilDiv(n_keys, kDecodeChunkKeys) - first_key / kDecodeChunkKeys;
  for (int64_t kv_head = 0; kv_head < args.kvs[b].n_kv_heads; ++kv_head) {
    const int64_t first_item = static_cast<int64_t>(items.size());
    // Chunks lie on an absolute grid: what is merged does not move with the window.
    for (int64_t begin = first_key - first_key % kDecodeChunkKeys; begin < n_keys;
         begin += kDecodeChunkKeys) {
      items.push_back({.row = b,
                       .kv_head = kv_head,
                       .begin = std::max(begin, first_tile),
                       .end = std::min(begin + kDecodeChunkKeys, n_keys),
                       .first_item = first_item,
                       .n_chunks = n_chunks});
    }
  }
}

}  // namespace

void CpuAttention::AttendDecode(const AttendDecodeArgs& args) {
  const int64_t n_rows = args.q.dim(0);
  const int64_t head_dim = args.q.dim(2);
  if (n_rows == 0) return;
  const int64_t n_kv_heads = args.kvs[0].n_kv_heads;
  const int64_t group = args.q.dim(1) / n_kv_heads;
  const int64_t item_floats = group * cpu::PartialFloats(head_dim);

  std::vector<DecodeItem>& items = scratch_->decode_items;
  items.clear();
  for (int64_t b = 0; b < n_rows; ++b) {
    LH_CHECK(args.kvs[b].n_tokens > 0 && args.kvs[b].head_dim == head_dim);
    AddDecodeItems(args, b, items);
  }
  const int64_t n_items = static_cast<int64_t>(items.size());
  float* partials = scratch_->partials.Ensure(n_items * item_floats);
  // Whoever computes the last chunk of a kv head merges all of them: a second loop over the heads
  // would cost as much as the attention of a short sequence.
  scratch_->EnsureCounters(n_rows * n_kv_heads);
  std::vector<std::atomic<int64_t>>& left = scratch_->chunks_left;
  for (const DecodeItem& item : items) left[item.row * n_kv_heads + item.kv_head] = item.n_chunks;
  pool_->ParallelFor(n_items, [&](int64_t i, int thread) {
    const DecodeItem& item = items[i];
    RunDecodeItem(args, item, partials + i * item_floats, scratch_->threads[thread]);
    if (left[item.row * n_kv_heads + item.kv_head].fetch_sub(1) > 1) return;
    float* first = partials + item.first_item * item_floats;
    for (int64_t g = 0; g < group; ++g) {
      float* total = first + g * cpu::PartialFloats(head_dim);
      for (int64_t c = 1; c < item.n_chunks; ++c) {
        cpu::AddPartial(total + c * item_floats, head_dim, total);
      }
      const int64_t head = item.kv_head * group + g;
      cpu::FinishPartial(total, head_dim,
                         args.out.Row<float>(item.row) + head * args.out.stride(1));
    }
  });
}

}  // namespace longhaul
