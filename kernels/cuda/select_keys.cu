// Candidates of a head are numbered: stripes by key, then bands. A block takes kChunk of them, so a
// head is cut into chunks whose partial results are combined in order or as integers.
//
//   Top        mass of what is kept whatever its sum, best score of the rest     per chunk
//   Histogram  mass by bucket of score, of stripes and of bands                  per head
//   Cut        heads that stream or are dense; else the last bucket taken        per head
//   Count      what is taken above the cut-off, and what the cut-off bucket has  per chunk
//   Place      where each chunk's entries go; lists that do not pay are dropped  per head
//   Write      the lists                                                         per chunk
//   Overlap    takes what stripes and bands share off the count of pairs         per chunk
#include "kernels/cuda/select_keys.h"

#include <limits>

#include "kernels/base/checked_math.h"
#include "kernels/cuda/bands.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch_carver.h"
#include "kernels/cuda/select_candidates.cuh"

namespace longhaul::cuda {
namespace {

constexpr int kThreads = kSelectThreads;
using Scan = SelectScan;

// Grid [n_chunks, heads]. Also clears the histogram.
LH_KERNEL(kThreads, 1) TopKernel(SelectParams p) {
  const int64_t chunk = BlockX();
  const int64_t head = BlockY();
  if (IsSkipped(p, head)) return;
  if (chunk == 0) {
    for (int i = ThreadId(); i < kHistogramSize; i += kThreads) {
      p.histogram[head * kHistogramSize + i] = 0;
    }
  }
  SharedArena arena;
  Scan scan(arena);
  Shared<float> warp_best = arena.Carve<float>(Scan::kWarps);
  const Items items = LoadItems(p, head, chunk);
  int64_t forced_mass = 0;
  float best_score = 0;
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    const Candidate& c = items.candidate[i];
    if (!(c.score > 0)) continue;
    if (IsForced(p, c)) {
      forced_mass += c.mass;
    } else {
      best_score = fmaxf(best_score, c.score);
    }
  }
  best_score = WarpMax(best_score);
  if (LaneId() == 0) warp_best[WarpId()] = best_score;
  forced_mass = scan.Sum(forced_mass);
  if (ThreadId() != 0) return;
  for (int warp = 1; warp < Scan::kWarps; ++warp) best_score = fmaxf(best_score, warp_best[warp]);
  const ChunkTop top = {.forced_mass = forced_mass, .best_score = best_score};
  p.tops[head * p.n_chunks + chunk] = top;
}

// The best score of a head, in all threads.
LH_DEVICE float BestScore(const SelectParams& p, int64_t head, Shared<float> warp_best) {
  float best_score = 0;
  for (int64_t chunk = ThreadId(); chunk < p.n_chunks; chunk += kThreads) {
    const ChunkTop top = p.tops[head * p.n_chunks + chunk];
    best_score = fmaxf(best_score, top.best_score);
  }
  best_score = WarpMax(best_score);
  if (LaneId() == 0) warp_best[WarpId()] = best_score;
  SyncThreads();
  for (int warp = 0; warp < Scan::kWarps; ++warp) {
    best_score = fmaxf(best_score, warp_best[warp]);
  }
  return best_score;
}

// Grid [n_chunks, heads].
LH_KERNEL(kThreads, 1) HistogramKernel(SelectParams p) {
  const int64_t chunk = BlockX();
  const int64_t head = BlockY();
  if (IsSkipped(p, head)) return;
  SharedArena arena;
  Shared<uint64_t> bucket_mass = arena.Carve<uint64_t>(kHistogramSize);
  Shared<float> warp_best = arena.Carve<float>(Scan::kWarps);
  for (int i = ThreadId(); i < kHistogramSize; i += kThreads) bucket_mass[i] = 0;
  const float best_score = BestScore(p, head, warp_best);  // its barrier covers bucket_mass
  const Items items = LoadItems(p, head, chunk);
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    const Candidate& c = items.candidate[i];
    if (!(c.score > 0) || IsForced(p, c)) continue;
    const int first_bucket = items.first + i < p.n_stripes ? 0 : kScoreBuckets;
    AtomicAdd(bucket_mass + (first_bucket + ScoreBucket(best_score, c.score)),
              static_cast<uint64_t>(c.mass));
  }
  SyncThreads();
  for (int i = ThreadId(); i < kHistogramSize; i += kThreads) {
    const uint64_t mass = bucket_mass[i];
    if (mass != 0) AtomicAdd(p.histogram + (head * kHistogramSize + i), mass);
  }
}

