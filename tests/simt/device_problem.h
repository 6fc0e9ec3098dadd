// A random attention problem twice: as f32 queries and pages for kernels/ref, and the same
// numbers in device memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/args.h"
#include "tests/simt/kernel_test.h"
#include "tests/testing/compare.h"
#include "tests/testing/paged_kv.h"

namespace longhaul::testing {

struct ProblemShape {
  int64_t n_tokens = 1;  // T
  int64_t q_begin = 0;
  int32_t n_heads = 1;
  int32_t n_kv_heads = 1;
  int32_t head_dim = 64;
  float q_gain = 1.0f;  // larger: sharper softmax
  DType kv_dtype = DType::kBF16;
  int64_t chunk_tokens = 0;  // of dual chunk attention; 0 = plain

  int64_t n_keys() const { return q_begin + n_tokens; }
  std::string Name() const {
    const auto text = [](int64_t n) {
      return std::to_string(n);
    };  // nvcc cannot compile fmt::format
    return "T" + text(n_tokens) + " at " + text(q_begin) + " H" + text(n_heads) + "/" +
           text(n_kv_heads) + " D" + text(head_dim) + " " + std::string(DTypeName(kv_dtype)) +
           (chunk_tokens > 0 ? " chunks of " + text(chunk_tokens) : "");
  }
};

// A tensor in device memory, f32 unless T says otherwise. Everything starts as NaN.
template <class T = float>
class DeviceTensor {
 public:
  explicit DeviceTensor(std::initializer_list<int64_t> shape) {
    const DType dtype = std::is_same_v<T, BF16> ? DType::kBF16 : DType::kF32;
    const int64_t n = TensorView(nullptr, dtype, shape).NumElements();
    array_ = simt::DeviceArray<T>(n, 0xff);
    view_ = TensorView(array_.data(), dtype, shape);
  }
  TensorView view() const { return view_; }

  // Waits for the device.
  std::vector<float> Floats() const {
    std::vector<float> floats;
    for (const T x : array_.Download()) {
      if constexpr (std::is_same_v<T, BF16>) {
        floats.push_back(ToF32(x));
      } else {
        floats.push_back(x);
      }
    }
    return floats;
  }

 private:
  simt::DeviceArray<T> array_;
  TensorView view_;
};

// The second and third form of [T, H, D] queries; none where chunk_tokens is 0.
class DualForms {
 public:
  DualForms(int64_t n_tokens, const ProblemShape& shape, uint64_t seed)
      : n_tokens_(n_tokens), shape_(shape) {
    if (shape.chunk_tokens == 0) return;
    Random random(seed);
    for (Form& form : forms_) {
      form.values = random.Normals(n_tokens * shape.n_heads * shape.head_dim, shape.q_gain);
      std::vector<BF16> rounded;
      for (float& x : form.values) {
        rounded.push_back(ToBF16(x));
        x = ToF32(rounded.back());
      }
      form.device = simt::DeviceArray<BF16>(rounded);
    }
  }

  DualChunkQueries host() {
    if (shape_.chunk_tokens == 0) return {};
    return {.next = Heads(forms_[0].values.data(), DType::kF32),
            .far = Heads(forms_[1].values.data(), DType::kF32),
            .chunk_tokens = shape_.chunk_tokens};
  }
  DualChunkQueries device() const {
    if (shape_.chunk_tokens == 0) return {};
    return {.next = Heads(forms_[0].device.data(), DType::kBF16),
            .far = Heads(forms_[1].device.data(), DType::kBF16),
            .chunk_tokens = shape_.chunk_tokens};
  }

 private:
  struct Form {
    std::vector<float> values;
    simt::DeviceArray<BF16> device;
  };
  TensorView Heads(void* data, DType dtype) const {
    return TensorView(data, dtype, {n_tokens_, shape_.n_heads, shape_.head_dim});
  }

  int64_t n_tokens_;
  ProblemShape shape_;
  Form forms_[2];
};

class DeviceProblem {
 public:
  DeviceProblem(const ProblemShape& shape, uint64_t seed)
      : shape_(shape),
        dual_(shape.n_tokens, shape, seed + 3),
        kv_(shape.n_kv_heads, shape.head_dim, shape.n_keys(), shape.kv_dtype, seed),
        row_((shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim) {
    kv_.Fill(seed + 1);
    Random random(seed + 2);
    q_ = random.Normals(shape.n_tokens * row_, shape.q_gain);
    Upload();
  }

  const ProblemShape& shape() const { return shape_; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  PagedKv& pages() { return kv_; }

  // After changes of the pages.
  void Upload() {
    std::vector<BF16> q;
    for (float& x : q_) {
      q.push_back(ToBF16(x));
      x = ToF32(q.back());
    }
    device_q_ = simt::DeviceArray<BF16>(q);
    device_pool_ = simt::DeviceArray<uint32_t>(kv_.pool());
    const int64_t n_pages = CeilDiv(shape_.n_keys(), kPageTokens);
    const KvView view = kv_.View();
    device_pages_ =
        simt::DeviceArray<int32_t>(std::vector<int32_t>(view.pages, view.pages + n_pages));
  }

  // [T, H, D]; rows are strided, as columns of a fused projection are.
  TensorView q() { return Heads(q_.data(), DType::kF32); }
  TensorView device_q() const { return Heads(device_q_.data(), DType::kBF16); }
  DualChunkQueries dual() { return dual_.host(); }
  DualChunkQueries device_dual() const { return dual_.device(); }
  KvView kv() const { return kv_.View(); }
  KvView device_kv() const {
    KvView view = kv_.View();
    view.pool = reinterpret_cast<std::byte*>(device_pool_.data());
    view.pages = device_pages_.data();
    return view;
  }

 private:
  TensorView Heads(void* data, DType dtype) const {
    return TensorView(data, dtype, {shape_.n_tokens, row_})
        .Columns(0, int64_t{shape_.n_heads} * shape_.head_dim)
        .SplitColumns(shape_.n_heads, shape_.head_dim);
  }

  ProblemShape shape_;
  DualForms dual_;
  PagedKv kv_;
  int64_t row_;
  std::vector<float> q_;
  simt::DeviceArray<BF16> device_q_;
  simt::DeviceArray<uint32_t> device_pool_;
  simt::DeviceArray<int32_t> device_pages_;
};

}  // namespace longhaul::testing
