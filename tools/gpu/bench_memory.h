// What the GPU benchmarks share: values that must be there, and copies of host values.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace longhaul {

// Ends the process with the status on stderr unless it is OK.
inline void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "{}\n", status.ToString());
  std::exit(1);
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  MustBeOk(value.status());
  return *std::move(value);
}

// A copy of host values in memory of the backend.
template <typename T>
Buffer UploadCopy(Backend& backend, const std::vector<T>& values) {
  const auto n_bytes = static_cast<int64_t>(values.size() * sizeof(T));
  Buffer buffer = Must(backend.Allocate(n_bytes));
  backend.Upload(values.data(), buffer.data(), n_bytes);
  return buffer;
}

}  // namespace longhaul
