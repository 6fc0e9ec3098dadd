#include "tests/simt/grid.h"

#include <numeric>
#include <utility>

namespace longhaul::simt {
namespace {

constexpr int kMaxResident = 3;

}  // namespace

std::string Grid::Run(const LaunchShape& shape, const std::function<void()>& body,
                      RandomOrder* order, Statistics* statistics) {
  const int n_blocks = shape.grid[0] * shape.grid[1] * shape.grid[2];
  std::vector<int> todo(static_cast<size_t>(n_blocks));  // taken from the back
  std::iota(todo.begin(), todo.end(), 0);
  for (int i = n_blocks - 1; i > 0; --i) {
    std::swap(todo[static_cast<size_t>(i)], todo[static_cast<size_t>(order->Below(i + 1))]);
  }
  ++launch_;
  ++statistics->n_launches;
  statistics->n_blocks += n_blocks;
  while (blocks_.size() < kMaxResident) blocks_.push_back(std::make_unique<Block>());

  const auto begin_next = [&](Block& block) {
    const int index = todo.back();
    todo.pop_back();
    block.Begin(launch_, shape,
                {index % shape.grid[0], index / shape.grid[0] % shape.grid[1],
                 index / shape.grid[0] / shape.grid[1]},
                &body, order, statistics);
  };
  std::vector<Block*> resident;
  const int n_resident = 1 + order->Below(kMaxResident);
  for (int i = 0; i < n_resident && !todo.empty(); ++i) {
    begin_next(*blocks_[static_cast<size_t>(i)]);
    resident.push_back(blocks_[static_cast<size_t>(i)].get());
  }
  size_t current = 0;
  while (!resident.empty()) {
    if (order->OneIn(64)) {
      current = static_cast<size_t>(order->Below(static_cast<int>(resident.size())));
    }
    Block& block = *resident[current];
    if (!block.Step()) {
      for (Block* each : resident) each->Abort();
      return block.fault();
    }
    if (!block.done()) continue;
    if (!todo.empty()) {
      begin_next(block);
    } else {
      resident.erase(resident.begin() + static_cast<ptrdiff_t>(current));
      current = 0;
    }
  }
  return "";
}

}  // namespace longhaul::simt
