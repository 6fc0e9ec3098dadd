// Drawing a token from a row of logits: top-k, top-p, min-p, and the draw itself, in this order.
// Pure logic on host memory, any thread; shared by the engine's sampler and the host backends. The
// arithmetic is also the device's, which must draw the same token.
//
// Everything behind the first difference of logits is integers: weights are in fixed point, and
// their sums do not depend on an order. Tokens stand in the order of the vocabulary; ties go to the
// lower token.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/args.h"

namespace longhaul {

// Instead of a token: a logit is NaN or +inf, or none is finite.
inline constexpr int32_t kBrokenLogits = -1;

// One token of the row, or kBrokenLogits. -inf = never. scratch: its content does not matter.
int32_t DrawToken(std::span<const float> logits, const TokenDraw& draw,
                  std::vector<uint32_t>& scratch);

// Of a DrawTokens on host memory; rows are independent.
void CheckArgs(const DrawTokensArgs& args);
void DrawTokenOfRow(const DrawTokensArgs& args, int64_t row);

namespace draw_internal {

// Integers in the order of the logits, which are no NaN; -0 is 0.
constexpr uint32_t RankOf(float logit) {
  const uint32_t u = std::bit_cast<uint32_t>(logit + 0.0f);
  return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
constexpr float LogitOf(uint32_t rank) {
  return std::bit_cast<float>((rank & 0x80000000u) != 0 ? rank & 0x7fffffffu : ~rank);
}
inline constexpr uint32_t kRankOfNever = RankOf(-std::numeric_limits<float>::infinity());

// The likeliest token weighs 2^40; a million tokens add up to less than 2^63.
inline constexpr int kWeightBits = 40;

// Halvings of the probability per logit.
constexpr float HalvingsPerLogit(float temperature) {
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::min(kLog2E / static_cast<double>(temperature), kMost));
}

// The relative probability of a token, `best` being the likeliest: 2^-halvings, to 1e-8 of it and
// to 2^-26 of a halving. Zero from 2^-40 on: no draw would ever meet it.
constexpr uint64_t WeightOf(float best, float logit, float halvings_per_logit) {
  constexpr int kFractionBits = 26;
  const float distance = best - logit;
  if (!(distance > 0)) return uint64_t{1} << kWeightBits;
  const float halvings = distance * halvings_per_logit;
  if (!(halvings < static_cast<float>(kWeightBits))) return 0;
  const auto fixed = static_cast<uint32_t>(halvings * float{1 << kFractionBits});
  // 2^-x = 1 - x r(x) for x in [0, 1): r interpolated at six Chebyshev points, in units of 2^-32.
  const uint64_t x = uint64_t{fixed << (32 - kFractionBits)};
  uint64_t r = 5547538 - (x * 493577 >> 32);
  r = 41218952 - (x * r >> 32);
  r = 238367376 - (x * r >> 32);
  r = 1031763206 - (x * r >> 32);
  r = 2977044447 - (x * r >> 32);
  const uint64_t power = (uint64_t{1} << 32) - (x * r >> 32);
  return power << (kWeightBits - 32) >> (fixed >> kFractionBits);
}

// Of all tokens' weight, what top-p must hold.
constexpr uint64_t WeightOfShare(uint64_t total, float top_p) {
  const double share = static_cast<double>(total) * static_cast<double>(top_p);
  return std::clamp<uint64_t>(static_cast<uint64_t>(share), 1, total);
}

// What a token must weigh for min-p.
constexpr uint64_t LeastWeight(float min_p) {
  return static_cast<uint64_t>(min_p * static_cast<float>(uint64_t{1} << kWeightBits));
}

// Where a random number, of 64 bits, falls in [0, total).
constexpr uint64_t PlaceOf(uint64_t random, uint64_t total) {
  const uint64_t low = (random & 0xffffffffu) * (total & 0xffffffffu);
  const uint64_t middle = (random >> 32) * (total & 0xffffffffu) + (low >> 32);
  const uint64_t other = (random & 0xffffffffu) * (total >> 32) + (middle & 0xffffffffu);
  return (random >> 32) * (total >> 32) + (middle >> 32) + (other >> 32);
}

}  // namespace draw_internal
}  // namespace longhaul
