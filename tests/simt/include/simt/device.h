// The primitives of kernels/cuda/device.h as the emulator compiles them: the same names and the
// same meaning in plain C++, with a check on every access. What each one does is said in
// kernels/cuda/device_nvcc.h. Where that has a pointer, this has an address that only the checked
// functions of simt/core.h follow.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/base/dtype.h"
#include "simt/core.h"

#define LH_DEVICE inline
#define LH_HOST_DEVICE inline
#define LH_GRID_CONSTANT
#define LH_UNROLL
#define LH_UNROLL_BY_TWO
#define LH_KERNEL(max_threads, min_blocks) void

namespace longhaul::cuda {

using simt::Site;

inline int ThreadId() { return simt::Here().thread; }
inline int LaneId() { return simt::Here().thread % 32; }
inline int WarpId() { return simt::Here().thread / 32; }
inline int BlockThreads() { return simt::Here().n_threads; }
inline int BlockX() { return simt::Here().block[0]; }
inline int BlockY() { return simt::Here().block[1]; }
inline int BlockZ() { return simt::Here().block[2]; }
inline int GridX() { return simt::Here().grid[0]; }
inline int GridY() { return simt::Here().grid[1]; }
inline int GridZ() { return simt::Here().grid[2]; }

namespace internal {

inline void Read(const void* address, int n_bytes, int align_bytes, void* to) {
  std::memcpy(to, simt::CheckedGlobalRead(address, n_bytes, align_bytes),
              static_cast<size_t>(n_bytes));
}
inline void Read(simt::SharedAddress address, int n_bytes, int align_bytes, void* to) {
  simt::ReadShared(address, n_bytes, align_bytes, to);
}
inline void Write(void* address, int n_bytes, int align_bytes, const void* from) {
  std::memcpy(simt::CheckedGlobalWrite(address, n_bytes, align_bytes), from,
              static_cast<size_t>(n_bytes));
}
inline void Write(simt::SharedAddress address, int n_bytes, int align_bytes, const void* from) {
  simt::WriteShared(address, n_bytes, align_bytes, from);
}

template <class V, class Address>
V LoadAt(Address address, int align_bytes) {
  static_assert(std::is_trivially_copyable_v<V>);
  std::remove_const_t<V> value;
  Read(address, sizeof(V), align_bytes, &value);
  return value;
}
template <class V, class Address>
void StoreAt(Address address, const V& value, int align_bytes) {
  static_assert(std::is_trivially_copyable_v<V>);
  Write(address, sizeof(V), align_bytes, &value);
}

// What indexing gives: reads or writes at once, and only as a temporary, so that `auto x = p[i]`,
// which would read later than the kernel says, does not compile into anything useful.
template <class T, class Address>
class Element {
 public:
  explicit Element(Address address) : address_(address) {}
  Element(const Element&) = delete;
  operator T() const&& { return Get(); }
  void operator=(const T& value) && { Set(value); }
  void operator=(Element&& other) && { Set(other.Get()); }
  void operator+=(const T& value) && { Set(Get() + value); }
  void operator-=(const T& value) && { Set(Get() - value); }
  void operator*=(const T& value) && { Set(Get() * value); }
  void operator|=(const T& value) && { Set(Get() | value); }

 private:
  T Get() const { return LoadAt<T>(address_, alignof(T)); }
  void Set(const T& value) { StoreAt<T>(address_, value, alignof(T)); }
  Address address_;
};

template <class T, class Address>
decltype(auto) At(Address address) {
  if constexpr (std::is_const_v<T>) {
    return LoadAt<std::remove_const_t<T>>(address, alignof(T));
  } else {
    return Element<T, Address>(address);
  }
}

}  // namespace internal

template <class T>
class Global {
 public:
  Global() = default;
  Global(T* pointer) : pointer_(pointer) {}
  template <class U>
  requires std::is_same_v<const U, T> Global(Global<U> other) : pointer_(other.pointer()) {}

  decltype(auto) operator[](int64_t i) const {
    if constexpr (std::is_const_v<T>) {
      return internal::At<T>(static_cast<const void*>(Plus(i)));
    } else {
      return internal::At<T>(static_cast<void*>(Plus(i)));
    }
  }
  Global operator+(int64_t n) const { return Global(Plus(n)); }
  explicit operator bool() const { return pointer_ != nullptr; }
  T* pointer() const { return pointer_; }

