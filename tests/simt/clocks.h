// Who has seen whose shared memory accesses: one vector clock per warp. A warp's own clock ticks at
// every point that orders its lanes (SyncWarp and barriers), so two accesses of one warp are
// ordered when their clocks differ; accesses of two warps are ordered when the later warp's row
// knows the earlier one's clock, which barriers exchange. Exact for barriers of whole warps.
//
// Tensor copies run beside all warps: what arrives at one transaction barrier is an agent of its
// own after the warps, whose clock ticks with each phase of the barrier and is passed on by it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace longhaul::simt {

class Clocks {
 public:
  static constexpr int kMaxAgents = 32;

  void Reset(int n_warps) {
    n_warps_ = n_agents_ = n_warps;
    known_.assign(size_t{kMaxAgents} * kMaxAgents, 0);
    for (int w = 0; w < kMaxAgents; ++w) At(w, w) = 1;
  }
  int n_warps() const { return n_warps_; }
  // One more agent, or -1 if there are too many.
  int AddAgent() { return n_agents_ < kMaxAgents ? n_agents_++ : -1; }
  uint32_t Now(int warp) const { return known_[Index(warp, warp)]; }
  // True if everything that `other` did up to its clock `then` comes before what `warp` does now.
  bool Ordered(int warp, int other, uint32_t then) const {
    return warp == other ? then < Now(warp) : then <= known_[Index(warp, other)];
  }

  void Tick(int warp) { ++At(warp, warp); }
  // Adds what `warp` knows and has done to `published` ([n_agents], starts empty).
  void Publish(int warp, std::vector<uint32_t>& published) const {
    published.resize(static_cast<size_t>(n_agents_), 0);
    for (int w = 0; w < n_agents_; ++w) {
      uint32_t& clock = published[static_cast<size_t>(w)];
      clock = std::max(clock, known_[Index(warp, w)]);
    }
  }
  void Learn(int warp, const std::vector<uint32_t>& published) {
    for (size_t w = 0; w < published.size(); ++w) {
      const int other = static_cast<int>(w);
      if (other != warp) At(warp, other) = std::max(At(warp, other), published[w]);
    }
  }

 private:
  size_t Index(int warp, int other) const {
    return static_cast<size_t>(warp) * kMaxAgents + static_cast<size_t>(other);
  }
  uint32_t& At(int warp, int other) { return known_[Index(warp, other)]; }

  int n_warps_ = 0;
  int n_agents_ = 0;
  // [kMaxAgents, kMaxAgents]: row = who knows; the diagonal is the own clock
  std::vector<uint32_t> known_;
};

}  // namespace longhaul::simt
