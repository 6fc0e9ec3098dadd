// The columns of a head are cut into chunks, one per block. The cut among their ranks is found
// digit by digit: all blocks count, the last one of the head looks where the budget is met.
//
//   Bands      heads that are dense; else their bands, which are few            per head
//   Histogram  the next digit of the cut among the columns (three times)        per chunk
//   Count      what is listed of each chunk; the last block places the chunks   per chunk
//   Write      the columns, and the pairs that they add                         per chunk
#include "kernels/cuda/select_budget.h"

#include <limits>

#include "kernels/base/checked_math.h"
#include "kernels/cuda/bands.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rank_cut.cuh"
#include "kernels/cuda/scratch_carver.h"
#include "kernels/select_budget.h"

namespace longhaul::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 8;  // of a thread, adjacent
constexpr int64_t kChunk = kThreads * kItems;
constexpr int32_t kOutside = -1;  // rank of an item beyond the range
constexpr int32_t kTakeNone = std::numeric_limits<int32_t>::max();
using Scan = BlockScan<kThreads>;
using Digits = RankDigits<kThreads>;

// What is taken of a range: every rank above `rank`, and the first `n_equal` of those equal to it.
struct Cut {
  int32_t rank;  // while it is searched: its leading digits
  int32_t n_equal;
};

struct HeadColumns {
  Cut cut;
  int32_t searching;  // 0: the cut is known
  int32_t open;       // 0: the plan entry is final
};

// Of one chunk. Listed are the columns that some row does not see anyway; they come first.
struct ChunkCount {
  int32_t above_listed;
  int32_t equal;
  int32_t equal_listed;
};

struct ChunkPlace {
  int32_t entries_before;
  int32_t n_equal;  // still wanted of those equal to the cut
};

struct BudgetParams {
  EpochRows rows;
  int64_t head_begin = 0;
  int64_t first_column = 0;  // of all heads
  int64_t n_chunks = 0;
  int shift = 0;  // of the digit that HistogramKernel counts
  SparsePlan plan;
  Global<const HeadBudget> budgets;  // [H]
  Global<const uint8_t> choice;      // [H] or null
  Global<const float> mass_sum;      // [heads, N]
  Global<const float> band_mass;     // [heads, ceil(N / 64)]
  int64_t mass_sum_stride = 0;
  int64_t band_mass_stride = 0;
  Global<HeadColumns> columns;  // [heads]
  Global<uint32_t> histogram;   // [heads, kRankDigits]
  Global<uint32_t> n_done;      // [heads] blocks that are done
  Global<ChunkCount> counts;    // [heads, n_chunks]
  Global<ChunkPlace> places;    // [heads, n_chunks]
};

struct Ranks {
  int32_t rank[kItems];
  int64_t first;
};

// Ranks of the items [first, first + kItems) of `mass`, as far as they lie before `end`.
LH_DEVICE Ranks LoadRanks(Global<const float> mass, int64_t first, int64_t end, bool by_place) {
  Ranks items;
  items.first = first;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    items.rank[i] = kOutside;
    if (first + i >= end) continue;
    items.rank[i] = by_place ? 0 : static_cast<int32_t>(MassRank(mass[first + i]));
  }
  return items;
}

LH_DEVICE Ranks LoadColumns(const BudgetParams& p, int64_t head, int64_t chunk) {
  const HeadBudget budget = p.budgets[p.head_begin + head];
  return LoadRanks(p.mass_sum + head * p.mass_sum_stride,
                   p.first_column + chunk * kChunk + ThreadId() * kItems, p.rows.q_end,
                   budget.by_place != 0);
}

// Counts the digit at `shift` of the ranks that begin as `found`.
LH_DEVICE void CountDigits(const Ranks& items, int64_t found, int shift,
                           Shared<uint32_t> n_of_digit) {
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    const int64_t rank = items.rank[i];
    if (rank == kOutside || rank >> (shift + kRankDigitBits) != found) continue;
    AtomicAdd(n_of_digit + static_cast<int>((rank >> shift) % kRankDigits), 1u);
  }
}

