// The two passes over the sampled rows: log-sum-exp, then softmax mass per key and diagonal band.
//
// A work item is (kv head, kSampleChunkKeys keys): one transposed key tile serves the sampled rows
// of all query heads of the group. Chunks lie on an absolute grid and their partial results are
// merged in chunk order, so the number of threads does not change a bit.

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_scratch.h"

namespace longhaul {
namespace {

using cpu::kAllKeys;
using cpu::KeyTile;
using cpu::kTileKeys;
using cpu::LowBits;
using cpu::RowBlock;
using cpu::RowStates;
using cpu::ThreadScratch;

constexpr int64_t kSampleChunkKeys = 64 * kTileKeys;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945f;

// A sampled row: its number in args.rows, and its token position. Sorted by position, so that the
// rows that see a tile are a suffix.
struct SampledRow {
  int64_t index;
  int64_t position;
};

std::vector<SampledRow> SortedRows(const int32_t* rows, int64_t n_rows, int64_t q_begin) {
  std::vector<SampledRow> sorted(n_rows);
  for (int64_t r = 0; r < n_rows; ++r) sorted[r] = {.index = r, .position = q_begin + rows[r]};
  std::stable_sort(sorted.begin(), sorted.end(), [](const SampledRow& a, const SampledRow& b) {
    return a.position < b.position;
  });
  return sorted;
}

// First row with position >= limit.
int64_t FirstRowAt(const std::vector<SampledRow>& rows, int64_t limit) {
  return std::lower_bound(rows.begin(), rows.end(), limit,
                          [](const SampledRow& row, int64_t x) { return row.position < x; }) -
         rows.begin();
}

// Keys of the tile at `begin` that are local to a row at `position`.
uint64_t LocalKeys(const LocalPattern& local, int64_t position, int64_t begin) {
  const uint64_t causal = LowBits(position - begin + 1);
  const uint64_t before_window = LowBits(position - local.window + 1 - begin);
  return causal & (LowBits(local.sink - begin) | ~before_window);
}

// Keys of the tile that count in pass 2.
uint64_t MassKeys(const SampleMassArgs& args, int64_t position, int64_t begin) {
  const uint64_t causal = LowBits(position - begin + 1);
  return args.scope == MassScope::kAll ? causal : causal & ~LocalKeys(args.local, position, begin);
}

// ---- Pass 1 ----

// Rows of the block: sampled row r of query head g is row r * G + g.
struct LseItem {
  int64_t kv_head;
  int64_t begin;  // keys [begin, end)
  int64_t end;
  float* full_lse2;  // [n_rows * G] base 2, written
  float* local_lse2;
};

// Adds one tile to the states of the rows that have any local key in it.
void AddLocalTile(const SampleLseArgs& args, const std::vector<SampledRow>& rows, int64_t group,
                  int64_t begin, const KeyTile& tile, RowBlock& block) {
  const int64_t n_rows = static_cast<int64_t>(rows.size());
  const int64_t first = FirstRowAt(rows, begin);
  const int64_t last = begin < args.local.sink
                           ? n_rows
                           : FirstRowAt(rows, begin + kTileKeys - 1 + args.local.window);
  for (int64_t r = first; r < last; ++r) {
    const uint64_t visible = LocalKeys(args.local, rows[r].position, begin);
    std::fill_n(block.visible() + r * group, group, visible);
  }
  LseRows(tile, block, first * group, last * group, /*masked=*/true);
}

void RunLseItem(const SampleLseArgs& args, const std::vector<SampledRow>& rows, int64_t group,
                const LseItem& item, ThreadScratch& scratch) {
  const int64_t n_rows = static_cast<int64_t>(rows.size());
  RowBlock& full = scratch.rows;
  RowBlock& local = scratch.local_rows;
  for (RowBlock* block : {&full, &local}) {
    block->Reset(n_rows * group, args.kv.head_dim, cpu::TileWordOf(args.kv), args.dual.chunk_tokens,
                 /*with_output=*/false);
    for (int64_t r = 0; r < n_rows * group; ++r) {
      const SampledRow& row = rows[r / group];
      block->SetQuery(r,
                      cpu::QueriesOf(args.q, args.dual, args.rows[row.index],
                                     item.kv_head * group + r % group, row.position),
                      args.scale);
    }
  }
  for (int64_t begin = item.begin; begin < item.end; begin += kTileKeys) {
    const int64_t first = FirstRowAt(rows, begin);
    if (first == n_rows) break;
    scratch.tile.LoadPage(args.kv, item.kv_head, begin, std::min(kTileKeys, item.end - begin),
                          /*with_values=*/false);
    const bool masked = rows[first].position < begin + kTileKeys - 1;
    if (masked) {
      for (int64_t r = first; r < n_rows; ++r) {
        std::fill_n(full.visible() + r * group, group, LowBits(rows[r].position - begin + 1));
      }
    }
    LseRows(scratch.tile, full, first * group, n_rows * group, masked);
    AddLocalTile(args, rows, group, begin, scratch.tile, local);
  }
  for (int64_t r = 0; r < n_rows * group; ++r) {
    const RowStates f = full.states(r);
    const RowStates l = local.states(r);
    item.full_lse2[r] = cpu::Lse2(*f.max, f.sum);
    item.local_lse2[r] = cpu::Lse2(*l.max, l.sum);
  }
}

// ---- Pass 2 ----

// Rows of the block: row r of query head g is row g * n_rows + r, so that a head's rows are
// adjacent and its column sums stay in registers.
struct MassItem {
  int64_t kv_head;
  int64_t begin;  // keys [begin, end)
  int64_t end;
  int64_t first_band;    // number of the first partial band
  float* band_partials;  // [G, n_partial_bands], written; null = no bands
};

struct MassCall {
  const SampleMassArgs& args;
  std::vector<SampledRow> rows;
  int64_t group;            // query heads per kv head
  int64_t n_partial_bands;  // bands that one chunk of keys can touch
};

// What one tile needs to know about the rows [first, n_rows) that count any of its keys; the same
// for every query head of the group.
struct MassTileRows {
  int64_t begin = 0;  // first key
  int64_t first = 0;
  bool masked = false;
};

MassTileRows PrepareMassTile(const MassCall& call, const MassItem& item, int64_t begin,
                             int64_t first, ThreadScratch& scratch) {
  const SampleMassArgs& args = call.args;
  const int64_t n_rows = static_cast<int64_t>(call.rows.size());
  MassTileRows tile{.begin = begin, .first = first, .masked = false};
  if (item.band_partials != nullptr) {
    for (int64_t r = first; r < n_rows; ++r) {
      const int64_t band = (call.rows[r].position - begin) / kBandWidth;
      scratch.band[r] = static_cast<int32_t>(band - item.first_band);
    }
  }
  // Rows ascend: when the first one sees the whole tile as remote, all do.
  tile.masked = MassKeys(args, call.rows[first].position, begin) != kAllKeys;
  if (!tile.masked) return tile;
  for (int64_t r = first; r < n_rows; ++r) {
    const uint64_t visible = MassKeys(args, call.rows[r].position, begin);
    for (int64_t g = 0; g < call.group; ++g) scratch.rows.visible()[g * n_rows + r] = visible;
  }
  return tile;
}

void AddMassTile(const MassCall& call, const MassItem& item, const MassTileRows& tile,
                 int64_t head_in_group, ThreadScratch& scratch) {
  const SampleMassArgs& args = call.args;
  const int64_t n_rows = static_cast<int64_t>(call.rows.size());
  const int64_t block_begin = head_in_group * n_rows + tile.first;
  RowBlock& block = scratch.rows;
  alignas(64) float sum[kTileKeys];
  alignas(64) float max[kTileKeys];
  cpu::MassTileArgs mass{.in = {.word = block.word(),
                                .q = block.q(block_begin),
                                .n_rows = n_rows - tile.first,
                                .head_dim = block.head_dim(),
                                .kt = scratch.tile.kt(),
                                .visible = tile.masked ? block.visible() + block_begin : nullptr,
                                .next = scratch.tile.next()},
                         .lse2 = scratch.lse2.data() + block_begin,
                         .mass_sum = sum,
                         .mass_max = max,
                         .band_split = nullptr,
                         .band = nullptr,
                         .bands = nullptr};
  if (item.band_partials != nullptr) {
    mass.band_split = scratch.band_split.data() + tile.first;
    mass.band = scratch.band.data() + tile.first;
    mass.bands =
        scratch.bands.data() + head_in_group * (call.n_partial_bands + 1) * cpu::kPadFloats;
  }
  cpu::MassTile(mass);
  const int64_t out_row = (item.kv_head - args.kv_head_begin) * call.group + head_in_group;
  const int64_t n_keys = std::min(kTileKeys, item.end - tile.begin);
  std::copy_n(sum, n_keys, args.mass_sum.Row<float>(out_row) + tile.begin);
  std::copy_n(max, n_keys, args.mass_max.Row<float>(out_row) + tile.begin);
}

// Sums the lanes of each band. Slot 0 of a head holds what lies before the chunk's first band,
// which is nothing: no row is that close to these keys.
void StoreBandPartials(const MassCall& call, const MassItem& item, const ThreadScratch& scratch) {
  for (int64_t g = 0; g < call.group; ++g) {
    const float* slots = scratch.bands.data() + g * (call.n_partial_bands + 1) * cpu::kPadFloats;
    for (int64_t b = 0; b < call.n_partial_bands; ++b) {
      const float* lanes = slots + (b + 1) * cpu::kPadFloats;
      float sum = 0;
      for (int64_t i = 0; i < cpu::kPadFloats; ++i) sum += lanes[i];
      item.band_partials[g * call.n_partial_bands + b] = sum;
    }
  }
}

void LoadMassRows(const MassCall& call, const MassItem& item, ThreadScratch& scratch) {
  const SampleMassArgs& args = call.args;
  const int64_t n_rows = static_cast<int64_t>(call.rows.size());
  scratch.rows.Reset(n_rows * call.group, args.kv.head_dim, cpu::TileWordOf(args.kv),
                     args.dual.chunk_tokens, /*with_output=*/false);
  float* lse2 = scratch.lse2.Ensure(n_rows * call.group);
  for (int64_t g = 0; g < call.group; ++g) {
    const int64_t head = item.kv_head * call.group + g;
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t index = call.rows[r].index;
      scratch.rows.SetQuery(
          g * n_rows + r,
          cpu::QueriesOf(args.q, args.dual, args.rows[index], head, call.rows[r].position),
          args.scale);
      lse2[g * n_rows + r] = args.lse_full.Row<float>(head)[index] * kLog2E;
    }
  }
  if (item.band_partials == nullptr) return;
  static_assert(kBandWidth == kTileKeys, "a row crosses one band border in a tile");
  const int64_t n_slots = call.group * (call.n_partial_bands + 1) * cpu::kPadFloats;
  std::fill_n(scratch.bands.Ensure(n_slots), n_slots, 0.0f);
  if (static_cast<int64_t>(scratch.band.size()) < n_rows) {
    scratch.band.resize(n_rows);
    scratch.band_split.resize(n_rows);
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    scratch.band_split[r] = LowBits(call.rows[r].position % kBandWidth + 1);
  }
}

bool Skipped(const SampleMassArgs& args, int64_t head) {
  return args.choice != nullptr && args.choice[head] == kChosen;
}

void RunMassItem(const MassCall& call, const MassItem& item, ThreadScratch& scratch) {
  const SampleMassArgs& args = call.args;
  const int64_t n_rows = static_cast<int64_t>(call.rows.size());
  bool any = false;
  for (int64_t g = 0; g < call.group; ++g) any |= !Skipped(args, item.kv_head * call.group + g);
  if (!any) return;
  LoadMassRows(call, item, scratch);
  // Nearest row that counts key j: itself, or the end of the window.
  const int64_t reach = args.scope == MassScope::kAll ? 0 : args.local.window;
  for (int64_t begin = item.begin; begin < item.end; begin += kTileKeys) {
    const int64_t n_keys = std::min(kTileKeys, item.end - begin);
    const int64_t first = FirstRowAt(call.rows, begin + reach);
    MassTileRows tile;
    if (first < n_rows) {
      scratch.tile.LoadPage(args.kv, item.kv_head, begin, n_keys, /*with_values=*/false);
      scratch.rows.SelectQueries(begin);
      tile = PrepareMassTile(call, item, begin, first, scratch);
    }
    for (int64_t g = 0; g < call.group; ++g) {
      if (Skipped(args, item.kv_head * call.group + g)) continue;
      if (first < n_rows) {
        AddMassTile(call, item, tile, g, scratch);
        continue;
      }
      const int64_t out_row = (item.kv_head - args.kv_head_begin) * call.group + g;
      std::fill_n(args.mass_sum.Row<float>(out_row) + begin, n_keys, 0.0f);
      std::fill_n(args.mass_max.Row<float>(out_row) + begin, n_keys, 0.0f);
    }
  }
  if (item.band_partials != nullptr) StoreBandPartials(call, item, scratch);
}

// Adds the partial bands of one head over its chunks, in chunk order.
void MergeBands(const MassCall& call, const std::vector<MassItem>& items, int64_t out_row) {
  const SampleMassArgs& args = call.args;
  const int64_t kv_head = args.kv_head_begin + out_row / call.group;
  if (Skipped(args, kv_head * call.group + out_row % call.group)) return;
  float* bands = args.band_mass.Row<float>(out_row);
  const int64_t n_bands = args.band_mass.dim(1);
  std::fill_n(bands, n_bands, 0.0f);
  for (const MassItem& item : items) {
    if (item.kv_head != kv_head) continue;
    const float* partial = item.band_partials + out_row % call.group * call.n_partial_bands;
    const int64_t end = std::min(item.first_band + call.n_partial_bands, n_bands);
    for (int64_t b = item.first_band; b < end; ++b) bands[b] += partial[b - item.first_band];
  }
}

}  // namespace

