// A SparsePlan in device memory, for tests.
#pragma once

#include <vector>

#include "kernels/args.h"
#include "tests/simt/kernel_test.h"

namespace longhaul::testing {

class DevicePlan {
 public:
  // Every entry starts as garbage, as in PlanOwner.
  DevicePlan(int64_t n_heads, const SparsePlan& shape)
      : kind_(n_heads, 0xff),
        n_stripes_(n_heads, 0xff),
        stripes_(n_heads * shape.max_stripes, 0xff),
        n_bands_(n_heads, 0xff),
        bands_(n_heads * shape.max_bands, 0xff),
        kept_pairs_(n_heads, 0xff) {
    Point(shape);
  }
  // A copy of a plan in host memory.
  static DevicePlan CopyOf(int64_t n_heads, const SparsePlan& host) {
    DevicePlan copy(n_heads, host);
    const auto upload = [](const auto* from, int64_t n) {
      using T = std::remove_cv_t<std::remove_pointer_t<decltype(from)>>;
      return simt::DeviceArray<T>(std::vector<T>(from, from + n));
    };
    copy.kind_ = upload(host.kind, n_heads);
    copy.n_stripes_ = upload(host.n_stripes, n_heads);
    copy.stripes_ = upload(host.stripes, n_heads * host.max_stripes);
    copy.n_bands_ = upload(host.n_bands, n_heads);
    copy.bands_ = upload(host.bands, n_heads * host.max_bands);
    copy.kept_pairs_ = upload(host.kept_pairs, n_heads);
    copy.Point(host);
    return copy;
  }

  const SparsePlan& plan() const { return plan_; }

  // Each waits for the device.
  std::vector<int32_t> kind() const { return kind_.Download(); }
  std::vector<int64_t> kept_pairs() const { return kept_pairs_.Download(); }
  std::vector<int32_t> stripes(int64_t head) const {
    return List(stripes_, n_stripes_, head * plan_.max_stripes, head);
  }
  std::vector<int32_t> bands(int64_t head) const {
    return List(bands_, n_bands_, head * plan_.max_bands, head);
  }

 private:
  static std::vector<int32_t> List(const simt::DeviceArray<int32_t>& lists,
                                   const simt::DeviceArray<int32_t>& counts, int64_t begin,
                                   int64_t head) {
    const std::vector<int32_t> all = lists.Download();
    const auto first = all.begin() + begin;
    return std::vector<int32_t>(first, first + counts.Download()[head]);
  }

  void Point(const SparsePlan& shape) {
    plan_ = shape;
    plan_.kind = kind_.data();
    plan_.n_stripes = n_stripes_.data();
    plan_.stripes = stripes_.data();
    plan_.n_bands = n_bands_.data();
    plan_.bands = bands_.data();
    plan_.kept_pairs = kept_pairs_.data();
  }

  simt::DeviceArray<int32_t> kind_, n_stripes_, stripes_, n_bands_, bands_;
  simt::DeviceArray<int64_t> kept_pairs_;
  SparsePlan plan_;
};

}  // namespace longhaul::testing