// What this thread takes of its items: bit i of the result is item i. n_equal_before: of the items
// before this chunk; the equal ones of this chunk are added to it.
LH_DEVICE uint32_t TakenItems(const Ranks& items, const Cut& cut, int64_t& n_equal_before,
                              Scan& scan) {
  int64_t n_equal = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) n_equal += items.rank[i] == cut.rank ? 1 : 0;
  int64_t total = 0;
  int64_t before = n_equal_before + scan.Exclusive(n_equal, total);
  n_equal_before += total;
  uint32_t taken = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    bool take = items.rank[i] > cut.rank;
    if (items.rank[i] == cut.rank) take = before++ < cut.n_equal;
    if (take) taken |= 1u << i;
  }
  return taken;
}

// The cut among the bands of a head, of which range.n_bands are taken.
LH_DEVICE Cut FindBandCut(const BudgetRange& range, Global<const float> mass,
                          Shared<uint32_t> n_of_digit, Shared<FoundDigit> result, Scan& scan) {
  Cut cut = {.rank = 0, .n_equal = static_cast<int32_t>(range.n_bands)};
  for (int pass = kRankPasses - 1; pass >= 0; --pass) {
    const int shift = pass * kRankDigitBits;
    SyncThreads();  // the counts of the pass before are read
    LH_UNROLL
    for (int i = 0; i < Digits::kPerThread; ++i) n_of_digit[Digits::DigitOf(i)] = 0;
    SyncThreads();
    for (int64_t first = range.first_band + ThreadId() * kItems; first < range.bands_end;
         first += kChunk) {
      CountDigits(LoadRanks(mass, first, range.bands_end, false), cut.rank, shift, n_of_digit);
    }
    SyncThreads();
    int64_t counts[Digits::kPerThread];
    LH_UNROLL
    for (int i = 0; i < Digits::kPerThread; ++i) counts[i] = n_of_digit[Digits::DigitOf(i)];
    const FoundDigit found = Digits::Find(counts, cut.n_equal, result, scan);
    cut = {.rank = cut.rank << kRankDigitBits | found.digit,
           .n_equal = static_cast<int32_t>(found.n_wanted)};
  }
  return cut;
}

// Lists the bands that the cut takes, and writes how many pairs they and the local keys keep.
LH_DEVICE void ListBands(const BudgetParams& p, int64_t head, const BudgetRange& range,
                         const Cut& cut, bool by_place, Scan& scan) {
  const int64_t abs_head = p.head_begin + head;
  const Global<const float> mass = p.band_mass + head * p.band_mass_stride;
  const Global<int32_t> bands(p.plan.bands + abs_head * p.plan.max_bands);
  int64_t n_equal_before = 0;
  int64_t n_listed = 0;
  int64_t kept_pairs = 0;
  for (int64_t round = range.first_band; round < range.bands_end; round += kChunk) {
    const Ranks items = LoadRanks(mass, round + ThreadId() * kItems, range.bands_end, by_place);
    const uint32_t taken = TakenItems(items, cut, n_equal_before, scan);
    uint32_t listed = 0;
    int n_mine = 0;
    LH_UNROLL
    for (int i = 0; i < kItems; ++i) {
      if ((taken >> i & 1) == 0) continue;
      const int64_t pairs = BandPairs(p.rows, p.plan.local, items.first + i);
      if (pairs == 0) continue;
      listed |= 1u << i;
      ++n_mine;
      kept_pairs += pairs;
    }
    int64_t total = 0;
    int64_t entry = n_listed + scan.Exclusive(n_mine, total);
    n_listed += total;
    LH_UNROLL
    for (int i = 0; i < kItems; ++i) {
      if ((listed >> i & 1) != 0) bands[entry++] = static_cast<int32_t>(items.first + i);
    }
  }
  kept_pairs = scan.Sum(kept_pairs);
  if (ThreadId() != 0) return;
  Global<int32_t>(p.plan.n_bands)[abs_head] = static_cast<int32_t>(n_listed);
  Global<int64_t>(p.plan.kept_pairs)[abs_head] = kept_pairs + LocalPairs(p.rows, p.plan.local);
}