void CpuAttention::SampleLse(const SampleLseArgs& args) {
  if (args.n_rows == 0) return;
  const int64_t n_kv_heads = args.kv.n_kv_heads;
  const int64_t group = args.q.dim(1) / n_kv_heads;
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  LH_CHECK(n_keys <= args.kv.n_tokens);
  const std::vector<SampledRow> rows = SortedRows(args.rows, args.n_rows, args.q_begin);
  const int64_t n_chunks = CeilDiv(n_keys, kSampleChunkKeys);
  const int64_t n_item_rows = args.n_rows * group;
  // [kv_head, chunk, full | local, row]
  float* partials = scratch_->partials.Ensure(n_kv_heads * n_chunks * 2 * n_item_rows);
  pool_->ParallelFor(n_kv_heads * n_chunks, [&](int64_t i, int thread) {
    const int64_t begin = i % n_chunks * kSampleChunkKeys;
    RunLseItem(args, rows, group,
               {.kv_head = i / n_chunks,
                .begin = begin,
                .end = std::min(begin + kSampleChunkKeys, n_keys),
                .full_lse2 = partials + i * 2 * n_item_rows,
                .local_lse2 = partials + (i * 2 + 1) * n_item_rows},
               scratch_->threads[thread]);
  });
  pool_->ParallelFor(args.q.dim(1), [&](int64_t head, int) {
    for (int64_t r = 0; r < args.n_rows; ++r) {
      const int64_t stride = 2 * n_item_rows;
      const float* full = partials + head / group * n_chunks * stride + r * group + head % group;
      args.lse_full.Row<float>(head)[rows[r].index] = cpu::MergeLse2(full, n_chunks, stride) * kLn2;
      args.lse_local.Row<float>(head)[rows[r].index] =
          cpu::MergeLse2(full + n_item_rows, n_chunks, stride) * kLn2;
    }
  });
}

