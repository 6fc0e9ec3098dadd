// Transaction barriers (mbarrier) and tensor copies (cp.async.bulk.tensor) of a simulated block.
// A copy lands at a random step of the block, copies among themselves in any order.
#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "tests/simt/block.h"
#include "tests/simt/tensor_map.h"

namespace longhaul::simt {
namespace {

constexpr int kMaxArrivals = (1 << 20) - 1;   // PTX ISA, "mbarrier: valid ranges"
constexpr int64_t kMaxBytes = (1 << 20) - 1;  // the same
constexpr int kPieceBytes = 16;
constexpr int kSwizzledRowBytes = 128;

}  // namespace

// ---- Transaction barriers ----

void Block::InitTransactions(SharedAddress at, int n_arrivals) {
  if (n_arrivals < 1 || n_arrivals > kMaxArrivals) {
    throw Fault{fmt::format("a transaction barrier of {} arrivals", n_arrivals)};
  }
  shared_.MakeBarrier(at, running_->place.thread);
  const int agent = clocks_.AddAgent();
  if (agent < 0) throw Fault{"more transaction barriers than the emulator can follow"};
  transactions_[at.offset] = {.n_arrivals = n_arrivals,
                              .n_missing = n_arrivals,
                              .agent = agent,
                              .publishing = {},
                              .waiting = {},
                              .published = {}};
}

Block::Transactions& Block::FindTransactions(SharedAddress at, bool from_async_proxy) {
  const auto found = transactions_.find(at.offset);
  if (found == transactions_.end()) {
    throw Fault{fmt::format("no transaction barrier has been made at {}", at.offset)};
  }
  shared_.CheckBarrier(at, running_->place.thread, from_async_proxy);
  return found->second;
}

void Block::ArriveTransactions(SharedAddress at, int n_bytes) {
  Transactions& transactions = FindTransactions(at, /*from_async_proxy=*/false);
  if (n_bytes > kMaxBytes || transactions.n_bytes + n_bytes > kMaxBytes) {
    throw Fault{fmt::format("the barrier at {} expects more than {} bytes", at.offset, kMaxBytes)};
  }
  if (transactions.n_missing == 0) {
    throw Fault{fmt::format("more than {} arrivals in one phase of the barrier at {}",
                            transactions.n_arrivals, at.offset)};
  }
  const int warp = running_->place.thread / 32;
  clocks_.Publish(warp, transactions.publishing);
  clocks_.Tick(warp);
  if (n_bytes > 0) transactions.n_bytes += n_bytes;
  --transactions.n_missing;
  EndPhaseIfDone(transactions);
}

void Block::EndPhaseIfDone(Transactions& transactions) {
  if (transactions.n_missing > 0 || transactions.n_bytes != 0) return;
  clocks_.Publish(transactions.agent, transactions.publishing);
  clocks_.Tick(transactions.agent);
  transactions.published = std::exchange(transactions.publishing, {});
  transactions.n_missing = transactions.n_arrivals;
  ++transactions.phase;
  for (const int thread : transactions.waiting) {
    clocks_.Learn(thread / 32, transactions.published);
    MakeRunnable(thread);
  }
  transactions.waiting.clear();
}

void Block::WaitTransactions(SharedAddress at, int parity, const Site& site) {
  if (order_->OneIn(4)) Yield();
  Transactions& transactions = FindTransactions(at, /*from_async_proxy=*/false);
  const int thread = running_->place.thread;
  if (transactions.phase % 2 != parity) {
    clocks_.Learn(thread / 32, transactions.published);
    return;
  }
  transactions.waiting.push_back(thread);
  Wait("WaitTransactions", site);
}

// ---- Tensor copies ----

void Block::CopyTensorBox(SharedAddress to, const void* tensor_map, const int (&at)[4],
                          SharedAddress barrier) {
  EncodedTensorMap map;
  std::memcpy(&map, tensor_map, sizeof(map));
  if (map.magic != EncodedTensorMap::kMagic) throw Fault{"a tensor map that nobody has made"};
  if (map.rank != 4) throw Fault{fmt::format("a copy of rank 4 by a map of rank {}", map.rank)};
  FindTransactions(barrier, /*from_async_proxy=*/true);
  const int row_pieces = map.box[0] * 2 / kPieceBytes;
  if (row_pieces * kPieceBytes != kSwizzledRowBytes) {
    throw Fault{"only tensor copies of rows of 128 bytes are emulated"};
  }
  const int n_rows = map.box[1] * map.box[2] * map.box[3];
  const int n_bytes = n_rows * kSwizzledRowBytes;
  shared_.StartTensorCopy(to, n_bytes, running_->place.thread);
  TensorCopy copy = {.to = to.offset, .pieces = {}, .barrier = barrier.offset};
  copy.pieces.assign(static_cast<size_t>(n_rows * row_pieces), nullptr);
  for (int row = 0; row < n_rows; ++row) {
    const int64_t index[4] = {at[0], at[1] + row % map.box[1],
                              at[2] + row / map.box[1] % map.box[2],
                              at[3] + row / map.box[1] / map.box[2]};
    const std::byte* source = map.base + index[0] * 2;
    bool is_inside = true;
    for (int axis = 1; axis < 4; ++axis) {
      source += index[axis] * map.stride_bytes[axis];
      is_inside = is_inside && index[axis] >= 0 && index[axis] < int64_t{map.sizes[axis]};
    }
    for (int piece = 0; is_inside && piece < row_pieces; ++piece) {
      const int64_t column = index[0] + piece * 8;
      if (column < 0 || column + 8 > int64_t{map.sizes[0]}) continue;
      copy.pieces[static_cast<size_t>(row * row_pieces + (piece ^ row % 8))] = CheckGlobal(
          source + piece * kPieceBytes, kPieceBytes, kPieceBytes, GlobalAccess::kReadOnly);
    }
  }
  ++statistics_->n_tensor_copies;
  tensor_copies_.push_back(std::move(copy));
}

void Block::LandTensorCopies() {
  while (!tensor_copies_.empty() && (runnable_.empty() || order_->OneIn(8))) {
    try {
      LandOneTensorCopy();
    } catch (const Fault& fault) {
      fault_ = fmt::format("kernel {}, a tensor copy: {}", shape_.name, fault.what);
      return;
    }
  }
}

void Block::LandOneTensorCopy() {
  const size_t pick = static_cast<size_t>(order_->Below(static_cast<int>(tensor_copies_.size())));
  const TensorCopy copy = std::move(tensor_copies_[pick]);
  tensor_copies_.erase(tensor_copies_.begin() + static_cast<ptrdiff_t>(pick));
  Transactions& transactions = transactions_.at(copy.barrier);
  const int64_t n_bytes = static_cast<int64_t>(copy.pieces.size()) * kPieceBytes;
  for (size_t i = 0; i < copy.pieces.size(); ++i) {
    shared_.LandTensorCopy(copy.to + static_cast<int64_t>(i) * kPieceBytes, transactions.agent,
                           copy.pieces[i]);
  }
  transactions.n_bytes -= n_bytes;
  if (transactions.n_bytes < -kMaxBytes) {
    throw Fault{fmt::format("brings the barrier at {} more bytes than it can count", copy.barrier)};
  }
  EndPhaseIfDone(transactions);
}

// ---- Functions of simt/hopper_core.h ----

void InitTransactions(SharedAddress barrier, int n_arrivals) {
  RunningBlock().InitTransactions(barrier, n_arrivals);
}
void FenceProxyAsync() {
  Block& block = RunningBlock();
  block.shared().FenceProxy(block.place().thread);
}
void ArriveTransactions(SharedAddress barrier, int n_bytes) {
  RunningBlock().ArriveTransactions(barrier, n_bytes);
}
void WaitTransactions(SharedAddress barrier, int parity, const Site& site) {
  RunningBlock().WaitTransactions(barrier, parity, site);
}
void CopyTensorBox(SharedAddress to, const void* tensor_map, const int (&at)[4],
                   SharedAddress barrier) {
  RunningBlock().CopyTensorBox(to, tensor_map, at, barrier);
}

}  // namespace longhaul::simt