// Grid [heads]. Also clears what the kernels of the columns count in.
LH_KERNEL(kThreads, 1) BandsKernel(BudgetParams p) {
  const int64_t head = BlockX();
  const int64_t abs_head = p.head_begin + head;
  SharedArena arena;
  Scan scan(arena);
  const Shared<uint32_t> n_of_digit = arena.Carve<uint32_t>(kRankDigits);
  const Shared<FoundDigit> result = arena.Carve<FoundDigit>(1);
  LH_UNROLL
  for (int i = 0; i < Digits::kPerThread; ++i)
    p.histogram[head * kRankDigits + Digits::DigitOf(i)] = 0;
  if (p.choice && p.choice[abs_head] != kChooseByBudget) {
    const HeadColumns left_alone = {};
    if (ThreadId() == 0) p.columns[head] = left_alone;
    return;
  }
  const HeadBudget budget = p.budgets[abs_head];
  const bool by_place = budget.by_place != 0;
  const BudgetRange range = RangeOfBudget(p.rows, p.plan, budget);
  if (ThreadId() == 0) {
    const Cut none = {.rank = kTakeNone, .n_equal = 0};
    const Cut start = {.rank = 0, .n_equal = static_cast<int32_t>(range.n_columns)};
    const bool chosen = range.n_columns > 0 && !range.dense;
    const HeadColumns columns = {.cut = chosen ? start : none,
                                 .searching = chosen && !by_place ? 1 : 0,
                                 .open = range.dense ? 0 : 1};
    p.columns[head] = columns;
    p.n_done[head] = 0;
    Global<int32_t>(p.plan.n_stripes)[abs_head] = 0;
    if (range.dense) {
      Global<int32_t>(p.plan.kind)[abs_head] = static_cast<int32_t>(HeadKind::kDense);
      Global<int32_t>(p.plan.n_bands)[abs_head] = 0;
      Global<int64_t>(p.plan.kept_pairs)[abs_head] = CausalPairs(p.rows);
    }
  }
  if (range.dense) return;
  Cut cut = {.rank = kTakeNone, .n_equal = 0};
  if (range.n_bands > 0 && by_place) {
    cut = {.rank = 0, .n_equal = static_cast<int32_t>(range.n_bands)};
  } else if (range.n_bands > 0) {
    cut = FindBandCut(range, p.band_mass + head * p.band_mass_stride, n_of_digit, result, scan);
  }
  ListBands(p, head, range, cut, by_place, scan);
}

// Grid [n_chunks, heads]. Leaves the histogram cleared.
LH_KERNEL(kThreads, 1) HistogramKernel(BudgetParams p) {
  const int64_t head = BlockY();
  HeadColumns columns = p.columns[head];
  if (columns.searching == 0) return;
  SharedArena arena;
  Scan scan(arena);
  const Shared<uint32_t> n_of_digit = arena.Carve<uint32_t>(kRankDigits);
  const Shared<FoundDigit> result = arena.Carve<FoundDigit>(1);
  const Global<uint32_t> histogram = p.histogram + head * kRankDigits;
  LH_UNROLL
  for (int i = 0; i < Digits::kPerThread; ++i) n_of_digit[Digits::DigitOf(i)] = 0;
  SyncThreads();
  CountDigits(LoadColumns(p, head, BlockX()), columns.cut.rank, p.shift, n_of_digit);
  SyncThreads();
  LH_UNROLL
  for (int i = 0; i < Digits::kPerThread; ++i) {
    const uint32_t n = n_of_digit[Digits::DigitOf(i)];
    if (n != 0) AtomicAdd(histogram + Digits::DigitOf(i), n);
  }
  if (!LastBlockDone(p.n_done + head, static_cast<uint32_t>(p.n_chunks))) return;
  int64_t counts[Digits::kPerThread];
  LH_UNROLL
  for (int i = 0; i < Digits::kPerThread; ++i)
    counts[i] = AtomicExch(histogram + Digits::DigitOf(i), 0u);
  const FoundDigit found = Digits::Find(counts, columns.cut.n_equal, result, scan);
  if (ThreadId() != 0) return;
  columns.cut = {.rank = columns.cut.rank << kRankDigitBits | found.digit,
                 .n_equal = static_cast<int32_t>(found.n_wanted)};
  if (p.shift == 0) columns.searching = 0;
  p.columns[head] = columns;
}

