// libFuzzer target: any bytes as a safetensors file. Whatever is accepted must lie inside the
// input.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "engine/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_bytes) {
  const auto file = std::as_bytes(std::span(data, n_bytes));
  const auto tensors = longhaul::ParseSafetensors(file, "fuzz");
  if (!tensors.ok()) return 0;
  size_t n_covered = 0;
  for (const auto& [name, tensor] : *tensors) {
    const auto part = tensor.data;
    if (!part.empty() && (part.data() < file.data() || part.size() > n_bytes ||
                          part.data() > file.data() + (n_bytes - part.size()))) {
      std::abort();
    }
    n_covered += part.size();
  }
  if (n_covered + 8 > n_bytes) std::abort();
  return 0;
}
