// RowsInBands of kernels/select_math.h for lists in device memory. Device code.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/select_math.h"

namespace longhaul::cuda {

// Distances in [0, distance) that lie in one of the ascending bands.
LH_DEVICE int64_t DistancesInBands(Global<const int32_t> bands, int64_t n_bands, int64_t distance) {
  int64_t n_below = 0;   // bands that end before `distance`
  int64_t n_inside = 0;  // distances of the one it lies in
  for (int64_t end = n_bands; n_below < end;) {
    const int64_t middle = (n_below + end) / 2;
    const int64_t first = bands[middle] * kBandWidth;
    if (first + kBandWidth <= distance) {
      n_below = middle + 1;
    } else {
      end = middle;
      n_inside = first < distance ? distance - first : 0;
    }
  }
  return n_below * kBandWidth + n_inside;
}

// Rows to which `key` is remote and which meet it in one of the ascending bands.
LH_DEVICE int64_t RowsInBands(EpochRows rows, LocalPattern local, int64_t key,
                              Global<const int32_t> bands, int64_t n_bands) {
  const int64_t end = rows.q_end - key;  // distances of the remote rows: [begin, end)
  const int64_t begin = end - RemoteRows(rows, local, key);
  return DistancesInBands(bands, n_bands, end) - DistancesInBands(bands, n_bands, begin);
}

}  // namespace longhaul::cuda