// Grid [heads].
LH_KERNEL(kThreads, 1) CutKernel(SelectParams p) {
  const int64_t head = BlockX();
  const int64_t abs_head = p.head_begin + head;
  if (IsSkipped(p, head)) {
    const HeadCut skipped = {};
    if (ThreadId() == 0) p.cuts[head] = skipped;
    return;
  }
  SharedArena arena;
  Scan scan(arena);
  Shared<float> warp_best = arena.Carve<float>(Scan::kWarps);
  HeadCut cut = {.best_score = BestScore(p, head, warp_best), .cut = -1, .cut_need = 0, .open = 1};
  const float alpha = p.alpha[abs_head];
  int64_t need = FixedMass(static_cast<double>(alpha) * static_cast<double>(p.n_voting));
  int64_t remote_mass = FixedMass(static_cast<double>(p.n_voting));
  if (p.scope == MassScope::kRemote) {
    const int64_t local_mass = scan.Sum(LocalMass(p.lse_full + abs_head * p.lse_full_stride,
                                                  p.lse_local + abs_head * p.lse_local_stride,
                                                  p.n_voting, ThreadId(), kThreads));
    need -= local_mass;
    remote_mass -= local_mass;
  }
  const bool dense = alpha >= 1;
  if (dense || (p.scope == MassScope::kRemote && need <= 0)) {
    if (ThreadId() != 0) return;
    cut.open = 0;
    p.cuts[head] = cut;
    SetKind(p.plan, abs_head, dense ? HeadKind::kDense : HeadKind::kStreaming,
            dense ? CausalPairs(p.rows) : LocalPairs(p.rows, p.plan.local));
    return;
  }
  int64_t forced_mass = 0;
  for (int64_t chunk = ThreadId(); chunk < p.n_chunks; chunk += kThreads) {
    const ChunkTop top = p.tops[head * p.n_chunks + chunk];
    forced_mass += top.forced_mass;
  }
  forced_mass = scan.Sum(forced_mass);
  const Global<const uint64_t> histogram = p.histogram + head * kHistogramSize;
  const TakenMass bucket = {.stripes = static_cast<int64_t>(histogram[ThreadId()]),
                            .bands = static_cast<int64_t>(histogram[kScoreBuckets + ThreadId()])};
  TakenMass all = {};
  TakenMass before = {.stripes = scan.Exclusive(bucket.stripes, all.stripes),
                      .bands = scan.Exclusive(bucket.bands, all.bands)};
  before.stripes += forced_mass;
  all.stripes += forced_mass;
  const TakenMass taken = {before.stripes + bucket.stripes, before.bands + bucket.bands};
  const bool none_needed = UnionMass({forced_mass, 0}, remote_mass) >= need;
  const bool all_needed = UnionMass(all, remote_mass) < need;
  if (all_needed) {  // and not enough
    cut.cut = kScoreBuckets - 1;
    cut.cut_need = std::numeric_limits<int64_t>::max();
  }
  // At most one thread finds that its bucket meets the need; else it is thread 0 that writes.
  const bool is_mine =
      UnionMass(before, remote_mass) < need && need <= UnionMass(taken, remote_mass);
  if (is_mine) {
    cut.cut = ThreadId();
    cut.cut_need = NeedOfBucket(need, before, bucket, remote_mass);
  }
  if (is_mine || (ThreadId() == 0 && (none_needed || all_needed))) p.cuts[head] = cut;
}