// Keys before it are remote to some row.
LH_DEVICE int64_t ListedEnd(const BudgetParams& p) { return p.rows.q_end - p.plan.local.window; }

// Places the chunks of a head; by one block.
LH_DEVICE void PlaceChunks(const BudgetParams& p, int64_t head, const Cut& cut, Scan& scan) {
  int64_t n_equal_before = 0;
  int64_t n_listed = 0;
  for (int64_t round = 0; round < p.n_chunks; round += kThreads) {
    const int64_t chunk = round + ThreadId();
    ChunkCount count = {};
    if (chunk < p.n_chunks) count = p.counts[head * p.n_chunks + chunk];
    int64_t total = 0;
    const int64_t n_wanted = cut.n_equal - n_equal_before - scan.Exclusive(count.equal, total);
    n_equal_before += total;
    const int32_t n_equal = n_wanted > 0 ? static_cast<int32_t>(n_wanted) : 0;
    const int32_t n_equal_listed = n_equal < count.equal_listed ? n_equal : count.equal_listed;
    const int64_t before = n_listed + scan.Exclusive(count.above_listed + n_equal_listed, total);
    n_listed += total;
    if (chunk >= p.n_chunks) continue;
    const ChunkPlace place = {.entries_before = static_cast<int32_t>(before), .n_equal = n_equal};
    p.places[head * p.n_chunks + chunk] = place;
  }
  if (ThreadId() != 0) return;
  const int64_t abs_head = p.head_begin + head;
  const int32_t n_bands = Global<int32_t>(p.plan.n_bands)[abs_head];
  const HeadKind kind = n_listed == 0 && n_bands == 0 ? HeadKind::kStreaming : HeadKind::kSparse;
  Global<int32_t>(p.plan.kind)[abs_head] = static_cast<int32_t>(kind);
  Global<int32_t>(p.plan.n_stripes)[abs_head] = static_cast<int32_t>(n_listed);
}

// Grid [n_chunks, heads].
LH_KERNEL(kThreads, 1) CountKernel(BudgetParams p) {
  const int64_t head = BlockY();
  const HeadColumns columns = p.columns[head];
  if (columns.open == 0) return;
  SharedArena arena;
  Scan scan(arena);
  const Ranks items = LoadColumns(p, head, BlockX());
  int64_t above_listed = 0;
  int64_t equal = 0;
  int64_t equal_listed = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    const bool is_listed = items.first + i < ListedEnd(p);
    const bool is_equal = items.rank[i] == columns.cut.rank;
    above_listed += is_listed && items.rank[i] > columns.cut.rank ? 1 : 0;
    equal += is_equal ? 1 : 0;
    equal_listed += is_listed && is_equal ? 1 : 0;
  }
  const ChunkCount count = {.above_listed = static_cast<int32_t>(scan.Sum(above_listed)),
                            .equal = static_cast<int32_t>(scan.Sum(equal)),
                            .equal_listed = static_cast<int32_t>(scan.Sum(equal_listed))};
  if (ThreadId() == 0) p.counts[head * p.n_chunks + BlockX()] = count;
  if (LastBlockDone(p.n_done + head, static_cast<uint32_t>(p.n_chunks))) {
    PlaceChunks(p, head, columns.cut, scan);
  }
}

