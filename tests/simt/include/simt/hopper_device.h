// The primitives of kernels/cuda/hopper_device.h as the emulator compiles them; what each one does
// is said in kernels/cuda/hopper_device_nvcc.h.
#pragma once

#include "simt/device.h"
#include "simt/hopper_core.h"

namespace longhaul::cuda {

template <class T>
uint32_t SharedByteAddress(Shared<T> p) {
  return static_cast<uint32_t>(p.address().offset);
}

inline void InitTransactions(Shared<TransactionBarrier> barrier, int n_arrivals) {
  simt::InitTransactions(barrier.address(), n_arrivals);
}
inline void FenceProxyAsync() { simt::FenceProxyAsync(); }
inline void ArriveTransactions(Shared<TransactionBarrier> barrier) {
  simt::ArriveTransactions(barrier.address(), -1);
}
inline void ArriveExpectingBytes(Shared<TransactionBarrier> barrier, int n_bytes) {
  simt::ArriveTransactions(barrier.address(), n_bytes);
}
inline void WaitTransactions(Shared<TransactionBarrier> barrier, int parity,
                             const Site& site = Site::Current()) {
  simt::WaitTransactions(barrier.address(), parity, site);
}

template <class T>
void CopyTensorBox(Shared<T> to, const TensorMap& map, const int (&at)[4],
                   Shared<TransactionBarrier> barrier) {
  simt::CopyTensorBox(to.address(), &map, at, barrier.address());
}

template <int n_registers>
void GiveUpRegisters(const Site& site = Site::Current()) {
  simt::SetRegisters(false, n_registers, site);
}
template <int n_registers>
void TakeRegisters(const Site& site = Site::Current()) {
  simt::SetRegisters(true, n_registers, site);
}

template <class T, int n>
class WgmmaRegisters {
 public:
  static constexpr int kSize = n;
  T& operator[](int i) {
    use_.Touch();
    return values_[i];
  }
  // For this header.
  T* values() { return values_; }
  simt::RegisterUse& use() { return use_; }

 private:
  T values_[n];
  simt::RegisterUse use_;
};

// A call site comes last in the other primitives; after a pack there is no room for one.
template <class... Registers>
void WgmmaFence(Registers&... registers) {
  (registers.use().Fence(), ...);
  simt::WgmmaFence({"WgmmaFence", 0});
}
inline void WgmmaCommit(const Site& site = Site::Current()) { simt::WgmmaCommit(site); }
template <int n_pending, class... Registers>
void WgmmaWait(Registers&... registers) {
  simt::WgmmaWait(n_pending, {"WgmmaWait", n_pending});
  if ((registers.use().is_in_product() || ...)) simt::FailRegisters("are not done after this wait");
}

inline void WgmmaScores(WgmmaRegisters<float, 64>& d, uint64_t a, uint64_t b, bool accumulate,
                        const Site& site = Site::Current()) {
  simt::WgmmaProduct({.n_columns = 128,
                      .d = d.values(),
                      .d_use = &d.use(),
                      .accumulates = accumulate,
                      .a_descriptor = a,
                      .b_descriptor = b},
                     site);
}
template <int n_values, int n_weights>
void WgmmaValues(WgmmaRegisters<float, n_values>& d, WgmmaRegisters<uint32_t, n_weights>& a,
                 int first, uint64_t b, const Site& site = Site::Current()) {
  static_assert(n_values == 32 || n_values == 64);
  simt::WgmmaProduct({.n_columns = 2 * n_values,
                      .d = d.values(),
                      .d_use = &d.use(),
                      .a_in_registers = true,
                      .a = a.values() + first,
                      .a_use = &a.use(),
                      .b_descriptor = b,
                      .b_is_n_major = true},
                     site);
}

}  // namespace longhaul::cuda
