// The emulator's source of disorder: one seed, the same order of threads each time.
#pragma once

#include <cstdint>

namespace longhaul::simt {

class RandomOrder {
 public:
  explicit RandomOrder(uint64_t seed) : state_((seed + 1) * 0x9e3779b97f4a7c15u) {}

  uint32_t Next() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  // In [0, n), n < 2^31.
  int Below(int n) { return static_cast<int>((uint64_t{Next()} * static_cast<uint64_t>(n)) >> 32); }
  bool OneIn(int n) { return Below(n) == 0; }

 private:
  uint64_t state_;
};

}  // namespace longhaul::simt