void CpuAttention::SampleMass(const SampleMassArgs& args) {
  if (args.n_voting == 0 || args.kv_head_begin >= args.kv_head_end) return;
  const int64_t group = args.q.dim(1) / args.kv.n_kv_heads;
  const int64_t n_keys = args.q_begin + args.q.dim(0);
  LH_CHECK(n_keys <= args.kv.n_tokens);
  MassCall call{.args = args,
                .rows = SortedRows(args.rows, args.n_voting, args.q_begin),
                .group = group,
                .n_partial_bands = 0};
  const int64_t lowest = call.rows.front().position;
  const int64_t highest = call.rows.back().position;
  call.n_partial_bands = (kSampleChunkKeys + highest - lowest) / kBandWidth + 2;

  const bool with_bands = !args.band_mass.empty();
  const int64_t n_kv_heads = args.kv_head_end - args.kv_head_begin;
  const int64_t n_chunks = CeilDiv(n_keys, kSampleChunkKeys);
  const int64_t n_partials = with_bands ? group * call.n_partial_bands : 0;
  float* partials = scratch_->band_partials.Ensure(n_kv_heads * n_chunks * n_partials);
  std::vector<MassItem> items;
  items.reserve(n_kv_heads * n_chunks);
  for (int64_t kv_head = args.kv_head_begin; kv_head < args.kv_head_end; ++kv_head) {
    for (int64_t begin = 0; begin < n_keys; begin += kSampleChunkKeys) {
      const int64_t end = std::min(begin + kSampleChunkKeys, n_keys);
      items.push_back({.kv_head = kv_head,
                       .begin = begin,
                       .end = end,
                       .first_band = std::max<int64_t>(0, lowest - end + 1) / kBandWidth,
                       .band_partials = with_bands ? partials : nullptr});
      partials += n_partials;
    }
  }
  pool_->ParallelFor(static_cast<int64_t>(items.size()), [&](int64_t i, int thread) {
    RunMassItem(call, items[i], scratch_->threads[thread]);
  });
  if (!with_bands) return;
  pool_->ParallelFor(n_kv_heads * group,
                     [&](int64_t out_row, int) { MergeBands(call, items, out_row); });
}

}  // namespace longhaul
