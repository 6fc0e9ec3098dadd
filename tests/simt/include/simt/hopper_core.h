// What the emulated primitives of Hopper (simt/hopper_device.h) ask of the emulator; see core.h.
#pragma once

#include <exception>

#include "simt/core.h"

namespace longhaul::simt {

[[noreturn]] void FailRegisters(const char* what);

// How the tensor cores stand to the registers of one lane's operand.
class RegisterUse {
 public:
  RegisterUse() = default;
  RegisterUse(const RegisterUse&) = delete;
  RegisterUse& operator=(const RegisterUse&) = delete;
  ~RegisterUse() noexcept(false) {
    if (n_products_ > 0 && std::uncaught_exceptions() == 0) FailRegisters("go out of scope");
  }

  // An access by the thread itself.
  void Touch() {
    if (n_products_ > 0) FailRegisters("are accessed");
    is_fenced_ = false;
  }
  void Fence() {
    if (n_products_ > 0) FailRegisters("are fenced");
    is_fenced_ = true;
  }
  bool is_fenced() const { return is_fenced_; }
  bool is_in_product() const { return n_products_ > 0; }
  void BeginProduct() { ++n_products_; }
  void EndProduct() { --n_products_; }

 private:
  int n_products_ = 0;
  bool is_fenced_ = false;
};

void InitTransactions(SharedAddress barrier, int n_arrivals);
void FenceProxyAsync();
// n_bytes < 0: none are expected.
void ArriveTransactions(SharedAddress barrier, int n_bytes);
void WaitTransactions(SharedAddress barrier, int parity, const Site& site);

void CopyTensorBox(SharedAddress to, const void* tensor_map, const int (&at)[4],
                   SharedAddress barrier);

void SetRegisters(bool increases, int n_registers, const Site& site);

// One product m64nNk16 as a lane gives it.
struct ProductArgs {
  int n_columns = 0;
  float* d = nullptr;  // [n_columns / 2]
  RegisterUse* d_use = nullptr;
  bool accumulates = true;
  bool a_in_registers = false;
  uint64_t a_descriptor = 0;
  const uint32_t* a = nullptr;  // [4]
  RegisterUse* a_use = nullptr;
  uint64_t b_descriptor = 0;
  bool b_is_n_major = false;
};
void WgmmaFence(const Site& site);
void WgmmaProduct(const ProductArgs& args, const Site& site);
void WgmmaCommit(const Site& site);
void WgmmaWait(int n_pending, const Site& site);

}  // namespace longhaul::simt
