#include "server/eval/work_left.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace longhaul::eval {
namespace {

// Between linear layers (1) and dense attention (2), until two lengths tell.
constexpr double kGuessedExponent = 1.5;

}  // namespace

void WorkLeft::Done(size_t policy, int64_t length_tokens, double seconds) {
  --to_ask_[{policy, length_tokens}];
  Asked& asked = asked_[policy][length_tokens];
  asked.seconds += seconds;
  ++asked.n;
}

std::optional<double> WorkLeft::Extrapolated(const std::map<int64_t, Asked>& asked,
                                             int64_t length_tokens) {
  if (asked.empty()) return std::nullopt;
  const auto at = asked.find(length_tokens);
  if (at != asked.end()) return at->second.Mean();
  // From the next shorter length on, or down from the shortest, as seconds ~ tokens^exponent.
  auto from = asked.lower_bound(length_tokens);
  if (from != asked.begin()) --from;
  double exponent = kGuessedExponent;
  if (from != asked.begin()) {
    const auto before = std::prev(from);
    const double ratio = static_cast<double>(from->first) / static_cast<double>(before->first);
    exponent = std::log(from->second.Mean() / before->second.Mean()) / std::log(ratio);
    exponent = std::isfinite(exponent) ? std::clamp(exponent, 0.5, 2.0) : kGuessedExponent;
  }
  const double ratio = static_cast<double>(length_tokens) / static_cast<double>(from->first);
  return from->second.Mean() * std::pow(ratio, exponent);
}

std::optional<double> WorkLeft::PromptSeconds(size_t policy, int64_t length_tokens) const {
  const auto own = asked_.find(policy);
  if (own != asked_.end()) return Extrapolated(own->second, length_tokens);
  double sum = 0;
  for (const auto& [other, asked] : asked_) sum += *Extrapolated(asked, length_tokens);
  if (asked_.empty()) return std::nullopt;
  return sum / static_cast<double>(asked_.size());
}

std::optional<double> WorkLeft::Seconds() const {
  if (asked_.empty()) return std::nullopt;
  double seconds = 0;
  for (const auto& [kind, n] : to_ask_) {
    if (n > 0) seconds += static_cast<double>(n) * *PromptSeconds(kind.first, kind.second);
  }
  return seconds;
}

}  // namespace longhaul::eval