 private:
  // By integers: an address may leave its allocation as long as nobody follows it.
  T* Plus(int64_t n) const {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer_) +
                                static_cast<uintptr_t>(n) * sizeof(T));
  }
  T* pointer_ = nullptr;
};

template <class U, class T>
Global<U> Cast(Global<T> p) {
  static_assert(std::is_const_v<U> || !std::is_const_v<T>);
  return Global<U>(reinterpret_cast<U*>(p.pointer()));
}

template <class T>
class Shared {
 public:
  Shared() = default;
  explicit Shared(simt::SharedAddress address) : address_(address) {}
  template <class U>
  requires std::is_same_v<const U, T> Shared(Shared<U> other) : address_(other.address()) {}

  decltype(auto) operator[](int i) const { return internal::At<T>(Plus(i)); }
  Shared operator+(int n) const { return Shared(Plus(n)); }
  simt::SharedAddress address() const { return address_; }

 private:
  simt::SharedAddress Plus(int n) const {
    return address_ + int64_t{n} * static_cast<int64_t>(sizeof(T));
  }
  simt::SharedAddress address_;
};

template <class U, class T>
Shared<U> Cast(Shared<T> p) {
  static_assert(std::is_const_v<U> || !std::is_const_v<T>);
  return Shared<U>(p.address());
}

class SharedArena {
 public:
  template <class T>
  Shared<T> Carve(int n, int align_bytes = 16) {
    const int begin = (used_bytes_ + align_bytes - 1) / align_bytes * align_bytes;
    used_bytes_ = begin + n * static_cast<int>(sizeof(T));
    simt::CheckCarve(used_bytes_);
    return Shared<T>(simt::SharedAddress{begin, begin, used_bytes_});
  }

 private:
  int used_bytes_ = 0;
};

template <class V, class T>
V LoadVec(Global<T> p) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  return internal::LoadAt<V>(static_cast<const void*>(p.pointer()), sizeof(V));
}
template <class V, class T>
V LoadVec(Shared<T> p) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  return internal::LoadAt<V>(p.address(), sizeof(V));
}
template <class V, class T>
V LoadReadOnlyVec(Global<T> p) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  V value;
  std::memcpy(&value, simt::CheckedGlobalReadOnly(p.pointer(), sizeof(V), sizeof(V)), sizeof(V));
  return value;
}
template <class V, class T>
void StoreVec(Global<T> p, const V& value) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  internal::StoreAt<V>(static_cast<void*>(p.pointer()), value, sizeof(V));
}
template <class V, class T>
void StoreVec(Shared<T> p, const V& value) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  internal::StoreAt<V>(p.address(), value, sizeof(V));
}

inline void SyncThreads(const Site& site = Site::Current()) { simt::SyncThreads(false, site); }
inline bool SyncThreadsOr(bool value, const Site& site = Site::Current()) {
  return simt::SyncThreads(value, site) != 0;
}
inline void SyncWarp(const Site& site = Site::Current()) { simt::SyncWarp(site); }
inline void SyncNamed(int id, int n_threads, const Site& site = Site::Current()) {
  simt::SyncNamed(id, n_threads, site);
}
inline void ArriveNamed(int id, int n_threads, const Site& site = Site::Current()) {
  simt::ArriveNamed(id, n_threads, site);
}
inline void ThreadFence() {}  // global stores are seen at once

