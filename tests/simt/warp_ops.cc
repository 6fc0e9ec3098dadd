// The operations in which all 32 lanes of a warp meet: the last lane to come does them for all.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "tests/simt/block.h"

namespace longhaul::simt {
namespace {

float Low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float High(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

}  // namespace

Block::LaneArgs& Block::Meet(WarpOp op, const char* name, WarpWork work, int work_arg,
                             const LaneArgs& args, const Site& site) {
  const int thread = running_->place.thread;
  const int lane = thread % 32;
  Warp& warp = warps_[static_cast<size_t>(thread / 32)];
  if (warp.arrived == 0) {
    warp.op = op;
    warp.name = name;
    warp.site = site;
  } else if (warp.op != op || !SameSite(warp.site, site)) {
    throw Fault{fmt::format(
        "lanes of one warp diverge: this lane is in {} at {}, lanes {:#010x} wait in {} at {}",
        name, ToString(site), warp.arrived, warp.name, ToString(warp.site))};
  }
  warp.lanes[lane] = args;
  warp.arrived |= 1u << lane;
  if (warp.arrived != 0xffffffffu) {
    Wait(name, site);
    return warp.lanes[lane];
  }
  warp.arrived = 0;
  (this->*work)(thread / 32, work_arg);
  for (int other = 0; other < 32; ++other) {
    if (other != lane) MakeRunnable(thread / 32 * 32 + other);
  }
  return warp.lanes[lane];
}

void Block::WorkSync(int warp, int) { clocks_.Tick(warp); }

void Block::WorkShuffle(int warp, int kind) {
  LaneArgs(&lanes)[32] = warps_[static_cast<size_t>(warp)].lanes;
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) values[lane] = lanes[lane].value;
  for (int lane = 0; lane < 32; ++lane) {
    const int arg = lanes[lane].arg;
    int from = lane;
    switch (static_cast<ShuffleKind>(kind)) {
      case ShuffleKind::kIndex:
        from = arg & 31;
        break;
      case ShuffleKind::kXor:
        from = lane ^ arg;
        break;
      case ShuffleKind::kUp:
        from = lane - arg;
        break;
      case ShuffleKind::kDown:
        from = lane + arg;
        break;
    }
    lanes[lane].value = values[from >= 0 && from < 32 ? from : lane];
  }
}

void Block::WorkBallot(int warp, int) {
  LaneArgs(&lanes)[32] = warps_[static_cast<size_t>(warp)].lanes;
  uint64_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= lanes[lane].value << lane;
  for (LaneArgs& lane : lanes) lane.value = votes;
}

void Block::WorkLdMatrix(int warp, int n_matrices_and_transposed) {
  LaneArgs(&lanes)[32] = warps_[static_cast<size_t>(warp)].lanes;
  const int n_matrices = n_matrices_and_transposed / 2;
  const bool transposed = n_matrices_and_transposed % 2 != 0;
  for (int matrix = 0; matrix < n_matrices; ++matrix) {
    uint16_t elements[8][8];
    int64_t rows_of_bank[8][8];  // distinct row addresses of each group of four banks
    int n_rows_of_bank[8] = {};
    for (int row = 0; row < 8; ++row) {
      const int lane = matrix * 8 + row;
      const SharedAddress address = lanes[lane].row;
      try {
        std::memcpy(elements[row], shared_.ReadByWarp(address, lane, warp), 16);
      } catch (const Fault& fault) {
        throw Fault{fmt::format("ldmatrix, address of lane {}: {}", lane, fault.what)};
      }
      const int64_t bank = address.offset / 16 % 8;
      int64_t(&rows)[8] = rows_of_bank[bank];
      int& n_rows = n_rows_of_bank[bank];
      if (std::find(rows, rows + n_rows, address.offset) == rows + n_rows) {
        rows[n_rows++] = address.offset;
      }
    }
    const int ways = *std::max_element(n_rows_of_bank, n_rows_of_bank + 8);
    ++statistics_->n_ldmatrix_phases;
    statistics_->n_ldmatrix_conflicts += ways - 1;
    statistics_->max_ldmatrix_ways = std::max(statistics_->max_ldmatrix_ways, ways);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4;
      const int c = lane % 4 * 2;
      const uint32_t low = transposed ? elements[c][g] : elements[g][c];
      const uint32_t high = transposed ? elements[c + 1][g] : elements[g][c + 1];
      lanes[lane].out[matrix] = low | high << 16;
    }
  }
}

void Block::WorkMma(int warp, int) {
  LaneArgs(&lanes)[32] = warps_[static_cast<size_t>(warp)].lanes;
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int c = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = lanes[lane].a[i];
      a[g + i % 2 * 8][c + i / 2 * 8] = Low(pair);
      a[g + i % 2 * 8][c + i / 2 * 8 + 1] = High(pair);
    }
    for (int i = 0; i < 2; ++i) {
      const uint32_t pair = lanes[lane].b[i];
      b[c + i * 8][g] = Low(pair);
      b[c + i * 8 + 1][g] = High(pair);
    }
  }
  float product[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int col = 0; col < 8; ++col) product[row][col] += a[row][k] * b[k][col];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int c = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) lanes[lane].d[i] += product[g + i / 2 * 8][c + i % 2];
  }
  ++statistics_->n_mma;
}

void SyncWarp(const Site& site) {
  RunningBlock().Meet(Block::WarpOp::kSync, "SyncWarp", &Block::WorkSync, 0, {}, site);
}

uint64_t Shuffle(ShuffleKind kind, uint64_t value, int arg, const Site& site) {
  Block::LaneArgs args;
  args.value = value;
  args.arg = arg;
  return RunningBlock()
      .Meet(Block::WarpOp::kShuffle, "Shuffle", &Block::WorkShuffle, static_cast<int>(kind), args,
            site)
      .value;
}

uint32_t Ballot(bool value, const Site& site) {
  Block::LaneArgs args;
  args.value = value ? 1 : 0;
  return static_cast<uint32_t>(
      RunningBlock()
          .Meet(Block::WarpOp::kBallot, "Ballot", &Block::WorkBallot, 0, args, site)
          .value);
}

void LdMatrix(SharedAddress row, int n_matrices, bool transposed, uint32_t* out, const Site& site) {
  Block::LaneArgs args;
  args.row = row;
  args.out = out;
  RunningBlock().Meet(Block::WarpOp::kLdMatrix, "LdMatrix", &Block::WorkLdMatrix,
                      n_matrices * 2 + (transposed ? 1 : 0), args, site);
}

void MmaBf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, const Site& site) {
  Block::LaneArgs args;
  args.d = d;
  args.a = a;
  args.b[0] = b0;
  args.b[1] = b1;
  RunningBlock().Meet(Block::WarpOp::kMma, "MmaBf16", &Block::WorkMma, 0, args, site);
}

}  // namespace longhaul::simt
