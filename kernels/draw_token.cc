#include "kernels/draw_token.h"

#include <functional>

#include "kernels/base/check.h"

namespace longhaul {
namespace {

using namespace draw_internal;

// The likeliest of a row: every rank above `rank`, and the first n_equal tokens of that rank.
struct Cut {
  uint32_t rank = 0;
  int64_t n_equal = 0;
};

// Moves the k largest ranks to the front.
Cut CutOfTopK(std::vector<uint32_t>& ranks, int64_t k) {
  std::nth_element(ranks.begin(), ranks.begin() + (k - 1), ranks.end(), std::greater<>());
  const uint32_t rank = ranks[k - 1];
  return {rank, std::count(ranks.begin(), ranks.begin() + k, rank)};
}

// The fewest of the ranks, largest first, that weigh `need`. Looks at 64, then 256, ... of them: a
// nucleus is small and the vocabulary is not.
template <typename Weight>
Cut CutOfTopP(std::vector<uint32_t>& ranks, uint64_t need, const Weight& weight) {
  Cut cut;
  uint64_t sum = 0;
  size_t n_ordered = 0;
  for (size_t n_try = 64; n_ordered < ranks.size(); n_try *= 4) {
    const size_t end = std::min(n_try, ranks.size());
    const auto begin = ranks.begin() + static_cast<int64_t>(n_ordered);
    const auto last = ranks.begin() + static_cast<int64_t>(end);
    if (end < ranks.size()) std::nth_element(begin, last, ranks.end(), std::greater<>());
    std::sort(begin, last, std::greater<>());
    for (; n_ordered < end; ++n_ordered) {
      const uint32_t rank = ranks[n_ordered];
      cut = {rank, rank == cut.rank ? cut.n_equal + 1 : 1};
      sum += weight(rank);
      if (sum >= need) return cut;
    }
  }
  return cut;
}

}  // namespace

int32_t DrawToken(std::span<const float> logits, const TokenDraw& draw,
                  std::vector<uint32_t>& scratch) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const bool broken =
      std::any_of(logits.begin(), logits.end(), [](float logit) { return !(logit < kInfinity); });
  if (broken || logits.empty()) return kBrokenLogits;
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  const float best = *likeliest;
  if (best == -kInfinity) return kBrokenLogits;
  if (!(draw.temperature > 0)) return static_cast<int32_t>(likeliest - logits.begin());

  const float scale = HalvingsPerLogit(draw.temperature);
  const auto weight_of_rank = [&](uint32_t rank) { return WeightOf(best, LogitOf(rank), scale); };
  const bool has_top_k = draw.top_k > 0 && static_cast<size_t>(draw.top_k) < logits.size();
  std::vector<uint32_t>& ranks = scratch;
  if (has_top_k || draw.top_p < 1.0f) {
    ranks.resize(logits.size());
    std::transform(logits.begin(), logits.end(), ranks.begin(), RankOf);
  }
  Cut cut{.rank = kRankOfNever};
  if (has_top_k) {
    cut = CutOfTopK(ranks, draw.top_k);
    ranks.resize(draw.top_k);
  }
  if (draw.top_p < 1.0f) {
    uint64_t total = 0;
    for (uint32_t rank : ranks) total += weight_of_rank(rank);
    cut = CutOfTopP(ranks, WeightOfShare(total, draw.top_p), weight_of_rank);
  }

  const uint64_t least_weight = LeastWeight(draw.min_p);
  // In the order of the vocabulary; until visit(token, weight) is true.
  const auto for_each_kept = [&](const auto& visit) {
    int64_t n_equal = cut.n_equal;
    for (size_t token = 0; token < logits.size(); ++token) {
      const uint32_t rank = RankOf(logits[token]);
      if (rank < cut.rank || (rank == cut.rank && n_equal-- <= 0)) continue;
      const uint64_t weight = WeightOf(best, logits[token], scale);
      if (weight >= least_weight && visit(static_cast<int32_t>(token), weight)) return;
    }
  };
  uint64_t total = 0;
  for_each_kept([&](int32_t, uint64_t weight) {
    total += weight;
    return false;
  });
  uint64_t left = PlaceOf(draw.random, total);
  int32_t drawn = kBrokenLogits;
  for_each_kept([&](int32_t token, uint64_t weight) {
    drawn = token;
    if (left < weight) return true;
    left -= weight;
    return false;
  });
  return drawn;
}

void CheckArgs(const DrawTokensArgs& args) {
  LH_CHECK(args.logits.rank() == 2 && args.logits.dtype() == DType::kF32);
  LH_CHECK(args.logits.dim(0) > 0 && args.logits.dim(1) > 0);
  LH_CHECK(args.draws != nullptr && args.tokens != nullptr);
}

void DrawTokenOfRow(const DrawTokensArgs& args, int64_t row) {
  std::vector<uint32_t> scratch;
  args.tokens[row] =
      DrawToken({args.logits.Row<float>(row), static_cast<size_t>(args.logits.dim(1))},
                args.draws[row], scratch);
}

}  // namespace longhaul
