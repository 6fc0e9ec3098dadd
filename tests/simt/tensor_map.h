// What the stand-in for cuTensorMapEncodeTiled (driver.cc) writes into the 128 bytes of a tensor
// map and tensor_copies.cc reads: bf16, 128-byte swizzle, zeros outside.
#pragma once

#include <cstdint>

namespace longhaul::simt {

struct EncodedTensorMap {
  static constexpr uint32_t kMagic = 0x544d4150;

  uint32_t magic = 0;  // kMagic
  uint32_t rank = 0;
  const std::byte* base = nullptr;
  uint32_t sizes[5] = {};        // elements, innermost first
  uint16_t box[5] = {};          // elements
  int64_t stride_bytes[5] = {};  // of each dimension
};
static_assert(sizeof(EncodedTensorMap) <= 128);

}  // namespace longhaul::simt