// Grid [n_chunks, heads].
LH_KERNEL(kThreads, 1) CountKernel(SelectParams p) {
  const int64_t chunk = BlockX();
  const int64_t head = BlockY();
  const HeadCut cut = p.cuts[head];
  if (cut.open == 0) return;
  SharedArena arena;
  Scan scan(arena);
  const Items items = LoadItems(p, head, chunk);
  ChunkCount count = {};
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    const Candidate& c = items.candidate[i];
    const Verdict verdict = Judge(p, cut, c);
    if (verdict == Verdict::kTaken) AddTo(count.sure, TallyOf(p, c, items.first + i));
    if (verdict == Verdict::kCut) {
      AddTo(count.cut, TallyOf(p, c, items.first + i));
      count.cut_mass += c.mass;
    }
  }
  count.sure = SumTally(scan, count.sure);
  count.cut = SumTally(scan, count.cut);
  count.cut_mass = scan.Sum(count.cut_mass);
  if (ThreadId() == 0) p.counts[head * p.n_chunks + chunk] = count;
}

// Writes the plan entry: sparse when the lists fit and cost less than the cap.
LH_DEVICE void Decide(const SelectParams& p, int64_t head, const Tally& taken) {
  const int64_t local_pairs = LocalPairs(p.rows, p.plan.local);
  const int64_t dense_pairs = CausalPairs(p.rows);
  const int64_t n_stripes = StripesOf(taken.entries);
  const int64_t n_bands = BandsOf(taken.entries);
  const double cost = static_cast<double>(local_pairs + taken.cost);
  const double cap = static_cast<double>(p.dense_cost_fraction) * static_cast<double>(dense_pairs);
  if (n_stripes > p.plan.max_stripes || n_bands > p.plan.max_bands || cost > cap) {
    SetKind(p.plan, head, HeadKind::kDense, dense_pairs);
    return;
  }
  SetKind(p.plan, head, HeadKind::kSparse, local_pairs + taken.pairs);
  Global<int32_t>(p.plan.n_stripes)[head] = static_cast<int32_t>(n_stripes);
  Global<int32_t>(p.plan.n_bands)[head] = static_cast<int32_t>(n_bands);
}

// Grid [heads]. At most one chunk takes a part of its cut-off bucket; those before take all of it,
// those after nothing.
LH_KERNEL(kThreads, 1) PlaceKernel(SelectParams p) {
  const int64_t head = BlockX();
  const HeadCut cut = p.cuts[head];
  if (cut.open == 0) return;
  SharedArena arena;
  Scan scan(arena);
  Shared<ChunkPlace> partial = arena.Carve<ChunkPlace>(1);  // entries_before holds its chunk
  Tally taken = {};
  int64_t cut_mass_before = 0;
  for (int64_t round = 0; round < p.n_chunks; round += kThreads) {
    const int64_t chunk = round + ThreadId();
    ChunkCount count = {};
    if (chunk < p.n_chunks) count = p.counts[head * p.n_chunks + chunk];
    int64_t total = 0;
    const int64_t before = cut_mass_before + scan.Exclusive(count.cut_mass, total);
    cut_mass_before += total;
    const bool needed = before < cut.cut_need;
    const bool is_partial = needed && cut.cut_need <= before + count.cut_mass;
    Tally mine = count.sure;
    if (needed && !is_partial) AddTo(mine, count.cut);
    if (is_partial) {
      const ChunkPlace found = {.entries_before = chunk, .cut_mass_before = before};
      partial[0] = found;
    }
    if (SyncThreadsOr(is_partial)) {
      const ChunkPlace found = partial[0];
      const Items items = LoadItems(p, head, found.entries_before);
      const uint32_t bits = TakenItems(p, cut, items, found.cut_mass_before, scan);
      const Tally part = SumTally(scan, TallyItems(p, items, bits));
      if (is_partial) mine = part;
    }
    const ChunkPlace place = {.entries_before = taken.entries + scan.Exclusive(mine.entries, total),
                              .cut_mass_before = before};
    if (chunk < p.n_chunks) p.places[head * p.n_chunks + chunk] = place;
    AddTo(taken, {.pairs = scan.Sum(mine.pairs), .cost = scan.Sum(mine.cost), .entries = total});
  }
  if (ThreadId() == 0) Decide(p, p.head_begin + head, taken);
}

