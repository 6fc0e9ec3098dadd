// TensorView: pointer, dtype, shape and strides of memory that somebody else owns.
// Rank 1 to 4, the last dimension is always contiguous. Copying a view copies no element.
// Shapes read from the slowest to the fastest dimension: // [n_tokens, n_heads, head_dim] f32.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace longhaul {

class TensorView {
 public:
  static constexpr int kMaxRank = 4;

  TensorView() = default;

  // A dense row-major view of `data`, which must hold the product of `shape` elements.
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape)
      : data_(static_cast<std::byte*>(data)), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
    LH_CHECK(rank_ >= 1 && rank_ <= kMaxRank);
    int i = 0;
    for (int64_t extent : shape) shape_[i++] = extent;
    int64_t stride = 1;
    for (i = rank_ - 1; i >= 0; --i) {
      stride_[i] = stride;
      stride *= shape_[i];
    }
  }

  bool empty() const { return data_ == nullptr || NumElements() == 0; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const { return shape_[i]; }
  // Elements between neighbours along dimension i.
  int64_t stride(int i) const { return stride_[i]; }
  void* data() const { return data_; }

  int64_t NumElements() const {
    int64_t n = rank_ == 0 ? 0 : 1;
    for (int i = 0; i < rank_; ++i) n *= shape_[i];
    return n;
  }
  size_t NumBytes() const { return static_cast<size_t>(NumElements()) * DTypeBytes(dtype_); }
  bool IsDense() const {
    int64_t expected = 1;
    for (int i = rank_ - 1; i >= 0; --i) {
      if (shape_[i] != 1 && stride_[i] != expected) return false;
      expected *= shape_[i];
    }
    return true;
  }

  // Typed pointer to the first element. T must have the size of the dtype.
  template <typename T>
  T* As() const {
    LH_DCHECK(sizeof(T) == DTypeBytes(dtype_));
    return reinterpret_cast<T*>(data_);
  }
  // Typed pointer to the start of row i of the first dimension.
  template <typename T>
  T* Row(int64_t i) const {
    return As<T>() + i * stride_[0];
  }

  // Rows [begin, end) of the first dimension.
  TensorView Slice(int64_t begin, int64_t end) const {
    LH_DCHECK(0 <= begin && begin <= end && end <= shape_[0]);
    TensorView view = *this;
    view.data_ += begin * stride_[0] * static_cast<int64_t>(DTypeBytes(dtype_));
    view.shape_[0] = end - begin;
    return view;
  }

  // Columns [begin, end) of a matrix: rows keep their distance. A fused projection is cut with this.
  TensorView Columns(int64_t begin, int64_t end) const {
    LH_DCHECK(rank_ == 2 && 0 <= begin && begin <= end && end <= shape_[1]);
    TensorView view = *this;
    view.data_ += begin * static_cast<int64_t>(DTypeBytes(dtype_));
    view.shape_[1] = end - begin;
    return view;
  }

  // A matrix [n, a * b] seen as [n, a, b]; rows keep their distance.
  TensorView SplitColumns(int64_t a, int64_t b) const {
    LH_DCHECK(rank_ == 2 && a * b == shape_[1]);
    TensorView view = *this;
    view.rank_ = 3;
    view.shape_[1] = a;
    view.shape_[2] = b;
    view.stride_[1] = b;
    view.stride_[2] = 1;
    return view;
  }

  // The same elements in another shape; the view must be dense.
  TensorView Reshape(std::initializer_list<int64_t> shape) const {
    LH_DCHECK(IsDense());
    TensorView view(data_, dtype_, shape);
    LH_DCHECK(view.NumElements() == NumElements());
    return view;
  }

 private:
  std::byte* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, kMaxRank> shape_{};
  std::array<int64_t, kMaxRank> stride_{};
};

}  // namespace longhaul
