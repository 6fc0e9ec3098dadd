// One block of simulated threads: a fiber each, run one at a time by Step() until it ends or has to
// wait. Barriers and warp operations are rendezvous: whoever comes last does the work for all.
// Reused from block to block and from launch to launch. Driven by grid.cc.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "simt/core.h"
#include "simt/launch.h"
#include "tests/simt/clocks.h"
#include "tests/simt/device_memory.h"
#include "tests/simt/fiber.h"
#include "tests/simt/random_order.h"
#include "tests/simt/shared_memory.h"

namespace longhaul::simt {

// Counted over launches; see emulator.h.
struct Statistics {
  int64_t n_launches = 0;
  int64_t n_blocks = 0;
  int64_t n_mma = 0;
  int64_t n_ldmatrix_phases = 0;     // of 8 rows of 16 bytes: one pass through the banks at best
  int64_t n_ldmatrix_conflicts = 0;  // further passes because rows share banks
  int max_ldmatrix_ways = 0;         // rows that shared one bank group, at worst
};

class Block {
 public:
  Block() : shared_(&clocks_) {}

  // `launch` differs from launch to launch and is not 0.
  void Begin(uint32_t launch, const LaunchShape& shape, const int (&block)[3],
             const std::function<void()>* body, RandomOrder* order, Statistics* statistics);
  bool done() const { return n_ended_ == shape_.n_threads; }
  // Resumes one thread. False if the block is stuck or a thread made a fault: see fault().
  bool Step();
  // What went wrong, with the kernel's name, the block and the thread.
  const std::string& fault() const { return fault_; }
  // Ends all threads.
  void Abort();

  // ---- Called on the running thread's fiber, by the functions of simt/core.h ----
  const ThreadPlace& place() const { return running_->place; }
  SharedMemory& shared() { return shared_; }
  int smem_bytes() const { return shape_.smem_bytes; }
  RandomOrder& order() { return *order_; }
  void Yield();

  enum class GlobalAccess : uint8_t { kRead, kReadOnly, kWrite, kAtomic };
  std::byte* CheckGlobal(const void* address, int n_bytes, int align_bytes, GlobalAccess access);

  void StartCopy(SharedAddress to, const void* from, bool valid);
  void CommitCopies();
  void WaitForCopies(int n_pending);

  int Barrier(int id, int n_threads, bool value, const char* name, const Site& site);
  void Arrive(int id, int n_threads, const Site& site);

  // What a lane brings to a warp operation, and takes from it.
  struct LaneArgs {
    uint64_t value = 0;
    int arg = 0;
    SharedAddress row;
    float* d = nullptr;
    const uint32_t* a = nullptr;
    uint32_t b[2] = {0, 0};
    uint32_t* out = nullptr;
  };
  enum class WarpOp : uint8_t { kSync, kShuffle, kBallot, kLdMatrix, kMma, kArrive };
  // All lanes of the warp meet; `work` runs once, on [32] lanes' arguments.
  using WarpWork = void (Block::*)(int warp, int arg);
  LaneArgs& Meet(WarpOp op, const char* name, WarpWork work, int work_arg, const LaneArgs& args,
                 const Site& site);
  void WorkSync(int warp, int);
  void WorkShuffle(int warp, int kind);
  void WorkBallot(int warp, int);
  void WorkLdMatrix(int warp, int n_matrices_and_transposed);
  void WorkMma(int warp, int);
  void WorkArrive(int warp, int id_and_threads);

 private:
  struct AsyncCopy {
    SharedAddress to;
    const void* from = nullptr;                   // nullptr: zeros
    std::optional<std::vector<std::byte>> early;  // the source as it was at the start
  };
  struct Thread {
    ThreadPlace place;
    Fiber fiber;
    const char* waits_for = nullptr;  // nullptr: runnable or ended
    Site site;
    bool ended = false;
    std::vector<AsyncCopy> open_copies;              // not yet committed
    std::deque<std::vector<AsyncCopy>> copy_groups;  // committed, oldest first
  };
  struct Warp {
    WarpOp op = WarpOp::kSync;
    const char* name = "";
    Site site;
    uint32_t arrived = 0;
    LaneArgs lanes[32];
  };
  struct BarrierState {
    int n_arrived = 0;
    int n_expected = 0;
    int n_true = 0;
    int result = 0;
    Site site;
    std::vector<int> waiting;         // threads
    std::vector<uint32_t> published;  // clocks of all who came
    uint32_t warps = 0;               // that wait
  };

  void CheckGlobalOrder(const GlobalCell& cell, GlobalAccess access) const;
  int BlockIndex() const;
  void Wait(const char* name, const Site& site);
  void MakeRunnable(int thread);
  void Complete(BarrierState& barrier);
  void CheckBarrier(BarrierState& barrier, int id, int n_threads, const char* name,
                    const Site& site);
  void RunThread(Thread& thread);
  void Land(const AsyncCopy& copy);
  void ReportStuck();
  std::string Where(int thread) const;

  uint32_t launch_ = 0;
  LaunchShape shape_;
  const std::function<void()>* body_ = nullptr;
  RandomOrder* order_ = nullptr;
  Statistics* statistics_ = nullptr;
  Clocks clocks_;
  SharedMemory shared_;
  std::vector<std::unique_ptr<Thread>> threads_;      // grows, never shrinks
  std::vector<std::function<void()>> thread_bodies_;  // [threads_.size()]
  std::vector<Warp> warps_;
  BarrierState barriers_[16];
  std::vector<int> runnable_;
  Thread* running_ = nullptr;
  int n_ended_ = 0;
  bool goes_deep_ = false;  // last runnable first: one warp runs far ahead of the others
  bool aborting_ = false;
  bool has_used_global_atomics_ = false;  // by which it may know that other blocks are done
  std::string fault_;
};

// The block whose thread is running; throws nothing, must not be called from the host.
Block& RunningBlock();
void SetRunningBlock(Block* block);

}  // namespace longhaul::simt