// Grid [n_chunks, heads].
LH_KERNEL(kThreads, 1) WriteKernel(SelectParams p) {
  const int64_t chunk = BlockX();
  const int64_t head = BlockY();
  const int64_t abs_head = p.head_begin + head;
  const HeadCut cut = p.cuts[head];
  if (cut.open == 0) return;
  const int32_t kind = Global<int32_t>(p.plan.kind)[abs_head];
  if (kind != static_cast<int32_t>(HeadKind::kSparse)) return;
  SharedArena arena;
  Scan scan(arena);
  const ChunkPlace place = p.places[head * p.n_chunks + chunk];
  const Items items = LoadItems(p, head, chunk);
  const uint32_t taken = TakenItems(p, cut, items, place.cut_mass_before, scan);
  const Tally mine = TallyItems(p, items, taken);
  int64_t total = 0;
  const int64_t entries = place.entries_before + scan.Exclusive(mine.entries, total);
  Global<int32_t> stripes(p.plan.stripes + abs_head * p.plan.max_stripes);
  Global<int32_t> bands(p.plan.bands + abs_head * p.plan.max_bands);
  int64_t next_stripe = StripesOf(entries);
  int64_t next_band = BandsOf(entries);
  LH_UNROLL
  for (int i = 0; i < kItems; ++i) {
    if ((taken >> i & 1) == 0 || items.candidate[i].pairs == 0) continue;
    const int64_t index = items.first + i;
    if (index < p.n_stripes) {
      stripes[next_stripe++] = static_cast<int32_t>(index * p.plan.stripe_width);
    } else {
      bands[next_band++] = static_cast<int32_t>(p.first_band + index - p.n_stripes);
    }
  }
}

// Grid [n_chunks, heads]: a chunk of the list of stripes.
LH_KERNEL(kThreads, 1) OverlapKernel(SelectParams p) {
  const int64_t abs_head = p.head_begin + BlockY();
  const HeadCut cut = p.cuts[BlockY()];
  if (cut.open == 0) return;
  const int32_t n_stripes = Global<int32_t>(p.plan.n_stripes)[abs_head];  // 0 where it is dense
  const int32_t n_bands = Global<int32_t>(p.plan.n_bands)[abs_head];
  if (n_bands == 0 || BlockX() * kChunk >= n_stripes) return;
  SharedArena arena;
  Scan scan(arena);
  const Global<const int32_t> stripes(p.plan.stripes + abs_head * p.plan.max_stripes);
  const Global<const int32_t> bands(p.plan.bands + abs_head * p.plan.max_bands);
  int64_t pairs = 0;
  for (int i = 0; i < kItems; ++i) {
    const int64_t entry = BlockX() * kChunk + i * kThreads + ThreadId();
    if (entry >= n_stripes) break;
    const int64_t begin = stripes[entry];
    for (int64_t key = begin; key < begin + p.plan.stripe_width; ++key) {
      pairs += RowsInBands(p.rows, p.plan.local, key, bands, n_bands);
    }
  }
  pairs = scan.Sum(pairs);
  if (ThreadId() != 0 || pairs == 0) return;
  AtomicAdd(Cast<uint64_t>(Global<int64_t>(p.plan.kept_pairs + abs_head)),
            ~static_cast<uint64_t>(pairs) + 1);
}

// Stripes of width 1 are the most candidates.
int64_t MostChunks(int64_t n_keys) { return CeilDiv(n_keys + CeilDiv(n_keys, kBandWidth), kChunk); }

