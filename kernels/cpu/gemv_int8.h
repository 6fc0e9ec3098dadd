// u8 x s8 products of a few rows, for decoding: each panel streams from memory once, with
// prefetches that oneDNN's kernels lack. Sums are exact, so a row has the same bits here and there.
// Reads the panels that oneDNN packed, so nothing is held twice. Stateless; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longhaul::cpu {

// Above, oneDNN is faster: the products of 16 rows take longer than their weights' way from memory.
inline constexpr int64_t kMaxGemvRows = 8;

// sums [n_rows, n] = x [n_rows, k] * panel. n_rows in [1, kMaxGemvRows]. The panel holds blocks of
// 64 columns one behind the other, each [ceil(k / 64) * 16][64 columns][4 inputs], zeros behind k
// and n (MatmulCache::IsStreamed). Needs AVX512-VNNI.
void GemvInt8(const uint8_t* x, int64_t n_rows, int64_t k, const std::byte* panel, int64_t n,
              int32_t* sums);

}  // namespace longhaul::cpu
