// Runs one launch: all blocks of the grid in a shuffled order, up to three at a time, interleaved.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "simt/launch.h"
#include "tests/simt/block.h"
#include "tests/simt/random_order.h"

namespace longhaul::simt {

class Grid {
 public:
  // What the kernel did wrong, or "".
  std::string Run(const LaunchShape& shape, const std::function<void()>& body, RandomOrder* order,
                  Statistics* statistics);

 private:
  uint32_t launch_ = 0;
  std::vector<std::unique_ptr<Block>> blocks_;  // kept for their fibers
};

}  // namespace longhaul::simt