// Grid [n_chunks, heads].
LH_KERNEL(kThreads, 1) WriteKernel(BudgetParams p) {
  const int64_t head = BlockY();
  const int64_t abs_head = p.head_begin + head;
  const HeadColumns columns = p.columns[head];
  if (columns.open == 0) return;
  SharedArena arena;
  Scan scan(arena);
  const ChunkPlace place = p.places[head * p.n_chunks + BlockX()];
  const Cut cut = {.rank = columns.cut.rank, .n_equal = place.n_equal};
  const Ranks items = LoadColumns(p, head, BlockX());
  int64_t n_equal_before = 0;
  uint32_t listed = TakenItems(items, cut, n_equal_before, scan);
  int n_mine = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    if (items.first + i >= ListedEnd(p)) listed &= ~(1u << i);
    n_mine += static_cast<int>(listed >> i & 1);
  }
  int64_t total = 0;
  int64_t entry = place.entries_before + scan.Exclusive(n_mine, total);
  const Global<int32_t> stripes(p.plan.stripes + abs_head * p.plan.max_stripes);
  const Global<const int32_t> bands(p.plan.bands + abs_head * p.plan.max_bands);
  const int32_t n_bands = Global<int32_t>(p.plan.n_bands)[abs_head];
  int64_t pairs = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    if ((listed >> i & 1) == 0) continue;
    stripes[entry++] = static_cast<int32_t>(items.first + i);
    pairs += RemoteRows(p.rows, p.plan.local, items.first + i) -
             RowsInBands(p.rows, p.plan.local, items.first + i, bands, n_bands);
  }
  pairs = scan.Sum(pairs);
  if (ThreadId() != 0 || pairs == 0) return;
  AtomicAdd(Cast<uint64_t>(Global<int64_t>(p.plan.kept_pairs + abs_head)),
            static_cast<uint64_t>(pairs));
}

// Points the parameters into the scratch; returns its size.
int64_t CarveScratch(int64_t n_heads, int64_t n_chunks, std::byte* scratch, BudgetParams& p) {
  ScratchCarver carver(scratch);
  p.columns = carver.Take<HeadColumns>(n_heads);
  p.histogram = carver.Take<uint32_t>(n_heads * kRankDigits);
  p.n_done = carver.Take<uint32_t>(n_heads);
  p.counts = carver.Take<ChunkCount>(n_heads * n_chunks);
  p.places = carver.Take<ChunkPlace>(n_heads * n_chunks);
  return carver.used_bytes();
}

}  // namespace

int64_t SelectBudgetScratchBytes(int64_t n_heads, int64_t n_keys) {
  BudgetParams unused;
  return CarveScratch(n_heads, CeilDiv(n_keys, kChunk), nullptr, unused);
}

cudaError_t SelectBudget(const SelectBudgetArgs& args, std::byte* scratch, cudaStream_t stream) {
  const int64_t n_heads = args.mass_sum.dim(0);
  BudgetParams p;
  p.rows = {.q_begin = args.q_begin, .q_end = args.q_begin + args.n_q};
  p.head_begin = args.head_begin;
  p.first_column = args.plan.local.sink < p.rows.q_end ? args.plan.local.sink : p.rows.q_end;
  p.n_chunks = CeilDiv(p.rows.q_end - p.first_column, kChunk);
  p.plan = args.plan;
  p.budgets = args.budgets;
  p.choice = args.choice;
  p.mass_sum = args.mass_sum.As<float>();
  p.band_mass = args.band_mass.As<float>();
  p.mass_sum_stride = args.mass_sum.stride(0);
  p.band_mass_stride = args.band_mass.stride(0);
  CarveScratch(n_heads, p.n_chunks, scratch, p);
  const auto x = static_cast<unsigned>(p.n_chunks);
  const auto y = static_cast<unsigned>(n_heads);
  LaunchConfig config = {.name = "select budget: bands",
                         .grid = {y},
                         .block = kThreads,
                         .smem_bytes = BlockScanBytes<kThreads>() +
                                       CarvedBytes<uint32_t>(kRankDigits) +
                                       CarvedBytes<FoundDigit>(1),
                         .stream = stream};
  cudaError_t error = Launch(config, BandsKernel, p);
  if (x == 0) return error;  // every head is dense: its sink is all there is
  config.grid = {x, y};
  for (int pass = kRankPasses - 1; pass >= 0 && error == cudaSuccess; --pass) {
    config.name = "select budget: histogram";
    p.shift = pass * kRankDigitBits;
    error = Launch(config, HistogramKernel, p);
  }
  config.name = "select budget: count";
  if (error == cudaSuccess) error = Launch(config, CountKernel, p);
  config.name = "select budget: write";
  return error == cudaSuccess ? Launch(config, WriteKernel, p) : error;
}

}  // namespace longhaul::cuda