namespace internal {
template <class T>
T ShuffleAs(simt::ShuffleKind kind, T value, int arg, const Site& site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::Shuffle(kind, bits, arg, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace internal
template <class T>
T Shuffle(T value, int from_lane, const Site& site = Site::Current()) {
  return internal::ShuffleAs(simt::ShuffleKind::kIndex, value, from_lane, site);
}
template <class T>
T ShuffleXor(T value, int mask, const Site& site = Site::Current()) {
  return internal::ShuffleAs(simt::ShuffleKind::kXor, value, mask, site);
}
template <class T>
T ShuffleDown(T value, int n, const Site& site = Site::Current()) {
  return internal::ShuffleAs(simt::ShuffleKind::kDown, value, n, site);
}
template <class T>
T ShuffleUp(T value, int n, const Site& site = Site::Current()) {
  return internal::ShuffleAs(simt::ShuffleKind::kUp, value, n, site);
}
inline uint32_t Ballot(bool value, const Site& site = Site::Current()) {
  return simt::Ballot(value, site);
}
inline bool WarpAny(bool value, const Site& site = Site::Current()) {
  return simt::Ballot(value, site) != 0;
}
inline bool WarpAll(bool value, const Site& site = Site::Current()) {
  return simt::Ballot(value, site) == 0xffffffffu;
}
inline int PopCount(uint32_t x) { return std::popcount(x); }

template <class T>
void LdMatrixX4(uint32_t (&r)[4], Shared<T> row, const Site& site = Site::Current()) {
  simt::LdMatrix(row.address(), 4, false, r, site);
}
template <class T>
void LdMatrixX4Trans(uint32_t (&r)[4], Shared<T> row, const Site& site = Site::Current()) {
  simt::LdMatrix(row.address(), 4, true, r, site);
}
template <class T>
void LdMatrixX2(uint32_t (&r)[2], Shared<T> row, const Site& site = Site::Current()) {
  simt::LdMatrix(row.address(), 2, false, r, site);
}
template <class T>
void LdMatrixX2Trans(uint32_t (&r)[2], Shared<T> row, const Site& site = Site::Current()) {
  simt::LdMatrix(row.address(), 2, true, r, site);
}
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                    const Site& site = Site::Current()) {
  simt::MmaBf16(d, a, b0, b1, site);
}

template <class T, class U>
void CopyAsync16(Shared<T> to, Global<U> from, bool valid = true) {
  simt::CopyAsync16(to.address(), from.pointer(), valid);
}
inline void CopyAsyncCommit() { simt::CopyAsyncCommit(); }
template <int n_pending>
void CopyAsyncWait() {
  simt::CopyAsyncWait(n_pending);
}

namespace internal {
template <class T, class Update>
T AtomicUpdate(std::byte* at, Update update) {
  T old;
  std::memcpy(&old, at, sizeof(T));
  const T updated = update(old);
  std::memcpy(at, &updated, sizeof(T));
  return old;
}
template <class T, class Update>
T Atomic(Global<T> p, Update update) {
  return AtomicUpdate<T>(simt::CheckedGlobalAtomic(p.pointer(), sizeof(T), sizeof(T)), update);
}
template <class T, class Update>
T Atomic(Shared<T> p, Update update) {
  return AtomicUpdate<T>(simt::CheckedSharedAtomic(p.address(), sizeof(T), sizeof(T)), update);
}
template <class T>
concept AtomicElement = std::is_same_v<T, float> || std::is_same_v<T, int32_t> ||
    std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>;
template <class T>
concept OrderedElement = std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t>;
}  // namespace internal

template <template <class> class Pointer, internal::AtomicElement T>
T AtomicAdd(Pointer<T> p, std::type_identity_t<T> value) {
  return internal::Atomic(p, [value](T old) { return static_cast<T>(old + value); });
}
template <template <class> class Pointer, internal::OrderedElement T>
T AtomicMax(Pointer<T> p, std::type_identity_t<T> value) {
  return internal::Atomic(p, [value](T old) { return old < value ? value : old; });
}
template <template <class> class Pointer, internal::AtomicElement T>
T AtomicExch(Pointer<T> p, std::type_identity_t<T> value) {
  return internal::Atomic(p, [value](T) { return value; });
}

inline float Exp2Approx(float x) { return std::exp2(x); }
inline float Log2Approx(float x) { return std::log2(x); }
inline float ReciprocalApprox(float x) { return 1.0f / x; }
inline uint32_t PackBf16(float low, float high) {
  return uint32_t{ToBF16(low).bits} | uint32_t{ToBF16(high).bits} << 16;
}
inline uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  const auto product = [&](int shift) {
    return ToF32(BF16{static_cast<uint16_t>(a >> shift)}) *
           ToF32(BF16{static_cast<uint16_t>(b >> shift)});
  };
  return PackBf16(product(0), product(16));
}

}  // namespace longhaul::cuda
