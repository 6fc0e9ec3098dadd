#include "tests/simt/block.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "kernels/base/check.h"

namespace longhaul::simt {
namespace {

struct Aborted {};  // unwinds a thread of a block that has failed

// Elements of one byte (flags, fp8) share a cell; all others fill theirs.
uint8_t BytesOfCell(const void* address, int n_bytes) {
  if (n_bytes >= kGlobalCellBytes) return 3;
  return reinterpret_cast<uintptr_t>(address) % kGlobalCellBytes == 0 ? 1 : 2;
}

// What each thread of a kernel of one block per multiprocessor starts with. Warps of the block may
// hand them over, but it gets no others.
int RegistersAtLaunch(int n_threads) {
  constexpr int kRegistersOfMultiprocessor = 65536;
  return std::min(kRegistersOfMultiprocessor / n_threads / 8 * 8, 248);
}

// The process is one device that runs one thread at a time.
Block* running_block = nullptr;

}  // namespace

std::string ToString(const Site& site) {
  const std::string_view file = site.file;
  return fmt::format("{}:{}", file.substr(file.find_last_of('/') + 1), site.line);
}
bool SameSite(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

Block& RunningBlock() {
  LH_CHECK(running_block != nullptr);
  return *running_block;
}
void SetRunningBlock(Block* block) { running_block = block; }

void Block::Begin(uint32_t launch, const LaunchShape& shape, const int (&block)[3],
                  const std::function<void()>* body, RandomOrder* order, Statistics* statistics) {
  launch_ = launch;
  shape_ = shape;
  body_ = body;
  order_ = order;
  statistics_ = statistics;
  const size_t n_threads = static_cast<size_t>(shape.n_threads);
  while (threads_.size() < n_threads) {
    threads_.push_back(std::make_unique<Thread>());
    Thread* thread = threads_.back().get();
    thread_bodies_.push_back([this, thread] { RunThread(*thread); });
  }
  warps_ = std::vector<Warp>(n_threads / 32);
  for (Warp& warp : warps_) warp.n_registers = RegistersAtLaunch(shape.n_threads);
  transactions_.clear();
  tensor_copies_.clear();
  group_products_.assign((warps_.size() + 3) / 4, {});
  for (BarrierState& barrier : barriers_) barrier = BarrierState();
  clocks_.Reset(shape.n_threads / 32);
  shared_.Reset(shape.smem_bytes);
  runnable_.clear();
  n_ended_ = 0;
  aborting_ = false;
  has_used_global_atomics_ = false;
  fault_.clear();
  goes_deep_ = order->OneIn(2);
  for (int i = shape.n_threads - 1; i >= 0; --i) {
    Thread& thread = *threads_[static_cast<size_t>(i)];
    thread.place.thread = i;
    thread.place.n_threads = shape.n_threads;
    for (int axis = 0; axis < 3; ++axis) {
      thread.place.block[axis] = block[axis];
      thread.place.grid[axis] = shape.grid[axis];
    }
    thread.waits_for = nullptr;
    thread.ended = false;
    thread.open_copies.clear();
    thread.copy_groups.clear();
    thread.fiber.Begin(&thread_bodies_[static_cast<size_t>(i)]);
    runnable_.push_back(i);
  }
}

void Block::RunThread(Thread& thread) {
  if (!aborting_) {
    try {
      (*body_)();
      CheckEnd();
    } catch (const Fault& fault) {
      fault_ =
          fmt::format("kernel {}, {}: {}", shape_.name, Where(thread.place.thread), fault.what);
    } catch (const Aborted&) {
    }
  }
  thread.ended = true;
  ++n_ended_;
}

// Called by a thread before it ends.
void Block::CheckEnd() {
  const Warp& warp = warps_[static_cast<size_t>(running_->place.thread / 32)];
  if (!warp.open_products.empty() || !warp.product_groups.empty()) {
    throw Fault{"ends while a wgmma is under way (not waited for)"};
  }
  if (n_ended_ + 1 < shape_.n_threads) return;
  if (!tensor_copies_.empty()) throw Fault{"ends while a tensor copy is under way"};
  for (int id = 0; id < 16; ++id) {
    if (barriers_[id].n_arrived == 0) continue;
    throw Fault{fmt::format("ends with {} arrivals at barrier {} that nobody waits for",
                            barriers_[id].n_arrived, id)};
  }
  int n_registers = 0;
  for (const Warp& each : warps_) n_registers += 32 * each.n_registers;
  const int n_given = shape_.n_threads * RegistersAtLaunch(shape_.n_threads);
  if (n_registers > n_given) {
    throw Fault{fmt::format("the warps take {} registers, the block has {}: they wait for ever",
                            n_registers, n_given)};
  }
}

bool Block::Step() {
  LandTensorCopies();
  if (!fault_.empty()) return false;
  if (runnable_.empty()) {
    ReportStuck();
    return false;
  }
  size_t pick = runnable_.size() - 1;
  if (!goes_deep_ || order_->OneIn(16)) {
    pick = static_cast<size_t>(order_->Below(static_cast<int>(runnable_.size())));
  }
  running_ = threads_[static_cast<size_t>(runnable_[pick])].get();
  runnable_[pick] = runnable_.back();
  runnable_.pop_back();
  SetRunningBlock(this);
  running_->fiber.Resume();
  SetRunningBlock(nullptr);
  return fault_.empty();
}

void Block::Abort() {
  aborting_ = true;
  SetRunningBlock(this);
  for (int i = 0; i < shape_.n_threads; ++i) {
    running_ = threads_[static_cast<size_t>(i)].get();
    if (!running_->ended) running_->fiber.Resume();
  }
  SetRunningBlock(nullptr);
}

std::string Block::Where(int thread) const {
  const ThreadPlace& place = threads_[static_cast<size_t>(thread)]->place;
  return fmt::format("block ({}, {}, {}), thread {} (warp {}, lane {})", place.block[0],
                     place.block[1], place.block[2], thread, thread / 32, thread % 32);
}

// Who waits where, in ranges of threads.
void Block::ReportStuck() {
  std::string who;
  for (int begin = 0; begin < shape_.n_threads;) {
    const auto state = [this](int i) -> std::string {
      const Thread& thread = *threads_[static_cast<size_t>(i)];
      if (thread.ended) return "have ended";
      return fmt::format("wait in {} at {}", thread.waits_for, ToString(thread.site));
    };
    const std::string first = state(begin);
    int end = begin + 1;
    while (end < shape_.n_threads && state(end) == first) ++end;
    if (who.size() < 800) {
      who += fmt::format("{}threads [{}, {}) {}", who.empty() ? "" : "; ", begin, end, first);
    }
    begin = end;
  }
  const ThreadPlace& place = threads_[0]->place;
  fault_ = fmt::format("kernel {}, block ({}, {}, {}): divergent threads wait for ever: {}",
                       shape_.name, place.block[0], place.block[1], place.block[2], who);
}

void Block::MakeRunnable(int thread) {
  threads_[static_cast<size_t>(thread)]->waits_for = nullptr;
  runnable_.push_back(thread);
}

void Block::Wait(const char* name, const Site& site) {
  Thread& self = *running_;
  self.waits_for = name;
  self.site = site;
  self.fiber.Suspend();
  if (aborting_) throw Aborted();
}

void Block::Yield() {
  runnable_.push_back(running_->place.thread);
  running_->fiber.Suspend();
  if (aborting_) throw Aborted();
}

// ---- Global memory ----

std::byte* Block::CheckGlobal(const void* address, int n_bytes, int align_bytes,
                              GlobalAccess access) {
  const bool is_read = access == GlobalAccess::kRead || access == GlobalAccess::kReadOnly;
  DeviceMemory& memory = DeviceMemory::Get();
  std::byte* storage = memory.Checked(address, n_bytes, align_bytes, is_read ? "reads" : "writes");
  const int thread = running_->place.thread;
  const GlobalCell written = {.launch = launch_,
                              .block = BlockIndex(),
                              .clock = clocks_.Now(thread / 32),
                              .thread = static_cast<uint16_t>(thread),
                              .bytes = BytesOfCell(address, n_bytes),
                              .is_atomic = access == GlobalAccess::kAtomic};
  GlobalCell* cells = memory.Cells(address);
  for (int i = 0; i < (n_bytes + kGlobalCellBytes - 1) / kGlobalCellBytes; ++i) {
    if (cells[i].launch == launch_ && (cells[i].bytes & written.bytes) != 0) {
      CheckGlobalOrder(cells[i], access);
    }
    if (!is_read) cells[i] = written;
  }
  if (access == GlobalAccess::kAtomic) has_used_global_atomics_ = true;
  return storage;
}

// Two accesses of which the earlier is a write of this launch.
void Block::CheckGlobalOrder(const GlobalCell& cell, GlobalAccess access) const {
  if (access == GlobalAccess::kReadOnly) {
    throw Fault{
        fmt::format("reads through the read-only path what thread {} of block {} wrote in "
                    "the same launch",
                    cell.thread, cell.block)};
  }
  if (cell.is_atomic) return;  // how blocks talk to each other
  const int thread = running_->place.thread;
  const char* action = access == GlobalAccess::kRead ? "reads" : "writes";
  if (cell.block != BlockIndex()) {
    if (has_used_global_atomics_) return;
    throw Fault{fmt::format("race in global memory: {} what block {} of the same launch wrote",
                            action, cell.block)};
  }
  if (cell.thread != thread && !clocks_.Ordered(thread / 32, cell.thread / 32, cell.clock)) {
    throw Fault{fmt::format(
        "race in global memory: {} what thread {} of the block wrote, with no barrier between",
        action, cell.thread)};
  }
}

int Block::BlockIndex() const {
  const ThreadPlace& place = running_->place;
  return (place.block[2] * place.grid[1] + place.block[1]) * place.grid[0] + place.block[0];
}

// ---- Asynchronous copies ----

void Block::StartCopy(SharedAddress to, const void* from, bool valid) {
  AsyncCopy copy{.to = to, .from = valid ? from : nullptr, .early = {}};
  const std::byte* source = valid ? CheckGlobal(from, 16, 16, GlobalAccess::kRead) : nullptr;
  shared_.StartCopy(to, running_->place.thread);
  if (valid && order_->OneIn(2)) copy.early.emplace(source, source + 16);
  running_->open_copies.push_back(std::move(copy));
}

void Block::CommitCopies() {
  running_->copy_groups.push_back(std::move(running_->open_copies));
  running_->open_copies.clear();
}

void Block::WaitForCopies(int n_pending) {
  while (running_->copy_groups.size() > static_cast<size_t>(n_pending)) {
    for (const AsyncCopy& copy : running_->copy_groups.front()) Land(copy);
    running_->copy_groups.pop_front();
  }
}

void Block::Land(const AsyncCopy& copy) {
  const void* from = nullptr;
  if (copy.early) {
    from = copy.early->data();
  } else if (copy.from != nullptr) {
    from = CheckGlobal(copy.from, 16, 16, GlobalAccess::kRead);
  }
  shared_.LandCopy(copy.to, running_->place.thread, from);
}

// ---- Barriers ----

void Block::CheckBarrier(BarrierState& barrier, int id, int n_threads, const char* name,
                         const Site& site) {
  if (barrier.n_arrived == 0) {
    barrier.n_expected = n_threads;
    barrier.n_true = 0;
    barrier.site = site;
    barrier.published.clear();
    barrier.warps = 0;
    return;
  }
  if (barrier.n_expected != n_threads) {
    throw Fault{fmt::format("{} at {} for {} threads, but others wait at barrier {} for {}", name,
                            ToString(site), n_threads, id, barrier.n_expected)};
  }
  if (id == 0 && !SameSite(barrier.site, site)) {
    throw Fault{fmt::format("divergent barriers: this thread is at {}, others wait at {}",
                            ToString(site), ToString(barrier.site))};
  }
}

int Block::Barrier(int id, int n_threads, bool value, const char* name, const Site& site) {
  BarrierState& barrier = barriers_[id];
  CheckBarrier(barrier, id, n_threads, name, site);
  const int thread = running_->place.thread;
  barrier.warps |= 1u << (thread / 32);
  ++barrier.n_arrived;
  barrier.n_true += value ? 1 : 0;
  if (barrier.n_arrived == barrier.n_expected) {
    Complete(barrier);
  } else {
    barrier.waiting.push_back(thread);
    Wait(name, site);
  }
  return barrier.result;
}

void Block::Complete(BarrierState& barrier) {
  for (int warp = 0; warp < clocks_.n_warps(); ++warp) {
    if ((barrier.warps >> warp & 1u) != 0) clocks_.Publish(warp, barrier.published);
  }
  for (int warp = 0; warp < clocks_.n_warps(); ++warp) {
    if ((barrier.warps >> warp & 1u) == 0) continue;
    clocks_.Learn(warp, barrier.published);
    clocks_.Tick(warp);
  }
  for (const int thread : barrier.waiting) MakeRunnable(thread);
  barrier.waiting.clear();
  barrier.result = barrier.n_true;
  barrier.n_arrived = 0;
}

void Block::Arrive(int id, int n_threads, const Site& site) {
  Meet(WarpOp::kArrive, "ArriveNamed", &Block::WorkArrive, id * 2048 + n_threads, LaneArgs(), site);
}

void Block::WorkArrive(int warp, int id_and_threads) {
  BarrierState& barrier = barriers_[id_and_threads / 2048];
  CheckBarrier(barrier, id_and_threads / 2048, id_and_threads % 2048, "ArriveNamed",
               warps_[static_cast<size_t>(warp)].site);
  clocks_.Publish(warp, barrier.published);
  clocks_.Tick(warp);
  barrier.n_arrived += 32;
  if (barrier.n_arrived >= barrier.n_expected) Complete(barrier);
}

// ---- Functions of simt/core.h that are not about a warp ----

const ThreadPlace& Here() { return RunningBlock().place(); }

const std::byte* CheckedGlobalRead(const void* address, int n_bytes, int align_bytes) {
  return RunningBlock().CheckGlobal(address, n_bytes, align_bytes, Block::GlobalAccess::kRead);
}
const std::byte* CheckedGlobalReadOnly(const void* address, int n_bytes, int align_bytes) {
  return RunningBlock().CheckGlobal(address, n_bytes, align_bytes, Block::GlobalAccess::kReadOnly);
}
std::byte* CheckedGlobalWrite(void* address, int n_bytes, int align_bytes) {
  return RunningBlock().CheckGlobal(address, n_bytes, align_bytes, Block::GlobalAccess::kWrite);
}
std::byte* CheckedGlobalAtomic(void* address, int n_bytes, int align_bytes) {
  Block& block = RunningBlock();
  if (block.order().OneIn(4)) block.Yield();
  return block.CheckGlobal(address, n_bytes, align_bytes, Block::GlobalAccess::kAtomic);
}

void CheckCarve(int64_t end_bytes) {
  if (end_bytes > RunningBlock().smem_bytes()) {
    throw Fault{fmt::format("carves {} bytes of shared memory, the launch gave {}", end_bytes,
                            RunningBlock().smem_bytes())};
  }
}
void ReadShared(SharedAddress from, int n_bytes, int align_bytes, void* to) {
  Block& block = RunningBlock();
  block.shared().Read(from, n_bytes, align_bytes, block.place().thread, to);
}
void WriteShared(SharedAddress to, int n_bytes, int align_bytes, const void* from) {
  Block& block = RunningBlock();
  block.shared().Write(to, n_bytes, align_bytes, block.place().thread, from);
}
std::byte* CheckedSharedAtomic(SharedAddress at, int n_bytes, int align_bytes) {
  Block& block = RunningBlock();
  return block.shared().Atomic(at, n_bytes, align_bytes, block.place().thread);
}

void CopyAsync16(SharedAddress to, const void* from, bool valid) {
  RunningBlock().StartCopy(to, from, valid);
}
void CopyAsyncCommit() { RunningBlock().CommitCopies(); }
void CopyAsyncWait(int n_pending) { RunningBlock().WaitForCopies(n_pending); }

int SyncThreads(bool value, const Site& site) {
  Block& block = RunningBlock();
  return block.Barrier(0, block.place().n_threads, value, "SyncThreads", site);
}
void SyncNamed(int id, int n_threads, const Site& site) {
  if (id < 1 || id > 15 || n_threads % 32 != 0 || n_threads <= 0) {
    throw Fault{
        fmt::format("SyncNamed({}, {}): barriers are 1 to 15, of whole warps", id, n_threads)};
  }
  RunningBlock().Barrier(id, n_threads, false, "SyncNamed", site);
}
void ArriveNamed(int id, int n_threads, const Site& site) {
  if (id < 1 || id > 15 || n_threads % 32 != 0 || n_threads <= 0) {
    throw Fault{
        fmt::format("ArriveNamed({}, {}): barriers are 1 to 15, of whole warps", id, n_threads)};
  }
  RunningBlock().Arrive(id, n_threads, site);
}

}  // namespace longhaul::simt
