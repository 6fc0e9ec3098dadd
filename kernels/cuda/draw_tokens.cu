// One block per row. A row of 128K logits is half a megabyte, which stays in L2: the passes over it
// (one for greedy rows, three without top-k and top-p, up to eleven with both) cost less than a
// second kernel that many blocks share would save for a few rows.
#include "kernels/cuda/draw_tokens.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/rank_cut.cuh"
#include "kernels/draw_token.h"

namespace longhaul::cuda {
namespace {

using namespace draw_internal;

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpLanes;
using Scan = BlockScan<kThreads>;
using Digits = RankDigits<kThreads>;

struct DrawParams {
  Global<const float> logits;  // [T, V]
  Global<const TokenDraw> draws;
  Global<int32_t> tokens;
  int64_t stride = 0;
  int64_t n_vocab = 0;
};

// A row and what of it is kept so far; the same in all threads.
struct Row {
  Global<const float> logits;
  int64_t n_vocab;
  float best;
  float halvings_per_logit;
  uint32_t cut_rank;   // kept is every rank above it ...
  int64_t last_equal;  // ... and the tokens of this rank up to here
  uint64_t least_weight;
};

struct DrawShared {
  Scan scan;
  Shared<uint64_t> sums;  // [kRankDigits], or of the warps
  Shared<FoundDigit> digit;
  Shared<int64_t> token;
};

LH_DEVICE bool IsKept(const Row& row, int64_t token, uint32_t rank) {
  return rank > row.cut_rank || (rank == row.cut_rank && token <= row.last_equal);
}

LH_DEVICE uint64_t WeightOfRank(const Row& row, uint32_t rank) {
  return WeightOf(row.best, LogitOf(rank), row.halvings_per_logit);
}

// What min-p leaves.
LH_DEVICE uint64_t KeptWeight(const Row& row, int64_t token) {
  const uint32_t rank = RankOf(row.logits[token]);
  if (!IsKept(row, token, rank)) return 0;
  const uint64_t weight = WeightOfRank(row, rank);
  return weight >= row.least_weight ? weight : 0;
}

// Rank and token of the likeliest, in one integer that is larger for the better; 0 where the logits
// are broken.
LH_DEVICE uint64_t FindBest(const DrawParams& p, int64_t row, Shared<uint64_t> of_warp) {
  const Global<const float> logits = p.logits + row * p.stride;
  uint64_t best = 0;
  bool broken = false;
  for (int64_t token = ThreadId(); token < p.n_vocab; token += kThreads) {
    const float logit = logits[token];
    broken = broken || !(logit < std::numeric_limits<float>::infinity());
    const uint64_t mine = uint64_t{RankOf(logit)} << 32 | (0xffffffffu - token);
    if (mine > best) best = mine;
  }
  LH_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
    const uint64_t other = ShuffleXor(best, mask);
    if (other > best) best = other;
  }
  if (LaneId() == 0) of_warp[WarpId()] = best;
  if (SyncThreadsOr(broken)) return 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    const uint64_t other = of_warp[warp];
    if (other > best) best = other;
  }
  return best >> 32 > kRankOfNever ? best : 0;
}

// The warps' parts of a row in its order.
LH_DEVICE int64_t WarpSpan(const Row& row) {
  return (row.n_vocab + kThreads - 1) / kThreads * kWarpLanes;
}

// Sums value_of(token) over the tokens; `sums` keeps those of the warps for FindPlace.
template <class ValueOf>
LH_DEVICE uint64_t SumTokens(const Row& row, const ValueOf& value_of, DrawShared& shared) {
  const int64_t begin = WarpId() * WarpSpan(row);
  const int64_t end = begin + WarpSpan(row) < row.n_vocab ? begin + WarpSpan(row) : row.n_vocab;
  uint64_t sum = 0;
  for (int64_t token = begin + LaneId(); token < end; token += kWarpLanes) sum += value_of(token);
  LH_UNROLL
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  SyncThreads();  // the last use of sums is over
  if (LaneId() == 0) shared.sums[WarpId()] = sum;
  SyncThreads();
  uint64_t total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += shared.sums[warp];
  return total;
}

// The first token up to which the values add up to more than `place`, which is less than all of
// them; behind SumTokens.
template <class ValueOf>
LH_DEVICE int64_t FindPlace(const Row& row, uint64_t place, const ValueOf& value_of,
                            DrawShared& shared) {
  int warp = 0;
  for (uint64_t sum = shared.sums[0]; sum <= place; sum = shared.sums[++warp]) place -= sum;
  const int64_t begin = warp * WarpSpan(row);
  for (int64_t round = begin; round < begin + WarpSpan(row); round += kThreads) {
    const int64_t token = round + ThreadId();
    const bool inside = token < begin + WarpSpan(row) && token < row.n_vocab;
    const uint64_t value = inside ? value_of(token) : 0;
    int64_t total = 0;
    const auto before =
        static_cast<uint64_t>(shared.scan.Exclusive(static_cast<int64_t>(value), total));
    if (before <= place && place < before + value) shared.token[0] = token;
    if (place < static_cast<uint64_t>(total)) break;
    place -= static_cast<uint64_t>(total);
  }
  SyncThreads();
  const int64_t token = shared.token[0];
  return token;
}

