// The primitives of hopper_device.h (include that one) as nvcc compiles them. sm_90a only: other
// architectures do not have these instructions. The emulator's twin is
// tests/simt/include/simt/hopper_device.h.
#pragma once

#include "kernels/cuda/device_nvcc.h"

namespace longhaul::cuda {

template <class T>
LH_DEVICE uint32_t SharedByteAddress(Shared<T> p) {
  return p.address();
}

// ---- Transaction barriers ----

// By one thread, before others use it: FenceProxyAsync() and a barrier.
LH_DEVICE void InitTransactions(Shared<TransactionBarrier> barrier, int n_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.address()), "r"(n_arrivals)
               : "memory");
}
LH_DEVICE void FenceProxyAsync() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// One arrival; what the thread did before is seen by those who wait.
LH_DEVICE void ArriveTransactions(Shared<TransactionBarrier> barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.address()) : "memory");
}
// The same, and the phase lasts until copies have brought n_bytes more.
LH_DEVICE void ArriveExpectingBytes(Shared<TransactionBarrier> barrier, int n_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.address()),
               "r"(n_bytes)
               : "memory");
}
// Until the phase of this parity is over: the running one, or the one before, which is over. A
// barrier that has just been made counts phase -1 (parity 1) as over.
//
// Waits take microseconds. After seconds the kernel stops with an error: one that waits for ever
// would take the device with it.
//
// The loop is inside of the asm statement: written in C++ it cost D = 128 its registers (216 bytes
// of spills, and wgmma one after another).
LH_DEVICE void WaitTransactions(Shared<TransactionBarrier> barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred over, patient;\n"
      ".reg .u32 tries;\n"
      "mov.u32 tries, 0;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@over bra done;\n"
      "add.u32 tries, tries, 1;\n"
      "setp.lt.u32 patient, tries, 0x4000000;\n"
      "@patient bra again;\n"
      "trap;\n"
      "done:\n"
      "}\n" ::"r"(barrier.address()),
      "r"(parity)
      : "memory");
}

// ---- Tensor copies ----

// By one thread: the box of the map at coordinates `at` (innermost first), as 1024-byte aligned
// swizzled rows; elements outside of the tensor become zero. Tells `barrier` the box's bytes when
// they are there.
template <class T>
LH_DEVICE void CopyTensorBox(Shared<T> to, const TensorMap& map, const int (&at)[4],
                             Shared<TransactionBarrier> barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to.address()),
      "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(barrier.address())
      : "memory");
}

// ---- Registers of a warp group: called by all its threads ----
template <int n_registers>
LH_DEVICE void GiveUpRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n_registers));
}
template <int n_registers>
LH_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n_registers));
}

// ---- Products of a warp group: called by all its 128 threads ----

template <class T, int n>
class WgmmaRegisters {
 public:
  static constexpr int kSize = n;
  LH_DEVICE T& operator[](int i) { return values_[i]; }

 private:
  T values_[n];
};

namespace internal {
// Keeps the compiler from moving accesses to the registers across this point.
template <int n>
LH_DEVICE void Pin(WgmmaRegisters<float, n>& registers) {
  LH_UNROLL
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int n>
LH_DEVICE void Pin(WgmmaRegisters<uint32_t, n>& registers) {
  LH_UNROLL
  for (int i = 0; i < n; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}
}  // namespace internal

// Between accesses to these registers and the products that follow.
template <class... Registers>
LH_DEVICE void WgmmaFence(Registers&... registers) {
  (internal::Pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
LH_DEVICE void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most n_pending groups are under way; `registers` are those of the groups that are done.
template <int n_pending, class... Registers>
LH_DEVICE void WgmmaWait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n_pending) : "memory");
  (internal::Pin(registers), ...);
}

#define LH_F8(d, i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define LH_F32(d, i) LH_F8(d, i), LH_F8(d, i + 8), LH_F8(d, i + 16), LH_F8(d, i + 24)
#define LH_NAMES_32                                                                        \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define LH_NAMES_64                                                                           \
  LH_NAMES_32                                                                                 \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d[64, 128] f32 = a[64, 16] b[128, 16]^T (+ d). a and b: DescribeKMajor. Warp w of the group holds
// rows [16 w, 16 w + 16), in the fragments of MmaBf16, eight columns after eight.
LH_DEVICE void WgmmaScores(WgmmaRegisters<float, 64>& d, uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LH_NAMES_64
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : LH_F32(d, 0), LH_F32(d, 32)
      : "l"(a), "l"(b), "r"(accumulate ? 1 : 0));
}

// d[64, 2 n] f32 += a[64, 16] b[16, 2 n]. a: the four registers from `first` on, the fragment of
// MmaBf16; b: DescribeNMajor.
template <int n_weights>
LH_DEVICE void WgmmaValues(WgmmaRegisters<float, 64>& d, WgmmaRegisters<uint32_t, n_weights>& a,
                           int first, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LH_NAMES_64
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
      : LH_F32(d, 0), LH_F32(d, 32)
      : "r"(a[first]), "r"(a[first + 1]), "r"(a[first + 2]), "r"(a[first + 3]), "l"(b));
}
template <int n_weights>
LH_DEVICE void WgmmaValues(WgmmaRegisters<float, 32>& d, WgmmaRegisters<uint32_t, n_weights>& a,
                           int first, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LH_NAMES_32
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
      : LH_F32(d, 0)
      : "r"(a[first]), "r"(a[first + 1]), "r"(a[first + 2]), "r"(a[first + 3]), "l"(b));
}

#undef LH_F8
#undef LH_F32
#undef LH_NAMES_32
#undef LH_NAMES_64

}  // namespace longhaul::cuda
