// The primitives of device.h (include that one) as nvcc compiles them: plain pointers, intrinsics
// and the PTX of tensor cores and asynchronous copies. sm_80 and later. The emulator's twin, which
// gives each of these its meaning in plain C++, is tests/simt/include/simt/device.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define LH_DEVICE __device__ __forceinline__
#define LH_HOST_DEVICE __host__ __device__ __forceinline__
#define LH_GRID_CONSTANT __grid_constant__
#define LH_UNROLL _Pragma("unroll")
#define LH_UNROLL_BY_TWO _Pragma("unroll 2")
// A kernel of at most max_threads threads, of which min_blocks blocks shall fit a multiprocessor.
#define LH_KERNEL(max_threads, min_blocks) \
  __global__ void __launch_bounds__(max_threads, min_blocks)

namespace longhaul::cuda {

// ---- Where am I ----
LH_DEVICE int ThreadId() { return static_cast<int>(threadIdx.x); }
LH_DEVICE int LaneId() { return static_cast<int>(threadIdx.x % 32); }
LH_DEVICE int WarpId() { return static_cast<int>(threadIdx.x / 32); }
LH_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
LH_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
LH_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
LH_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
LH_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
LH_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
LH_DEVICE int GridZ() { return static_cast<int>(gridDim.z); }

// ---- Memory ----

// A pointer to device memory. The host makes it from a pointer; only kernels follow it.
template <class T>
class Global {
 public:
  Global() = default;
  LH_HOST_DEVICE Global(T* pointer) : pointer_(pointer) {}
  template <class U>
  requires std::is_same_v<const U, T> LH_HOST_DEVICE Global(Global<U> other)
      : pointer_(other.pointer()) {}

  LH_DEVICE T& operator[](int64_t i) const { return pointer_[i]; }
  LH_HOST_DEVICE Global operator+(int64_t n) const { return Global(pointer_ + n); }
  LH_HOST_DEVICE explicit operator bool() const { return pointer_ != nullptr; }
  LH_HOST_DEVICE T* pointer() const { return pointer_; }  // for the host, and for this header

 private:
  T* pointer_ = nullptr;
};

// The same address with another element type: Cast<uint32_t>(global_of_bf16).
template <class U, class T>
LH_DEVICE Global<U> Cast(Global<T> p) {
  return Global<U>(reinterpret_cast<U*>(p.pointer()));
}

template <class T>
class Shared {
 public:
  Shared() = default;
  LH_DEVICE explicit Shared(T* pointer) : pointer_(pointer) {}
  template <class U>
  requires std::is_same_v<const U, T> LH_DEVICE Shared(Shared<U> other)
      : pointer_(other.pointer()) {}

  LH_DEVICE T& operator[](int i) const { return pointer_[i]; }
  LH_DEVICE Shared operator+(int n) const { return Shared(pointer_ + n); }
  LH_DEVICE T* pointer() const { return pointer_; }  // for this header
  LH_DEVICE uint32_t address() const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer_));
  }

 private:
  T* pointer_ = nullptr;
};

template <class U, class T>
LH_DEVICE Shared<U> Cast(Shared<T> p) {
  return Shared<U>(reinterpret_cast<U*>(p.pointer()));
}

// Hands out the block's dynamic shared memory, front to back; starts 1024-byte aligned. All threads
// carve the same. A second arena starts at the front again: memory may be used twice, with a
// barrier in between.
class SharedArena {
 public:
  template <class T>
  LH_DEVICE Shared<T> Carve(int n, int align_bytes = 16) {
    extern __shared__ __align__(1024) unsigned char lh_dynamic_shared[];
    used_bytes_ = (used_bytes_ + align_bytes - 1) / align_bytes * align_bytes;
    Shared<T> carved(reinterpret_cast<T*>(lh_dynamic_shared + used_bytes_));
    used_bytes_ += n * static_cast<int>(sizeof(T));
    return carved;
  }

 private:
  int used_bytes_ = 0;
};

namespace internal {
template <int kBytes>
struct Word;
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};
template <class V>
using WordOf = typename Word<sizeof(V)>::Type;

template <class V>
LH_DEVICE V FromWord(WordOf<V> word) {
  V value;
  memcpy(&value, &word, sizeof(V));
  return value;
}
template <class V>
LH_DEVICE WordOf<V> ToWord(const V& value) {
  WordOf<V> word;
  memcpy(&word, &value, sizeof(V));
  return word;
}
}  // namespace internal

// One access of 4, 8 or 16 bytes, aligned to its size: LoadVec<U32x4>(p + i).
template <class V, class T>
LH_DEVICE V LoadVec(Global<T> p) {
  return internal::FromWord<V>(*reinterpret_cast<const internal::WordOf<V>*>(p.pointer()));
}
template <class V, class T>
LH_DEVICE V LoadVec(Shared<T> p) {
  return internal::FromWord<V>(*reinterpret_cast<const internal::WordOf<V>*>(p.pointer()));
}
// Through the read-only path: nothing may write there during the kernel.
template <class V, class T>
LH_DEVICE V LoadReadOnlyVec(Global<T> p) {
  return internal::FromWord<V>(__ldg(reinterpret_cast<const internal::WordOf<V>*>(p.pointer())));
}
template <class V, class T>
LH_DEVICE void StoreVec(Global<T> p, const V& value) {
  *reinterpret_cast<internal::WordOf<V>*>(p.pointer()) = internal::ToWord(value);
}
template <class V, class T>
LH_DEVICE void StoreVec(Shared<T> p, const V& value) {
  *reinterpret_cast<internal::WordOf<V>*>(p.pointer()) = internal::ToWord(value);
}