// Moves the cut to where the kept tokens, likeliest first, reach `wanted` of value_of(rank) > 0,
// which is the same for equal ranks.
template <class ValueOf>
LH_DEVICE void CutRow(Row& row, int64_t wanted, const ValueOf& value_of, DrawShared& shared) {
  int64_t found = 0;  // leading digits of the cut
  for (int pass = kRankPasses - 1; pass >= 0; --pass) {
    const int shift = pass * kRankDigitBits;
    SyncThreads();  // the last use of sums is over
    LH_UNROLL
    for (int i = 0; i < Digits::kPerThread; ++i) shared.sums[Digits::DigitOf(i)] = 0;
    SyncThreads();
    for (int64_t token = ThreadId(); token < row.n_vocab; token += kThreads) {
      const uint32_t rank = RankOf(row.logits[token]);
      if (!IsKept(row, token, rank) || int64_t{rank} >> (shift + kRankDigitBits) != found) continue;
      AtomicAdd(shared.sums + static_cast<int>((rank >> shift) % kRankDigits), value_of(rank));
    }
    SyncThreads();
    int64_t sums[Digits::kPerThread];
    LH_UNROLL
    for (int i = 0; i < Digits::kPerThread; ++i) {
      const uint64_t sum = shared.sums[Digits::DigitOf(i)];
      sums[i] = static_cast<int64_t>(sum);
    }
    const FoundDigit digit = Digits::Find(sums, wanted, shared.digit, shared.scan);
    found = found << kRankDigitBits | digit.digit;
    wanted = digit.n_wanted;
  }
  const auto rank = static_cast<uint32_t>(found);
  const auto value = static_cast<int64_t>(value_of(rank));
  const auto n_equal = static_cast<uint64_t>((wanted + value - 1) / value);
  const auto is_equal = [&](int64_t token) -> uint64_t {
    const uint32_t other = RankOf(row.logits[token]);
    return other == rank && IsKept(row, token, other) ? 1 : 0;
  };
  SumTokens(row, is_equal, shared);
  const int64_t last_equal = FindPlace(row, n_equal - 1, is_equal, shared);
  row.cut_rank = rank;
  row.last_equal = last_equal;
}

// Grid [T].
LH_KERNEL(kThreads, 1) DrawTokensKernel(DrawParams p) {
  const int64_t index = BlockX();
  SharedArena arena;
  DrawShared shared = {.scan = Scan(arena),
                       .sums = arena.Carve<uint64_t>(kRankDigits),
                       .digit = arena.Carve<FoundDigit>(1),
                       .token = arena.Carve<int64_t>(1)};
  const TokenDraw draw = p.draws[index];
  const uint64_t best = FindBest(p, index, shared.sums);
  if (best == 0 || !(draw.temperature > 0)) {
    const auto token = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
    if (ThreadId() == 0) p.tokens[index] = best == 0 ? kBrokenLogits : token;
    return;
  }
  Row row = {.logits = p.logits + index * p.stride,
             .n_vocab = p.n_vocab,
             .best = LogitOf(static_cast<uint32_t>(best >> 32)),
             .halvings_per_logit = HalvingsPerLogit(draw.temperature),
             .cut_rank = kRankOfNever,
             .last_equal = -1,
             .least_weight = LeastWeight(draw.min_p)};
  if (draw.top_k > 0 && draw.top_k < p.n_vocab) {
    row.cut_rank = 0;
    CutRow(
        row, draw.top_k, [](uint32_t) -> uint64_t { return 1; }, shared);
  }
  if (draw.top_p < 1.0f) {
    const uint64_t total = SumTokens(
        row,
        [&](int64_t token) -> uint64_t {
          const uint32_t rank = RankOf(row.logits[token]);
          return IsKept(row, token, rank) ? WeightOfRank(row, rank) : 0;
        },
        shared);
    CutRow(
        row, static_cast<int64_t>(WeightOfShare(total, draw.top_p)),
        [&](uint32_t rank) { return WeightOfRank(row, rank); }, shared);
  }
  const auto weight_of = [&](int64_t token) { return KeptWeight(row, token); };
  const uint64_t total = SumTokens(row, weight_of, shared);
  const int64_t token = FindPlace(row, PlaceOf(draw.random, total), weight_of, shared);
  if (ThreadId() == 0) p.tokens[index] = static_cast<int32_t>(token);
}

}  // namespace

cudaError_t DrawTokens(const DrawTokensArgs& args, cudaStream_t stream) {
  DrawParams p;
  p.logits = args.logits.As<float>();
  p.draws = args.draws;
  p.tokens = args.tokens;
  p.stride = args.logits.stride(0);
  p.n_vocab = args.logits.dim(1);
  return Launch({.name = "draw tokens",
                 .grid = dim3(static_cast<unsigned>(args.logits.dim(0))),
                 .block = kThreads,
                 .smem_bytes = BlockScanBytes<kThreads>() + CarvedBytes<uint64_t>(kRankDigits) +
                               CarvedBytes<FoundDigit>(1) + CarvedBytes<int64_t>(1),
                 .stream = stream},
                DrawTokensKernel, p);
}

}  // namespace longhaul::cuda
