// WorkLeft: how long the prompts that are still to be asked will take, from those that were: what a
// prompt costs depends on its length and its policy. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

namespace longhaul::eval {

class WorkLeft {
 public:
  // One prompt more is to be asked under the policy of this number.
  void Add(size_t policy, int64_t length_tokens) { ++to_ask_[{policy, length_tokens}]; }
  // One of them was asked.
  void Done(size_t policy, int64_t length_tokens, double seconds);

  // Of one prompt; nothing before any was asked.
  std::optional<double> PromptSeconds(size_t policy, int64_t length_tokens) const;
  // Of all that are left.
  std::optional<double> Seconds() const;

 private:
  struct Asked {
    double seconds = 0;
    int64_t n = 0;
    double Mean() const { return seconds / static_cast<double>(n); }
  };

  // From what one policy took, at this length or at others; nothing where it took nothing.
  static std::optional<double> Extrapolated(const std::map<int64_t, Asked>& asked,
                                            int64_t length_tokens);

  std::map<std::pair<size_t, int64_t>, int64_t> to_ask_;
  std::map<size_t, std::map<int64_t, Asked>> asked_;  // by policy and length
};

}  // namespace longhaul::eval
