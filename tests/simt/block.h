// One block of simulated threads: a fiber each, run one at a time by Step() until it ends or has to
// wait. Barriers and warp operations are rendezvous: whoever comes last does the work for all.
// Reused from block to block and from launch to launch. Driven by grid.cc.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "simt/core.h"
#include "simt/hopper_core.h"
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
  int64_t n_graph_launches = 0;
  int64_t n_blocks = 0;
  int64_t n_mma = 0;
  int64_t n_ldmatrix_phases = 0;     // of 8 rows of 16 bytes: one pass through the banks at best
  int64_t n_ldmatrix_conflicts = 0;  // further passes because rows share banks
  int max_ldmatrix_ways = 0;         // rows that shared one bank group, at worst
  int64_t n_wgmma = 0;               // of one warp group
  int64_t n_tensor_copies = 0;
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

  void InitTransactions(SharedAddress at, int n_arrivals);
  void ArriveTransactions(SharedAddress at, int n_bytes);
  void WaitTransactions(SharedAddress at, int parity, const Site& site);
  void CopyTensorBox(SharedAddress to, const void* tensor_map, const int (&at)[4],
                     SharedAddress barrier);

  // What a lane brings to a warp operation, and takes from it.
  struct LaneArgs {
    uint64_t value = 0;
    int arg = 0;
    SharedAddress row;
    float* d = nullptr;
    const uint32_t* a = nullptr;
    uint32_t b[2] = {0, 0};
    uint32_t* out = nullptr;
    const ProductArgs* product = nullptr;
  };
  enum class WarpOp : uint8_t {
    kSync,
    kShuffle,
    kBallot,
    kLdMatrix,
    kMma,
    kArrive,
    kRegisters,
    kWgmmaFence,
    kWgmma,
    kWgmmaCommit,
    kWgmmaWait
  };
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
  void WorkRegisters(int warp, int n_and_increases);
  void WorkNothing(int, int) {}
  void WorkProduct(int warp, int);
  void WorkCommit(int warp, int);
  void WorkWait(int warp, int n_pending);

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
  // A product on the way: what it reads and what it will give each lane.
  struct Product {
    ProductArgs lanes[32];
    std::vector<int64_t> reads;  // offsets of 16 bytes
    std::vector<float> result;   // [16, n_columns]
  };
  struct Warp {
    WarpOp op = WarpOp::kSync;
    const char* name = "";
    Site site;
    uint32_t arrived = 0;
    LaneArgs lanes[32];
    int n_registers = 0;  // of each thread
    size_t n_products = 0;
    std::vector<Product> open_products;               // not yet committed
    std::deque<std::vector<Product>> product_groups;  // committed, oldest first
  };
  // What the first warp of a warp group has asked for, which the others must repeat.
  struct GroupProduct {
    Site site;
    int n_columns = 0;
    uint64_t a_descriptor = 0;
    uint64_t b_descriptor = 0;
  };
  struct Transactions {
    int n_arrivals = 0;   // that end a phase
    int n_missing = 0;    // in this one
    int64_t n_bytes = 0;  // expected and not yet here
    int64_t phase = 0;
    int agent = 0;
    std::vector<uint32_t> publishing;  // clocks of those who came in this phase
    std::vector<int> waiting;          // threads
    std::vector<uint32_t> published;   // by the phase before
  };
  struct TensorCopy {
    int64_t to = 0;
    std::vector<const std::byte*> pieces;  // of 16 bytes, in the order of `to`; nullptr: zeros
    int64_t barrier = 0;
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
  void CheckEnd();
  Transactions& FindTransactions(SharedAddress at, bool from_async_proxy);
  void EndPhaseIfDone(Transactions& transactions);
  void LandTensorCopies();
  void LandOneTensorCopy();
  void CheckProduct(int warp) const;
  void CheckGroupProduct(int warp);
  void ReadProductMatrices(int warp, Product& product);
  void FinishProduct(int warp, const Product& product);
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
  std::map<int64_t, Transactions> transactions_;           // by offset
  std::vector<TensorCopy> tensor_copies_;                  // under way
  std::vector<std::vector<GroupProduct>> group_products_;  // [n_warps / 4]
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