// Points the parameters into the scratch; returns its size.
int64_t CarveScratch(int64_t n_heads, int64_t n_chunks, std::byte* scratch, SelectParams& p) {
  ScratchCarver carver(scratch);
  p.histogram = carver.Take<uint64_t>(n_heads * kHistogramSize);
  p.cuts = carver.Take<HeadCut>(n_heads);
  p.tops = carver.Take<ChunkTop>(n_heads * n_chunks);
  p.counts = carver.Take<ChunkCount>(n_heads * n_chunks);
  p.places = carver.Take<ChunkPlace>(n_heads * n_chunks);
  return carver.used_bytes();
}

SelectParams MakeParams(const SelectKeysArgs& args) {
  const bool with_bands = !args.band_mass.empty() && args.scope == MassScope::kRemote;
  SelectParams p;
  p.rows = {.q_begin = args.q_begin, .q_end = args.q_begin + args.n_q};
  p.n_voting = args.n_voting;
  p.scope = args.scope;
  p.head_begin = args.head_begin;
  p.n_keys = p.rows.q_end;
  p.n_stripes = CeilDiv(p.n_keys, args.plan.stripe_width);
  p.first_band = args.plan.local.window / kBandWidth;
  const int64_t n_bands = with_bands ? CeilDiv(p.n_keys, kBandWidth) - p.first_band : 0;
  p.n_candidates = p.n_stripes + (n_bands > 0 ? n_bands : 0);
  p.n_chunks = CeilDiv(p.n_candidates, kChunk);
  p.keep_max = args.keep_max;
  p.dense_cost_fraction = args.dense_cost_fraction;
  p.plan = args.plan;
  p.lse_full = args.lse_full.As<float>();
  p.lse_local = args.lse_local.As<float>();
  p.lse_full_stride = args.lse_full.stride(0);
  p.lse_local_stride = args.lse_local.stride(0);
  p.mass_sum = args.mass_sum.As<float>();
  p.mass_max = args.mass_max.As<float>();
  p.mass_sum_stride = args.mass_sum.stride(0);
  p.mass_max_stride = args.mass_max.stride(0);
  if (with_bands) {
    p.band_mass = args.band_mass.As<float>();
    p.band_mass_stride = args.band_mass.stride(0);
  }
  p.alpha = args.alpha;
  p.choice = args.choice;
  return p;
}

}  // namespace

int64_t SelectKeysScratchBytes(int64_t n_heads, int64_t n_keys) {
  SelectParams unused;
  return CarveScratch(n_heads, MostChunks(n_keys), nullptr, unused);
}

cudaError_t SelectKeys(const SelectKeysArgs& args, std::byte* scratch, cudaStream_t stream) {
  SelectParams p = MakeParams(args);
  const int64_t n_heads = args.mass_sum.dim(0);
  CarveScratch(n_heads, p.n_chunks, scratch, p);
  const auto x = static_cast<unsigned>(p.n_chunks);
  const auto y = static_cast<unsigned>(n_heads);
  constexpr int kSmemBytes = BlockScanBytes<kThreads>() + CarvedBytes<uint64_t>(kHistogramSize) +
                             CarvedBytes<float>(Scan::kWarps);
  struct Step {
    const char* name;
    void (*kernel)(SelectParams);
    dim3 grid;
  };
  const Step steps[] = {
      {"select keys: top", TopKernel, {x, y}},
      {"select keys: histogram", HistogramKernel, {x, y}},
      {"select keys: cut", CutKernel, {y}},
      {"select keys: count", CountKernel, {x, y}},
      {"select keys: place", PlaceKernel, {y}},
      {"select keys: write", WriteKernel, {x, y}},
      {"select keys: overlap", OverlapKernel, {x, y}},
  };
  for (const Step& step : steps) {
    const cudaError_t error = Launch({.name = step.name,
                                      .grid = step.grid,
                                      .block = kThreads,
                                      .smem_bytes = kSmemBytes,
                                      .stream = stream},
                                     step.kernel, p);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace longhaul::cuda