// ---- Barriers ----
LH_DEVICE void SyncThreads() { __syncthreads(); }
LH_DEVICE bool SyncThreadsOr(bool value) { return __syncthreads_or(value) != 0; }
LH_DEVICE void SyncWarp() { __syncwarp(); }
// Barrier `id` in [1, 16) of n_threads threads, whole warps: SyncNamed waits, ArriveNamed does not.
LH_DEVICE void SyncNamed(int id, int n_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}
LH_DEVICE void ArriveNamed(int id, int n_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}
LH_DEVICE void ThreadFence() { __threadfence(); }

// ---- Warp: called by all 32 lanes. T has 4 or 8 bytes ----
inline constexpr unsigned kAllLanes = 0xffffffffu;
template <class T>
LH_DEVICE T Shuffle(T value, int from_lane) {
  return __shfl_sync(kAllLanes, value, from_lane);
}
template <class T>
LH_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <class T>
LH_DEVICE T ShuffleDown(T value, int n) {  // lanes [32 - n, 32) keep their own
  return __shfl_down_sync(kAllLanes, value, static_cast<unsigned>(n));
}
template <class T>
LH_DEVICE T ShuffleUp(T value, int n) {  // lanes [0, n) keep their own
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(n));
}
LH_DEVICE uint32_t Ballot(bool value) { return __ballot_sync(kAllLanes, value); }
LH_DEVICE bool WarpAny(bool value) { return __any_sync(kAllLanes, value) != 0; }
LH_DEVICE bool WarpAll(bool value) { return __all_sync(kAllLanes, value) != 0; }
LH_DEVICE int PopCount(uint32_t x) { return __popc(x); }

// ---- Tensor cores (fragment layouts: PTX ISA, "mma.m16n8k16", with g = lane / 4, t = lane % 4)
// ----

// n 8x8 matrices of 16-bit elements. Lane i gives the 16-byte aligned address of row i % 8 of
// matrix i / 8 (x2: lanes 16 and up give a valid address too, which is not read). Register j of a
// lane then holds row g, columns 2t and 2t + 1 of matrix j; with Trans, of its transpose.
template <class T>
LH_DEVICE void LdMatrixX4(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
template <class T>
LH_DEVICE void LdMatrixX4Trans(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
template <class T>
LH_DEVICE void LdMatrixX2(uint32_t (&r)[2], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address())
               : "memory");
}
template <class T>
LH_DEVICE void LdMatrixX2Trans(uint32_t (&r)[2], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address())
               : "memory");
}

// d[16, 8] f32 += a[16, 16] bf16 b[16, 8] bf16.
//   a: {row g, cols 2t..}, {row g + 8, cols 2t..}, {row g, cols 2t + 8..}, {row g + 8, cols 2t
//   + 8..} b: {rows 2t, 2t + 1, col g}, {rows 2t + 8, 2t + 9, col g} d: (g, 2t), (g, 2t + 1), (g +
//   8, 2t), (g + 8, 2t + 1)
LH_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Asynchronous copies: 16 bytes from global to shared memory, both aligned ----

// Without `valid` the 16 bytes become zero and `from` is not read (any address will do).
template <class T, class U>
LH_DEVICE void CopyAsync16(Shared<T> to, Global<U> from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address()),
               "l"(from.pointer()), "r"(valid ? 16 : 0)
               : "memory");
}
LH_DEVICE void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most n_pending of this thread's groups are under way; other threads' copies are seen
// after their wait and a barrier.
template <int n_pending>
LH_DEVICE void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n_pending) : "memory");
}

// ---- Atomics: relaxed; return the old value. float, int32_t, uint32_t; Add also uint64_t ----
namespace internal {
template <class T>
LH_DEVICE T AtomicAddAt(T* p, T value) {
  if constexpr (std::is_same_v<T, uint64_t>) {
    return atomicAdd(reinterpret_cast<unsigned long long*>(p),
                     static_cast<unsigned long long>(value));
  } else {
    return atomicAdd(p, value);
  }
}
}  // namespace internal
template <class T>
LH_DEVICE T AtomicAdd(Global<T> p, std::type_identity_t<T> value) {
  return internal::AtomicAddAt(p.pointer(), value);
}
template <class T>
LH_DEVICE T AtomicAdd(Shared<T> p, std::type_identity_t<T> value) {
  return internal::AtomicAddAt(p.pointer(), value);
}
template <class T>
LH_DEVICE T AtomicMax(Global<T> p, std::type_identity_t<T> value) {
  return atomicMax(p.pointer(), value);
}
template <class T>
LH_DEVICE T AtomicMax(Shared<T> p, std::type_identity_t<T> value) {
  return atomicMax(p.pointer(), value);
}
template <class T>
LH_DEVICE T AtomicExch(Global<T> p, std::type_identity_t<T> value) {
  return atomicExch(p.pointer(), value);
}
template <class T>
LH_DEVICE T AtomicExch(Shared<T> p, std::type_identity_t<T> value) {
  return atomicExch(p.pointer(), value);
}

// ---- Arithmetic ----
LH_DEVICE float Exp2Approx(float x) {  // 2^x, two ulp; subnormals become 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LH_DEVICE float Log2Approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LH_DEVICE float ReciprocalApprox(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Two bf16 products, each rounded to nearest even; subnormal numbers count.
LH_DEVICE uint32_t MulBf16x2(uint32_t a, uint32_t b) {
  uint32_t product;  // sm_80 has the fused form alone: -0 added changes nothing
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
}
// Rounded to nearest even; `low` in the lower half.
LH_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace longhaul::cuda
